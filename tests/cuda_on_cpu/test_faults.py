"""The faults that the plain build sees, and how faults are planted: see faults.py."""

import pytest

from tests.cuda_on_cpu import build, faults, runs


@runs.faults_of(build.PLAIN)
def test_fault_is_seen(name):
    runs.check_seen(name)


def test_every_fault_is_some_tests():
    assert {fault.build for fault in faults.FAULTS.values()} == {"plain", "address", "thread"}


def test_a_fault_is_planted_on_its_line():
    name = "backward: tickets are not cleared"
    text = "// Sums.\n  if (memory.tickets > 0) clear_memory();\n"
    choice = f"(simt::planted({faults.number(name)}) ? false : memory.tickets > 0)"
    assert faults.planted("scan_backward.cu", text) == (
        f'#include "planted.h"\n#line 1\n// Sums.\n  if ({choice}) clear_memory();\n'
    )
    assert faults.planted("conv.cu", text) == text


@pytest.mark.parametrize("count", [0, 2])
def test_a_fault_without_its_line_is_refused(count):
    message = (
        r"planted: split.cu must have 'backward \? .* : i' once, to plant .* in it, got"
        f" {count}; choose another place"
    )
    with pytest.raises(ValueError, match=message):
        faults.planted("split.cu", "(backward ? split.segments - 1 - i : i);\n" * count)
