"""Runs of test_kernels.py outside of this process: clean, or with a fault that must be seen."""

import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.build import Build
from tests.cuda_on_cpu.conftest import BUILD, WHOLE_MATRIX
from tests.cuda_on_cpu.faults import FAULTS, number

# Without -s, what a sanitizer says as it ends the process would be lost.
OPTIONS = ("-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist")
KERNELS = "tests/cuda_on_cpu/test_kernels.py"


def check_clean(chosen: Build) -> None:
    """All that the build runs passes, with every fault asleep."""
    # Properties, and bits under other schedules, are of values: no kernel does there what it does
    # nowhere else.
    tests = [] if WHOLE_MATRIX else ["-k", "not property and not schedule"]
    run = chosen.python(build.kernels(chosen), "-m", "pytest", *OPTIONS, KERNELS, *tests)
    assert run.returncode == 0, run.stdout
    assert re.search(r"\d+ passed", run.stdout) and "skipped" not in run.stdout, run.stdout


def faults_of(chosen: Build) -> pytest.MarkDecorator:
    """The faults that the build must see, for a test of `name`."""
    return pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.build == chosen.name])


def check_seen(name: str) -> None:
    """With the fault awake the tests fail, and say what they are to say."""
    status, said = with_faults(build.BUILDS[FAULTS[name].build])[name]
    assert status != 0, said
    assert re.search(FAULTS[name].message, said), said


@functools.cache
def with_faults(chosen: Build) -> dict[str, tuple[int, str]]:
    """Exit status and output of the tests of each fault of the build, with that one awake."""
    library = build.kernels(chosen)
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.python(library, "-m", "tests.cuda_on_cpu.runs", folder)
        assert run.returncode == 0, run.stdout
        return json.loads(Path(folder, "runs.json").read_text())


def wake_each(folder: Path) -> None:
    """Runs the tests of each fault of BUILD and writes runs.json.

    To import torch and the tests takes several times as long as to see a fault, so one process does
    it, and its children, which are copies of it, have a fault each.
    """
    import tests.cuda_on_cpu.test_kernels  # noqa: F401

    runs = {}
    for name, fault in FAULTS.items():
        if fault.build != BUILD.name:
            continue
        output = folder / "output"
        child = os.fork()
        if child == 0:
            os.environ["CMIMTL_PLANTED_FAULT"] = str(number(name))  # read with the library
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            status = pytest.main([*OPTIONS, KERNELS, "-k", fault.tests])
            sys.stdout.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        runs[name] = os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
    (folder / "runs.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    wake_each(Path(sys.argv[1]))
