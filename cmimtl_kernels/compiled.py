"""The compiled kernels, in the namespace `cmimtl`: what keeps them from running here, and limits.

Importing this module loads the libraries; the dispatcher picks the kernels for CPU or CUDA by the
tensors' device.
"""

import functools

import torch

from cmimtl_kernels import _library, registration

NAMESPACE = "cmimtl"

registration.define(NAMESPACE)
_NOT_LOADED = _library.load_libraries()

# The CPU kernels keep a state for each of their chunks. The CUDA backward kernel starts each of its
# chunks, of 8 steps, from a checkpoint; at dstate 16 those take 8 bytes for a step of a channel.
CPU_CHECKPOINT_EVERY, CUDA_CHECKPOINT_EVERY = 16, 8

# The least compute capability that the CUDA kernels are compiled for, and the bytes of shared
# memory that a block of the backward kernel takes for more than 128 states. The latter is
# kSharedOfManyStates of csrc/cuda/scan_backward_shared.cuh.
LEAST_CAPABILITY, SHARED_OF_MANY_STATES = (8, 0), 120 * 1024


def cpu_unavailable() -> str | None:
    return _NOT_LOADED["cpu"]


def cuda_unavailable() -> str | None:
    return _NOT_LOADED["cuda"] or _device_unfit()


@functools.cache
def _device_unfit() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        least, found = (".".join(map(str, x)) for x in (LEAST_CAPABILITY, capability))
        return f"runs on compute capability {least} or newer, the GPU has {found}"
    built = _library.record("cuda").get("architectures")
    if built and not _library.runs_on(capability, built):
        found = ".".join(map(str, capability))
        return f"was built for compute capability {built}, the GPU has {found}; build it here"
    return None


@functools.cache
def cuda_max_dstate() -> int:
    """The largest state size, which the shared memory of the device limits."""
    if not torch.cuda.is_available():
        return 256
    shared = torch.cuda.get_device_properties().shared_memory_per_block_optin
    return 256 if shared >= SHARED_OF_MANY_STATES else 128
