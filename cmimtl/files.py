"""Files that are there whole or not at all, and outputs that are checked before hours of work."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write JSON under a temporary name first, so that no reader ever sees half a file.

    Raises:
        ValueError: content holds what JSON does not have, NaN included.
        OSError: the file cannot be written.
    """
    path = Path(path)
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    temporary = temporary_name(path)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where to write what will be moved to path: beside it, with the same suffix."""
    return path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")


def check_writable(operation: str, argument: str, path: str | os.PathLike[str]) -> Path:
    """The path, after making sure that a file can be written there; its folder is made.

    Args:
        operation, argument: named in the error.
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
