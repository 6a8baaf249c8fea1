"""What cannot be written or read is named, before the work where that is possible."""

import errno
import os
import struct

import pytest

from cmimtl import runs
from cmimtl.data.images import load_image
from cmimtl.files import WriteError, check_folder, read_json, reading, write_json, writing
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


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"{", "Expecting property name"),
        (b"[]", "it holds a list, no dict"),
        (b"[" * 100_000, "RecursionError: maximum recursion depth exceeded"),
        (b'{"a": -' + 400 * b"1" + b"}", "it has a number of 401 digits, more than 308"),
        (b'{"a": "\\uDC00"}', "can't encode character"),
        (b'{"a": "Sj\xf6gren"}', "can't decode byte 0xf6"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_json("op", "it must be so", tmp_path / "a.json")
    assert str(error.value).startswith(f"op: it must be so, got {tmp_path / 'a.json'}: ")
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_json_that_can(tmp_path):
    (tmp_path / "a.json").write_bytes(
        b'\xef\xbb\xbf{"a": ' + 308 * b"1" + b', "b": "\\ud83e\\uddb4"}'
    )
    assert read_json("op", "so", tmp_path / "a.json") == {"a": int(308 * "1"), "b": "\U0001f9b4"}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "pipe, which is no file"),
        (tmp_path, "which is a folder"),
        (tmp_path / ("x" * 300), "got a name too long"),
    ):
        with pytest.raises(ValueError, match=words):
            load_image(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_image(tmp_path / "nothing")


class PanicException(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize(
    "error",
    [TypeError("a\nb"), KeyError("x"), struct.error(), MemoryError(), PanicException("no entry")],
)
def test_whatever_a_library_raises_of_a_file_names_it(error):
    with pytest.raises(ValueError, match=rf"^op: so, got f.bin: {type(error).__name__}"):
        with reading("op", "so", "f.bin"):
            raise error
    with pytest.raises(ValueError, match=r"^mine: f.bin is bad$"), reading("op", "so", "f.bin"):
        raise ValueError("mine: f.bin is bad")
    with pytest.raises(KeyboardInterrupt), reading("op", "so", "f.bin"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "{}",
        '{"arguments": []}',
        '{"arguments": {"data": 1, "root": "x"}}',
        "[" * 5000,
    ],
)
def test_a_run_json_that_describes_no_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"^read_run: run must be .* run.json is missing or unread"
    ):
        runs.read_run(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"step": "x", "warning": "y"}]', '[{"step": 1}]'])
def test_a_warnings_json_that_holds_no_warnings(tmp_path, text):
    (tmp_path / "warnings.json").write_text(text)
    with pytest.raises(ValueError, match=r"^read_warnings: warnings.json must .*/warnings.json: "):
        runs.read_warnings(tmp_path)
