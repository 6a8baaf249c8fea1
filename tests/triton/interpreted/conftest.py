"""Runs the Triton kernels in Triton's interpreter, on CPU tensors, through the public ops.

Triton decides when it is imported whether to interpret, so these tests have a process of their own,
in which nothing can be compiled: ../test_interpreter.py starts it. To run some by hand:

    TRITON_INTERPRET=1 python -m pytest tests/triton/interpreted -k ...
"""

import dataclasses
import os

import pytest
import torch

from cmimtl_kernels import backends, registration
from cmimtl_kernels import triton as kernels

# Steps between checkpoints, and pairs in a tile of the backward scan. So few steps have several
# chunks, and a chunk several tiles, the last of which a cross scan does not fill.
EVERY, BACKWARD_ROWS = 6, 2

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETING:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def _on_cpu():
    library = torch.library.Library(kernels.NAMESPACE, "IMPL")
    for name in registration.SCHEMAS:
        library.impl(name, kernels.implementation(name), "CPU")
    yield
    library._destroy()


@pytest.fixture
def interpreted(_on_cpu, monkeypatch):
    """backend="triton" takes CPU tensors and keeps a checkpoint every six steps; see `strict`."""
    from cmimtl_kernels.triton import launch  # imports triton, and with it its interpreter
    from tests.triton.interpreted.interp_tools import strict

    backend = dataclasses.replace(
        backends.BACKENDS["triton"],
        devices=("cpu",),
        checkpoint_every=EVERY,
        unavailable=lambda: None,
    )
    monkeypatch.setitem(backends.BACKENDS, "triton", backend)
    monkeypatch.setattr(launch, "CHECKPOINT_EVERY", EVERY)
    monkeypatch.setattr(launch, "BACKWARD_ROWS", BACKWARD_ROWS)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    with strict():
        yield
    torch.use_deterministic_algorithms(False)
