"""The compiled kernels, in the namespace `cmimtl`: what keeps them from running here, and limits.

Importing this module loads the libraries; the dispatcher picks the kernels for CPU or CUDA by the
tensors' device.
"""

import functools

import torch

from cmimtl_kernels import _library, registration

NAMESPACE = "cmimtl"

registration.define(NAMESPACE)


def _missing() -> dict[str, str | None]:
    """For each library why its kernels cannot be used here, or None."""
    reasons = dict(_library.load_libraries())
    for name, reason in reasons.items():
        if reason is None and not hasattr(_tells(name), "checkpoint_every"):
            reasons[name] = "was built from other sources than this package has; build it again"
    return reasons


def _tells(name: str):
    """What a library tells of itself: its constants stand in C++ alone."""
    return getattr(torch.ops, f"cmimtl_{name}")


_MISSING = _missing()


def checkpoint_every(name: str) -> int:
    """The number of steps between two states that a library's forward pass keeps for the backward
    pass; 0 where the library is missing.

    The CPU kernels keep a state for each of their chunks. The CUDA backward kernel starts each of
    its shorter chunks from a checkpoint; at dstate 16 those take 8 bytes for a step of a channel.
    """
    return 0 if _MISSING[name] else _tells(name).checkpoint_every()


def cpu_unavailable() -> str | None:
    return _MISSING["cpu"]


def cuda_unavailable() -> str | None:
    return _MISSING["cuda"] or _device_unfit()


@functools.cache
def _device_unfit() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    found, record = ".".join(map(str, capability)), _library.record("cuda")
    least = record.get("least capability")  # a library that was put here by hand has no record
    if least and capability < tuple(map(int, least.split("."))):
        return f"runs on compute capability {least} or newer, the GPU has {found}"
    built = record.get("architectures")
    if built and not _library.runs_on(capability, built):
        return f"was built for compute capability {built}, the GPU has {found}; build it here"
    return None


@functools.cache
def cuda_max_dstate() -> int | None:
    """The largest state size, which the shared memory of the device limits.

    None where there is no library or no device, so no kernel to limit it.
    """
    if _MISSING["cuda"] or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties()
    # torch's stub of the properties lacks this one.
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return _tells("cuda").most_states(shared)
