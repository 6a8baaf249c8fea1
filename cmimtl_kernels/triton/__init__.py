"""The ops in Triton, namespace `cmimtl_triton`: one source for NVIDIA and AMD devices.

Importing this package registers the kernels and compiles nothing; triton itself is imported by the
first call. math.py holds the functions of one element, lanes.py and quads.py what passes between
the threads of a warp, scan_forward.py, scan_backward.py (and scan_backward_inputs.py),
scan_segments.py and conv.py the kernels, plan.py how they are laid over a device, launch.py what
allocates and launches.
"""

import importlib

import torch

from cmimtl_kernels import registration

NAMESPACE = "cmimtl_triton"


def implementation(name: str):
    """The function behind an op of `registration.SCHEMAS`: launch.py's, imported when called."""

    def run(*args):
        return getattr(importlib.import_module("cmimtl_kernels.triton.launch"), name)(*args)

    return run


registration.define(NAMESPACE)
for _name in registration.SCHEMAS:
    torch.library.impl(f"{NAMESPACE}::{_name}", "cuda")(implementation(_name))
