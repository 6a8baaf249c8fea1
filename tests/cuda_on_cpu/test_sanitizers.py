"""Starts test_kernels.py under the sanitizers, each in a process of its own: see conftest.py."""

import re

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.conftest import WHOLE_MATRIX

KERNELS = "tests/cuda_on_cpu/test_kernels.py"


@pytest.mark.parametrize("name", ["address", "thread"])
def test_kernels_are_clean(name):
    chosen = build.BUILDS[name]
    # Properties are of values: no kernel does there what it does nowhere else.
    chosen_tests = [] if WHOLE_MATRIX else ["-k", "not property"]
    run = chosen.pytest(build.kernels(chosen), KERNELS, *chosen_tests)
    assert run.returncode == 0, run.stdout
    assert re.search(r"\d+ passed", run.stdout) and "skipped" not in run.stdout, run.stdout
