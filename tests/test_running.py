"""How the tests are run: by how many workers, and in which order."""

import os
import types

import pytest

from tests import conftest


@pytest.mark.parametrize(
    "quota, expected",
    [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 6)],
)
def test_cores_are_those_of_the_process_and_its_container(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    file = tmp_path / "cpu.max"
    assert conftest.cores(file) == 6  # no such file
    file.write_text(quota + "\n")
    assert conftest.cores(file) == expected


def test_many_cores_do_not_start_as_many_workers(monkeypatch):
    monkeypatch.setattr(conftest, "cores", lambda: 128)
    assert conftest.pytest_xdist_auto_num_workers(None) == conftest.MOST_WORKERS


def test_the_longest_files_come_first(request):
    """And are there; with xdist in the order that was collected."""
    for name in conftest.LONGEST:
        assert (conftest.ROOT / name).is_file(), name
    first, second = conftest.LONGEST[:2]
    names = ["tests/a.py::test_b", f"{second}::test", "tests/a.py::test_a", f"{first}::test[a::b]"]
    items = [types.SimpleNamespace(nodeid=name) for name in names]
    conftest.pytest_collection_modifyitems(items)
    found = [item.nodeid for item in items]
    assert found == [names[3], names[1], names[0], names[2]]
    assert getattr(request.config.option, "loadscopereorder", False) is False
