"""What every test run does first: no network, fixed threads, a word on the kernels under test."""

import os

import pytest
import torch

from cmimtl_kernels import _library

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, in the tests


def pytest_configure(config):
    """With CMIMTL_REQUIRE_EXT=1, as in CI, a missing or old CPU library fails the run.

    Without it the tests of a backend that was not built are skipped, and all would be green.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    reason = _library.load_libraries()["cpu"]
    if changed := _library.changed_sources("cpu"):
        reason = f"older than {', '.join(changed)}"
    if reason and os.environ.get("CMIMTL_REQUIRE_EXT") == "1":
        raise pytest.UsageError(
            f"tests: the CPU library must be built with CMIMTL_REQUIRE_EXT=1, got: {reason};"
            " `pip install --no-deps -e .` builds it"
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
