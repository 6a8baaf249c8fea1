"""The script that plants faults plants them, and sees which tests notice."""

import ast

import pytest

from tests import plant_faults

SOURCE = '''
"""A package of one module."""

def clipped(values, most, *, strict=False):
    """Not more than `most`; 3 words here are no code."""
    if strict and not values:
        raise ValueError(f"values must hold {1 + 1} number, got none")
    total = 0
    for value in values[1:]:
        total += min(value, most)
    return total if total >= 0 else -total
'''
NOTICES = """
from package.module import clipped

def test():
    assert clipped([9, 5, 1], 3) == 4
"""
SLEEPS = NOTICES.replace("== 4", "is not None")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The module in a repository of its own, and a function that chooses its tests."""
    monkeypatch.setattr(plant_faults, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    file = tmp_path / "package" / "module.py"
    file.write_text(SOURCE)

    def tests(text):
        test = tmp_path / "test_module.py"
        test.write_text(text)
        monkeypatch.setattr(plant_faults, "tests_of", lambda file: [str(test)])

    return file, tests


def test_each_fault_is_one_change_of_the_code(package):
    file, _ = package
    faults = plant_faults.faults_of(file)
    was = ast.dump(ast.parse(SOURCE))
    for fault, text in faults:
        assert ast.dump(ast.parse(text)) != was and fault.was != fault.now
        assert "3 words here" in text and "{1 + 1} number" in text
    planted = {(fault.line, fault.now) for fault, _ in faults}
    assert planted >= {
        (6, "if strict or not values:"),
        (6, "if strict and values:"),
        (8, "total = 1"),
        (9, "for value in values:"),
        (10, "total += max(value, most)"),
        (10, "total += min(most, value)"),
        (10, "pass"),
        (11, "return total if total > 0 else -total"),
        (11, "return total"),
    }
    assert file.read_text() == SOURCE
    assert len({fault.key for fault, _ in faults}) == len(planted)


def test_a_fault_is_caught_by_a_test_that_notices(package):
    file, tests = package
    fault, text = next(p for p in plant_faults.faults_of(file) if "max(value" in p[0].now)
    tests(NOTICES)
    assert plant_faults.caught(fault, text)
    tests(SLEEPS)
    assert not plant_faults.caught(fault, text)


def test_a_hang_is_noticed(package, monkeypatch):
    file, tests = package
    fault, _ = plant_faults.faults_of(file)[0]
    monkeypatch.setattr(plant_faults, "TIMEOUT", 0.5)
    tests(NOTICES.replace("def test", "import time\ntime.sleep(60)\ndef test"))
    assert plant_faults.caught(fault, SOURCE)


def test_what_is_said_to_change_nothing_can_still_be_planted():
    listed = plant_faults.harmless()
    files = {file for file, _, _ in listed}
    there = {f.key for name in files for f, _ in plant_faults.faults_of(plant_faults.ROOT / name)}
    assert [key for key in listed if key not in there] == []
    assert all(len(reason) > 10 for reason in listed.values())


def test_every_module_has_tests():
    for package in ("cmimtl", "cmimtl_kernels"):
        for file in (plant_faults.ROOT / package).rglob("*.py"):
            assert plant_faults.tests_of(file.relative_to(plant_faults.ROOT).as_posix()), file
