"""Runs of test_kernels.py outside of this process: clean, or with a fault that must be seen."""

import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.build import Build
from tests.cuda_on_cpu.conftest import BUILD
from tests.cuda_on_cpu.faults import FAULTS, number

# Without -s, what a sanitizer says as it ends the process would be lost.
OPTIONS = ("-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist")
KERNELS = "tests/cuda_on_cpu/test_kernels.py"
CLEAN = "no fault"


def check_clean(chosen: Build) -> None:
    """All that the build runs passes, with every fault asleep."""
    status, said = outcomes(chosen)[CLEAN]
    assert status == 0, said
    assert re.search(r"\d+ passed", said) and "skipped" not in said, said


def faults_of(chosen: Build) -> pytest.MarkDecorator:
    """The faults that the build must see, for a test of `name`."""
    return pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.build == chosen.name])


def check_seen(name: str) -> None:
    """With the fault awake the tests fail, and say what they are to say."""
    status, said = outcomes(build.BUILDS[FAULTS[name].build])[name]
    assert status != 0, said
    assert re.search(FAULTS[name].message, said), said


@functools.cache
def outcomes(chosen: Build) -> dict[str, tuple[int, str]]:
    """Exit status and output of each of the build's runs: by the fault that is awake, or CLEAN."""
    library = build.kernels(chosen)
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.python(library, "-m", "tests.cuda_on_cpu.runs", folder)
        assert run.returncode == 0, run.stdout
        return json.loads(Path(folder, "outcomes.json").read_text())


def tests_of_each_run() -> dict[str, str]:
    """What each run of BUILD selects, pytest's -k.

    The plain build's clean run is test_kernels.py, started as any other test file.
    """
    runs = {name: fault.tests for name, fault in FAULTS.items() if fault.build == BUILD.name}
    if BUILD.runtime is None:
        return runs
    # Properties, and bits under other schedules, are of values: no kernel does there what it does
    # nowhere else. Nor do random calls, of which the memory is what matters.
    left_out = ["property", "schedule"] + (["random_raw"] if BUILD.name == "thread" else [])
    chosen = " and ".join(f"not {word}" for word in left_out)
    return {CLEAN: chosen if BUILD.few else ""} | runs


def run_each(folder: Path) -> None:
    """Does the runs of BUILD and writes outcomes.json.

    To import torch, sympy and the tests takes many times as long as to see a fault, so one process
    does it, and its children, which are copies of it, do a run each. It starts no thread, as root's
    conftest.py does: the thread sanitizer refuses copies of a process with more than one.
    """
    assert pytest.main([*OPTIONS, KERNELS, "--collect-only", "-qq", "--noconftest"]) == 0
    torch.use_deterministic_algorithms(False)  # the fixtures' call of it is what imports sympy

    found = {}
    for name, chosen in tests_of_each_run().items():
        output = folder / "output"
        child = os.fork()
        if child == 0:
            awake = 0 if name == CLEAN else number(name)
            os.environ["CMIMTL_PLANTED_FAULT"] = str(awake)  # read with the library
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            status = pytest.main([*OPTIONS, KERNELS, "-k", chosen])
            sys.stdout.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        found[name] = os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
    (folder / "outcomes.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_each(Path(sys.argv[1]))
