"""Which backend runs a call, and why not another: one predicate that both decides and explains.

A backend is a name, the op namespace that holds its kernels, and what it cannot do. `why_not` lists
every reason; `choose` takes the first backend of the device's order without one; `explain` shows
all.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cmimtl_kernels import _library, registration
from cmimtl_kernels import triton as triton_kernels

_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """One set of kernels.

    Attributes:
        name: what users pass as `backend=`.
        namespace: where the ops live, `torch.ops.<namespace>`; None for plain PyTorch.
        devices: device types that it runs on; None for every one.
        dtypes: dtypes of u that it takes.
        max_dstate: -> the largest state size in this process, or None.
        checkpoint_every: steps between two states kept for the backward pass.
        unavailable: why it cannot be used in this process at all, or None.
    """

    name: str
    namespace: str | None
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...]
    max_dstate: Callable[[], int | None]
    checkpoint_every: int
    unavailable: Callable[[], str | None]

    def why_not(self, device_type: str, dtype: torch.dtype, dstate: int) -> list[str]:
        """Every reason why it cannot run inputs like these; empty where it can."""
        reasons = []
        if reason := self.unavailable():
            reasons.append(reason)
        if self.devices is not None and device_type not in self.devices:
            reasons.append(f"runs on {' and '.join(self.devices)}, the inputs are on {device_type}")
        if dtype not in self.dtypes:
            names = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            reasons.append(f"takes {names}, u is {str(dtype).removeprefix('torch.')}")
        if (most := self.max_dstate()) is not None and dstate > most:
            reasons.append(f"takes dstate up to {most}, got {dstate}")
        return reasons


registration.define("cmimtl")
_NOT_LOADED = _library.load_libraries()


# What the CUDA kernels are compiled for at least, and the shared memory of a block of the backward
# kernel for more than 128 states: kSharedOfManyStates of csrc/cuda/scan_backward_shared.cuh.
_LEAST_CAPABILITY, _SHARED_OF_MANY_STATES = (8, 0), 120 * 1024


def _cuda_unavailable() -> str | None:
    return _NOT_LOADED["cuda"] or _device_unfit()


@functools.cache
def _device_unfit() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        least, found = (".".join(map(str, x)) for x in (_LEAST_CAPABILITY, capability))
        return f"runs on compute capability {least} or newer, the GPU has {found}"
    return None


@functools.cache
def _cuda_max_dstate() -> int:
    if not torch.cuda.is_available():
        return 256
    shared = torch.cuda.get_device_properties().shared_memory_per_block_optin
    return 256 if shared >= _SHARED_OF_MANY_STATES else 128


@functools.cache
def _triton_unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="cuda",
            namespace="cmimtl",
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            max_dstate=_cuda_max_dstate,
            # One chunk of the backward kernel, which starts each from a checkpoint: 8 bytes for a
            # step of a channel at dstate 16.
            checkpoint_every=8,
            unavailable=_cuda_unavailable,
        ),
        Backend(
            name="triton",
            namespace=triton_kernels.NAMESPACE,
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            max_dstate=lambda: 256,
            checkpoint_every=16,
            unavailable=_triton_unavailable,
        ),
        Backend(
            name="cpu",
            namespace="cmimtl",
            devices=("cpu",),
            dtypes=(*_HALF_AND_SINGLE, torch.float64),
            max_dstate=lambda: 1024,
            checkpoint_every=16,
            unavailable=lambda: _NOT_LOADED["cpu"],
        ),
        Backend(
            name="reference",
            namespace=None,
            devices=None,
            dtypes=(*_HALF_AND_SINGLE, torch.float64),
            max_dstate=lambda: None,
            checkpoint_every=0,
            unavailable=lambda: None,
        ),
    )
}

# What `auto` tries, best first. The reference is never among them: it is two orders of magnitude
# slower, so ending there is worth a warning.
_ORDER = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}


def auto(device_type: str, dtype: torch.dtype = torch.float32, dstate: int = 16) -> str:
    """The name of the backend that `backend="auto"` picks for inputs like these."""
    for name in _ORDER.get(device_type, ()):
        if not BACKENDS[name].why_not(device_type, dtype, dstate):
            return name
    return "reference"


def choose(op: str, backend: str, device_type: str, dtype: torch.dtype, dstate: int) -> Backend:
    """The backend that runs this call.

    Raises:
        ValueError: no backend has this name.
        NotImplementedError: the named backend cannot run these inputs; the message lists every
        reason.
    """
    if backend == "auto":
        name = auto(device_type, dtype, dstate)
        if name == "reference":
            _warn_slow(op, device_type, dtype, dstate)
        return BACKENDS[name]
    if backend not in BACKENDS:
        names = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"{op}: backend must be one of {names}, got {backend!r}")
    if reasons := BACKENDS[backend].why_not(device_type, dtype, dstate):
        raise NotImplementedError(
            f"{op}: backend {backend!r} cannot run this: {'; '.join(reasons)}"
        )
    return BACKENDS[backend]


def explain(u: torch.Tensor, dstate: int) -> dict[str, list[str]]:
    """Every backend with every reason why it cannot run u with this dstate; no reason: it can.

    Example:
        >>> explain(torch.zeros(1, 8, 4), dstate=16)["reference"]
        []
    """
    return {
        name: backend.why_not(u.device.type, u.dtype, dstate) for name, backend in BACKENDS.items()
    }


_WARNED: set[str] = set()


def _warn_slow(op: str, device_type: str, dtype: torch.dtype, dstate: int) -> None:
    reasons = "; ".join(
        f"{name}: {', '.join(BACKENDS[name].why_not(device_type, dtype, dstate))}"
        for name in _ORDER.get(device_type, ())
    )
    message = (
        f"{op}: no kernel runs this on {device_type} ({reasons or 'none exists for it'}); using the"
        " slow PyTorch reference. `python -m cmimtl_kernels` shows what was built."
    )
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
