"""A lock that lets only one process at a time train in a run's folder.

The operating system releases the lock when the process ends, however it ends.
"""

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

LOCK_FILE = ".lock"  # lies in the folder of a run, and names the process that locks it

# The descriptors of the files of all locks that this process holds. A process that it forks, such
# as a data loader's worker, must close them, or the lock would outlive this process.
_HELD: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Lock a run's folder for the time of the body, so that no other process writes there.

    Raises:
        ValueError: another process holds the lock.
        WriteError: the lock's file cannot be made.
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
        except OSError as error:  # some network file systems have no locks
            warnings.warn(
                f"train: {run} is on a file system without locks ({error.strerror}): nothing keeps"
                " a second process from training there.",
                stacklevel=2,
            )
        if not path.exists() or os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            raise _in_use(run)  # the file's last holder deleted it, and there may be a new one
        os.ftruncate(descriptor, 0)
        with writing("train", path):
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        if descriptor in _HELD:  # a forked process closed it, and its number may be another file's
            _HELD.remove(descriptor)
            os.close(descriptor)


def check_unlocked(run: Path) -> None:
    """Check that no process holds the lock of a run's folder.

    Raises:
        ValueError: a process does.
    """
    try:
        descriptor = os.open(run / LOCK_FILE, os.O_RDWR)
    except OSError:
        return  # there is no lock, or none that this user may take; what follows finds that out
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(run) from error
    except OSError:
        return  # this file system has no locks; `lock` warns of it
    finally:
        os.close(descriptor)


def _in_use(run: Path) -> ValueError:
    try:
        holder = json.loads((run / LOCK_FILE).read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # the process has not written its name yet
        who = "another process"
    return ValueError(
        f"train: output_dir must not be in use, got {run}, where {who} is training; wait for it,"
        " or stop it and go on with --resume."
    )
