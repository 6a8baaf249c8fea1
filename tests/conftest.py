"""What every test run does first: no network, fixed threads, a word on the kernels under test."""

import os

import pytest
import torch

from cmimtl_kernels import _library

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, in the tests


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
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
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
