"""The ops in Triton, in the namespace `cmimtl_triton`: one source for NVIDIA and AMD devices.

Importing this package registers the kernels and compiles nothing; the first call imports triton.

    math.py                       functions of one element
    lanes.py, quads.py            the states in the lanes of a warp, and sums over lanes
    streams.py                    the two streams, pair by pair
    scan_forward.py               the forward scan
    scan_backward.py, scan_backward_inputs.py      the backward scan
    scan_segments.py              the scans split over time
    conv.py                       the convolution
    plan.py                       how the kernels are laid over a device
    checks.py                     what an op is given
    launch.py                     allocation and launches

In kernels a prefix says what a name is: `p_` a pointer, `b_` a block of values, `o_` offsets, `m_`
a mask, `i_` an index that the program has, `s_` a stride. A tensor itself has no prefix.
"""

import importlib

import torch

from cmimtl_kernels import registration
from cmimtl_kernels.triton.checks import check

NAMESPACE = "cmimtl_triton"
CHECKPOINT_EVERY = 16  # steps between two states kept for the backward pass


def implementation(name: str):
    """The implementation of an op of `registration.SCHEMAS`; a call imports it from launch.py."""

    def run(*args):
        check(name, args)
        return getattr(importlib.import_module("cmimtl_kernels.triton.launch"), name)(*args)

    return run


registration.define(NAMESPACE)
for _name in registration.SCHEMAS:
    torch.library.impl(f"{NAMESPACE}::{_name}", "cuda")(implementation(_name))
