"""The script that plants faults plants them, and sees which tests notice."""

import ast
from dataclasses import replace

import coverage
import pytest

from tests import plant_faults, small_faults

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
    """The module in a repository of its own, and a function that writes its tests."""
    for module in (plant_faults, small_faults):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    file = tmp_path / "package" / "module.py"
    file.write_text(SOURCE)

    def write(text):
        test = tmp_path / "test_module.py"
        test.write_text(text)
        return str(test)

    return file, write


def test_each_fault_is_one_change_of_the_code(package):
    file, _ = package
    faults = plant_faults.faults_of(file)
    was = ast.dump(ast.parse(SOURCE))
    for fault, text in faults:
        assert ast.dump(ast.parse(text())) != was and fault.was != fault.now
        assert "3 words here" in text() and "{1 + 1} number" in text()
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
    file, write = package
    fault, text = next(p for p in plant_faults.faults_of(file) if "max(value" in p[0].now)
    assert plant_faults.caught(fault, text(), [write(NOTICES)])
    assert not plant_faults.caught(fault, text(), [write(SLEEPS)])


def test_a_hang_is_noticed(package, monkeypatch):
    file, write = package
    fault, _ = plant_faults.faults_of(file)[0]
    test = write(NOTICES.replace("    assert", "    import time\n    time.sleep(60)\n    assert"))
    monkeypatch.setattr(plant_faults, "TIMEOUT", 3)
    assert plant_faults.caught(fault, SOURCE, [test])
    assert not plant_faults.caught(fault, SOURCE, [test], budget=0)


def test_the_tests_of_a_line_are_those_that_run_it(tmp_path):
    record = coverage.CoverageData(str(tmp_path / "record"))
    for context, lines in {
        "tests/test_long.py::test_a|run": range(1, 12),
        "tests/test_short.py::test_b[1]|run": (8, 9, 10),
        "tests/test_other.py::test_c|setup": (6,),
        "": (4,),
    }.items():
        record.set_context(context)
        record.add_lines({"/elsewhere/package/module.py": lines})
    record.write()
    found = plant_faults.Coverage(tmp_path / "record")
    long, short, other = (f"tests/test_{name}.py" for name in ("long", "short", "other"))
    a, b, c = f"{long}::test_a", f"{short}::test_b[1]", f"{other}::test_c"
    fault = plant_faults.Fault("package/module.py", 10, 10, "total += 1", "pass")
    assert found.tests_of(fault) == [b, a, short, long]
    assert found.tests_of(replace(fault, line=5, last=6)) == [c, a, other, long]
    assert found.tests_of(replace(fault, line=40, last=40)) == [c, b, a, other, short, long]


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
