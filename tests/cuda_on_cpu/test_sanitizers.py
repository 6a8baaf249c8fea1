"""Starts test_kernels.py under the sanitizers, each in a process of its own: see conftest.py."""

import re

import pytest

from tests.cuda_on_cpu import build

KERNELS = "tests/cuda_on_cpu/test_kernels.py"


@pytest.mark.parametrize("name", ["address", "thread"])
def test_kernels_are_clean(name):
    chosen = build.BUILDS[name]
    # Properties are of values, which the plain build compares.
    run = chosen.pytest(build.kernels(chosen), KERNELS, "-k", "not property")
    assert run.returncode == 0, run.stdout
    assert re.search(r"\d+ passed", run.stdout) and "skipped" not in run.stdout, run.stdout
