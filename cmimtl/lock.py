"""One process at a time trains in a run's folder: a lock that the system ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from cmimtl.files import writing

LOCK_FILE = ".lock"  # in the folder of a run; holds the name of the process that locks it

# Of each lock that this process holds, the descriptor of its file. A process that it forks,
# such as a data loader's worker, must close it, or the lock would outlive this process.
_HELD: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Be the one process that writes to a run's folder. The system ends it with the process.

    Raises:
        ValueError: another process does.
        WriteError: no file can be made there.
    """
    path = run / LOCK_FILE
    with writing("train", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _HELD.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(run) from error
        except OSError as error:  # as some network file systems
            warnings.warn(
                f"train: {run} is on a file system without locks ({error.strerror}): nothing keeps"
                " a second process from training there.",
                stacklevel=2,
            )
        if not path.exists() or os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            raise _in_use(run)  # deleted by its last holder, and another one may be there
        os.ftruncate(descriptor, 0)
        with writing("train", path):
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        if descriptor in _HELD:  # in a forked process it is closed, and its number another file's
            _HELD.remove(descriptor)
            os.close(descriptor)


def check_unlocked(run: Path) -> None:
    """Raises: ValueError: a process holds the lock of a run's folder."""
    try:
        descriptor = os.open(run / LOCK_FILE, os.O_RDWR)
    except OSError:
        return  # no lock, or none that this user could take; what follows says so
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(run) from error
    except OSError:
        return  # no locks here; `lock` says so
    finally:
        os.close(descriptor)


def _in_use(run: Path) -> ValueError:
    try:
        holder = json.loads((run / LOCK_FILE).read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):  # it has not written its name yet
        who = "another process"
    return ValueError(
        f"train: output_dir must not be in use, got {run}, where {who} is training; wait for it,"
        " or stop it and go on with --resume."
    )
