"""The lock of a run's folder, whoever held it last."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from cmimtl.runs import locking


def test_the_lock_ends_with_its_process(tmp_path):
    """By a kill too, and though a process that it forked lives on, as a data loader's worker."""
    code = f"""
import os, time
from pathlib import Path
from cmimtl.runs.locking import lock
with lock(Path({str(tmp_path)!r})):
    child = os.fork()
    if not child:  # it has let go of the lock: what is done at a fork comes first
        print(os.getpid(), flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    with pytest.raises(ValueError, match=f"where process {holder.pid} on .* is training"):
        locking.check_unlocked(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    os.kill(child, 0)  # it is there
    with locking.lock(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)


def test_a_lock_file_that_its_holder_deleted(tmp_path, monkeypatch):
    flock = fcntl.flock

    def late(descriptor, how):
        (tmp_path / ".lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with (
        pytest.raises(ValueError, match="where another process is training"),
        locking.lock(tmp_path),
    ):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refused(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.warns(UserWarning, match="file system without locks .No locks available.: nothing"):
        with locking.lock(tmp_path):
            pass
    locking.check_unlocked(tmp_path)
