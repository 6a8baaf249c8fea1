"""Write files whole or not at all, and check outputs before hours of work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# The errors of a write that its user can mend: no space is left on the disk, or none of a quota or
# a limit; there is no right to write; the disk is read-only or broken.
_OF_WRITING = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
}  # fmt: skip
# torch.save and safetensors tell of such an error in these words, without its number.
_FAILED_WRITES = ("inline_container.cc", "PytorchStreamWriter", "Error while serializing")


class WriteError(OSError):
    """A file or folder could not be written; the message names it and says why."""


@contextlib.contextmanager
def writing(operation: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Where the body fails to write a file, raise an error that names the file and says why.

    Args:
        operation: what is being done; the error names it.
        path: the file or folder that the body writes.
    Raises:
        WriteError: the body met a full disk, a limit, a missing right, …
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno not in _OF_WRITING:
            raise
        raise _write_error(operation, path, str(error.strerror)) from error
    except Exception as error:
        if not any(words in str(error) for words in _FAILED_WRITES):
            raise
        raise _write_error(operation, path, str(error).strip().partition("\n")[0]) from error


def _write_error(operation: str, path: str | os.PathLike[str], reason: str) -> WriteError:
    existing = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return WriteError(
        f"{operation}: {path} must be written, got this: {reason} ({free:,.0f} MB are free there)."
    )


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write JSON under a temporary name first, so that no reader ever sees half a file.

    Raises:
        ValueError: content holds what JSON does not have, NaN included.
        WriteError: the file cannot be written.
    """
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, under a temporary name first.

    Raises:
        WriteError: the file cannot be written.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with writing("write_text", path):
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A name beside path, with the same suffix, for a file that will be moved to path."""
    return path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")


def check_writable(operation: str, argument: str, path: str | os.PathLike[str]) -> Path:
    """Make sure that a file can be written to a path, make its folder, and return the path.

    Args:
        operation, argument: the error names both.
        path: where a file is going to be written later.
    Raises:
        ValueError: a folder has that name, or no file can be made beside it.
    """
    path = Path(path)
    requirement = f"{operation}: {argument} must name a file that can be written, got {path}"
    if path.is_dir():
        raise ValueError(f"{requirement}, which is a folder; give a file's name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(path)
        probe.touch()
        probe.unlink()
        if path.exists():
            with path.open("ab"):
                pass
    except OSError as error:
        raise ValueError(f"{requirement} ({error.strerror}).") from error
    return path


def check_folder(operation: str, argument: str, path: str | os.PathLike[str]) -> Path:
    """Make sure that a path is a folder that can be written to, or can become one; return it.

    The folder is not made.

    Args:
        operation, argument: the error names both.
        path: a folder in which something is going to be written later.
    Raises:
        ValueError: a file is in the way, or the right to write is missing.
    """
    path = Path(path)
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return path
    why = "cannot be written to" if existing.is_dir() else "is no folder"
    raise ValueError(
        f"{operation}: {argument} must be a folder that can be written to, got {path}:"
        f" {existing} {why}."
    )
