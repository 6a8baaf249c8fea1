"""Write files whole or not at all, check outputs before hours of work, and doubt what is read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The errors of a write that its user can mend: no space is left on the disk, or none of a quota or
# a limit; there is no right to write; the disk is read-only or broken.
_OF_WRITING = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
}  # fmt: skip
# torch.save and safetensors tell of such an error in these words, without its number.
_FAILED_WRITES = ("inline_container.cc", "PytorchStreamWriter", "Error while serializing")

# Longer whole numbers are none that a float can hold.
MAX_DIGITS = 308
_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


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


@contextlib.contextmanager
def reading(operation: str, requirement: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Where the body fails to read a file, raise an error that names the file and says why.

    Libraries raise nearly everything of a damaged file: TypeError, KeyError, struct.error,
    RuntimeError, RecursionError among them.

    Args:
        operation, requirement: the error has the form "operation: requirement, got path: reason".
        path: the file that the body reads.
    Raises:
        ValueError: the body raised anything. A ValueError that names the file is left as it is.
    """
    try:
        yield
    except BaseException as error:
        # A panic of a library in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, ValueError) or not reason:
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        raise ValueError(f"{operation}: {requirement}, got {path}: {reason}") from error


def read_file(operation: str, requirement: str, path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file; what is no file, such as a pipe, would never end.

    Args: as `reading`.
    Raises:
        OSError: the file is not there or cannot be opened.
        ValueError: it is no file, or has a name that no file can have.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no file"
            raise ValueError(f"{operation}: {requirement}, got {path}, which is {kind}.")
        return path.read_bytes()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{operation}: {requirement}, got a name too long: {path}.") from error
        raise


def read_json(
    operation: str, requirement: str, path: str | os.PathLike[str], kind: type = dict
) -> Any:
    """What a file of JSON holds. A byte-order mark is skipped.

    Args:
        operation, requirement: as in `reading`.
        path: the file.
        kind: dict or list, what the file must hold.
    Raises:
        ValueError: it cannot be read, is no JSON in UTF-8, holds something else, is nested too
            deeply, or has a number that is too long or text that no file can hold.
    """
    with reading(operation, requirement, path):
        text = read_file(operation, requirement, path).decode("utf-8-sig")
        content = json.loads(text, parse_int=_whole_number)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, no {kind.__name__}")
        return content


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)


def leads_out(root: Path, path: Path) -> bool:
    """Whether a path leads out of a folder, by its own parts or by those that links stand for."""
    return ".." in path.parts or not path.resolve().is_relative_to(root.resolve())
