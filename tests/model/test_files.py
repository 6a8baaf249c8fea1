"""What cannot be written is named, before the work where that is possible."""

import errno
import os

import pytest

from cmimtl.files import WriteError, check_folder, write_json, writing
from tests.model.commands import largest_file


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"^write_json: .*/a.json must be written, got this: No"):
        with writing("write_json", tmp_path / "a.json"):
            os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    with pytest.raises(ValueError, match="another"), writing("x", tmp_path):
        raise ValueError("another error")
    with pytest.raises(InterruptedError), writing("x", tmp_path):
        raise InterruptedError(errno.EINTR, "not of writing")
    with largest_file(10), pytest.raises(WriteError, match="File too large"):
        write_json(tmp_path / "b.json", {"long": "x" * 100})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"op: argument must be a folder .*file is no folder"):
        check_folder("op", "argument", tmp_path / "file" / "new")
    assert check_folder("op", "argument", tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written to"):
        check_folder("op", "argument", tmp_path / "a")
