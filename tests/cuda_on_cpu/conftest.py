"""The CUDA kernels on CPU tensors, through the public ops: `backend="cuda"` takes them.

The kernels run under the build that CMIMTL_CUDA_ON_CPU names, "plain" unless set. A sanitizer must
be the first library of its process, so runs.py starts one and hands it the library's path in
CMIMTL_CUDA_ON_CPU_LIBRARY.

Each build runs what CI can afford: the plain one all but the longest cases of the matrix, the
sanitizers a few that together reach every branch. With CMIMTL_WHOLE_MATRIX=1 each runs all.
"""

import ctypes
import dataclasses
import os
from pathlib import Path

import pytest
import torch

from cmimtl_kernels import backends, registration
from tests.cuda_on_cpu import build

NAMESPACE = "cmimtl_cuda_on_cpu"
BUILD = build.BUILDS[os.environ.get("CMIMTL_CUDA_ON_CPU", "plain")]


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The kernels, registered; `simt_set_seed` draws another schedule, `simt_set_warps_to_fill` has
    the launches planned for a machine that so many warps fill."""
    given = os.environ.get("CMIMTL_CUDA_ON_CPU_LIBRARY")
    path = Path(given) if given else build.kernels(BUILD)
    registration.define(NAMESPACE)
    torch.ops.load_library(str(path))
    kernels = ctypes.CDLL(str(path))
    kernels.simt_set_warps_to_fill.argtypes = [ctypes.c_int64]
    return kernels


@pytest.fixture
def cuda_on_cpu(library, monkeypatch) -> ctypes.CDLL:
    """`backend="cuda"` runs on CPU tensors, whose memory starts as NaN, under a schedule of its
    own."""
    told = torch.ops.cmimtl_cuda_on_cpu_library
    backend = dataclasses.replace(
        backends.BACKENDS["cuda"],
        namespace=NAMESPACE,
        devices=("cpu",),
        unavailable=lambda: None,
        checkpoint_every=told.checkpoint_every(),
        max_dstate=lambda: told.most_states(2**31),
    )
    monkeypatch.setitem(backends.BACKENDS, "cuda", backend)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    torch.set_num_threads(1)  # the tensors are small; root's conftest.py sets it back
    library.simt_set_seed(1)
    library.simt_set_warps_to_fill(0)
    yield library
    torch.use_deterministic_algorithms(False)
