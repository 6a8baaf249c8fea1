"""What every test run does first: no network, fixed threads, a word on the kernels under test; and
how many workers run which files first."""

import os
from pathlib import Path

import pytest
import torch

from cmimtl_kernels import _library

ROOT = Path(__file__).parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, in the tests
os.environ["LC_ALL"] = "C.UTF-8"  # compilers speak English, and the tests understand it
# Beside what else is compiled, and not in a home directory that may be read-only.
os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))
# Compiled graphs are kept in /tmp by what they call, and not by its schema: those of another
# version of the ops would run.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

# The files that take minutes, the longest first. A file is one worker's (--dist loadfile): one that
# came last would leave the other workers idle. xdist's own order, by number of tests, has it so.
LONGEST = (
    "tests/cuda_on_cpu/test_thread.py",
    "tests/triton/test_compiled.py",
    "tests/cuda_on_cpu/test_address.py",
    "tests/triton/test_interpreter.py",
    "tests/cuda_on_cpu/test_kernels.py",
    "tests/model/test_cli.py",
    "tests/cuda_on_cpu/test_faults.py",
    "tests/kernels/test_transforms.py",
    "tests/kernels/test_instruction_sets.py",
    "tests/cuda_on_cpu/test_traffic.py",
)
# More than the long files keep busy would only take memory, up to a GB each.
MOST_WORKERS = 16


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its own, and no more than a container's share of time."""
    if hasattr(os, "sched_getaffinity"):
        mine = len(os.sched_getaffinity(0))
    else:
        mine = os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
    except OSError:
        return mine
    return mine if share == "max" else max(1, min(mine, int(share) // int(period)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    return min(cores(), MOST_WORKERS)


def pytest_collection_modifyitems(items):
    """The longest files first, all else as it was found."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(LONGEST)))


def untested_libraries() -> list[str]:
    """Why the tests of a library that should be there, as it is in the sources, cannot run.

    A CUDA library that the build had a reason not to try, such as no nvcc, may be missing.
    """
    reasons = []
    for name, reason in _library.load_libraries().items():
        note = _library.record(name)
        if name == "cuda" and not note.get("built") and "log" not in note:
            continue
        if changed := _library.changed_sources(name):
            reason = f"older than {', '.join(changed)}"
        if reason:
            reasons.append(f"the {name.upper()} library: {reason}")
    return reasons


def pytest_configure(config):
    """With CMIMTL_REQUIRE_EXT=1, as in CI, a missing or old library fails the run.

    Without it the tests of a backend that was not built are skipped, and all would be green.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(1, cores() // workers)
    torch.set_num_threads(threads)
    if "PYTEST_XDIST_WORKER" in os.environ or not getattr(config.option, "numprocesses", None):
        # This process runs tests; what they start shares the cores with the other workers too.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if hasattr(config.option, "loadscopereorder"):  # xdist is there
        config.option.loadscopereorder = False
    reasons = untested_libraries()
    if reasons and os.environ.get("CMIMTL_REQUIRE_EXT") == "1":
        raise pytest.UsageError(
            "tests: every library must be built with CMIMTL_REQUIRE_EXT=1, got"
            f" {'; '.join(reasons)}; `pip install --no-deps -e .` builds them"
        )


def pytest_report_header(config):
    states = _library.load_libraries().items()
    yield "kernels: " + "; ".join(f"{name}: {reason or 'loaded'}" for name, reason in states)
    for name, _ in states:
        if changed := _library.changed_sources(name):
            yield f"the {name} library is OLDER than {', '.join(changed)}: pip install -e ."


@pytest.fixture(autouse=True)
def _same_threads():
    """A test may change the number of threads; the next one starts with the old number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
