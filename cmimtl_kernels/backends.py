"""Which backend runs a call, and why not another: one predicate that both decides and explains.

A backend is a name, the op namespace that holds its kernels, and what it cannot do. `why_not` lists
every reason against a backend. `choose` takes the first backend, in the order of the device, that
has no reason against it. `explain` shows the reasons of all.
"""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cmimtl_kernels import causal_conv1d_package, compiled, reference, registration
from cmimtl_kernels import triton as triton_kernels

_HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """What the choice of a backend depends on.

    Attributes:
        op: the public function that is called.
        device_type, dtype: device and dtype of its first argument, u, v or x.
        dstate: the state size of a scan.
        width: the width of a convolution.
        lengths: whether the samples have lengths of their own.
        reverse: whether the call goes back in time.
    """

    op: str
    device_type: str
    dtype: torch.dtype
    dstate: int = 0
    width: int = 0
    lengths: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class Backend:
    """One set of kernels.

    Attributes:
        name: what users pass as `backend=`.
        namespace: where its ops live, `torch.ops.<namespace>`; None for plain PyTorch.
        devices: the device types that it runs on; None for every device.
        dtypes: the dtypes of u, v or x that it takes.
        max_dstate: gives the largest state size in this process, or None for no limit.
        checkpoint_every: the number of steps between two states kept for the backward pass; 0 for
            a backend that keeps none, or that is not built.
        unavailable: gives the reason why it cannot be used in this process at all, or None.
        ops: the public functions that it has kernels for.
        cannot: gives further reasons against a call of one of these functions.
    """

    name: str
    namespace: str | None
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...]
    max_dstate: Callable[[], int | None]
    checkpoint_every: int
    unavailable: Callable[[], str | None]
    ops: tuple[str, ...] = registration.OPS
    cannot: Callable[[Call], list[str]] = lambda call: []

    def why_not(self, call: Call) -> list[str]:
        """Every reason why this backend cannot run a call; empty where it can."""
        if call.op not in self.ops:
            return [f"implements only {' and '.join(self.ops)}"]
        reasons = []
        if reason := self.unavailable():
            reasons.append(reason)
        if self.devices is not None and call.device_type not in self.devices:
            devices = " and ".join(self.devices)
            reasons.append(f"runs on {devices}, the inputs are on {call.device_type}")
        if call.dtype not in self.dtypes:
            names = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            dtype = str(call.dtype).removeprefix("torch.")
            reasons.append(f"takes {names}, the inputs are {dtype}")
        if (most := self.max_dstate()) is not None and call.dstate > most:
            reasons.append(f"takes dstate up to {most}, got {call.dstate}")
        return reasons + self.cannot(call)

    def run(self, op: str, tensors: tuple[torch.Tensor | None, ...], *options: bool):
        """Run an op on arguments that were checked.

        Args:
            op: one of `ops`.
            tensors, options: in the order of the op's schema in registration.py, without
                checkpoint_every.
        Returns:
            the outputs of the schema, without the checkpoints.
        """
        if self.namespace is None:
            return reference.run(op, tensors, *options)
        return registration.run(self.namespace, op, tensors, options, self.checkpoint_every)


@functools.cache
def _triton_unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"


@functools.cache
def _package_unavailable() -> str | None:
    if importlib.util.find_spec("causal_conv1d") is None:
        return "causal_conv1d is not installed"
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        importlib.import_module("causal_conv1d.cpp_functions")
    except ImportError as error:  # it is older than 1.5.3, or was built against another torch
        return f"causal_conv1d is installed, but cannot be imported: {error}"
    return None


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="cuda",
            namespace=compiled.NAMESPACE,
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            max_dstate=compiled.cuda_max_dstate,
            checkpoint_every=compiled.checkpoint_every("cuda"),
            unavailable=compiled.cuda_unavailable,
        ),
        Backend(
            name="triton",
            namespace=triton_kernels.NAMESPACE,
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            max_dstate=lambda: 256,
            checkpoint_every=triton_kernels.CHECKPOINT_EVERY,
            unavailable=_triton_unavailable,
        ),
        Backend(
            name="causal_conv1d",
            namespace=causal_conv1d_package.NAMESPACE,
            devices=("cuda",),
            dtypes=_HALF_AND_SINGLE,
            max_dstate=lambda: None,
            checkpoint_every=0,
            unavailable=_package_unavailable,
            ops=causal_conv1d_package.OPS,
            cannot=lambda call: causal_conv1d_package.cannot(
                call.width, call.lengths, call.reverse
            ),
        ),
        Backend(
            name="cpu",
            namespace=compiled.NAMESPACE,
            devices=("cpu",),
            dtypes=(*_HALF_AND_SINGLE, torch.float64),
            max_dstate=lambda: 1024,
            checkpoint_every=compiled.checkpoint_every("cpu"),
            unavailable=compiled.cpu_unavailable,
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

# On the meta device nothing is computed. The fake kernels give the results' shapes and strides, and
# they are the same for all backends.
_META = Backend(
    name="meta",
    namespace=compiled.NAMESPACE,
    devices=("meta",),
    dtypes=(*_HALF_AND_SINGLE, torch.float64),
    max_dstate=lambda: None,
    checkpoint_every=64,
    unavailable=lambda: None,
)

# What `auto` tries, best first. The package causal_conv1d comes after our own kernels, because they
# give the same bits on every run. The reference is not in the list: it is two orders of magnitude
# slower, so a call that ends there gives a warning.
_ORDER = {"cuda": ("cuda", "triton", "causal_conv1d"), "cpu": ("cpu",)}


def auto(call: Call) -> str:
    """The name of the backend that `backend="auto"` picks for a call."""
    for name in _ORDER.get(call.device_type, ()):
        if not BACKENDS[name].why_not(call):
            return name
    return "reference"


def choose(backend: str, call: Call) -> Backend:
    """The backend that runs a call; on the meta device any name stands for the fake kernels.

    Raises:
        ValueError: no backend has this name.
        NotImplementedError: the named backend cannot run this call; the message lists every
            reason.
    """
    if not isinstance(backend, str) or (backend != "auto" and backend not in BACKENDS):
        names = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"{call.op}: backend must be one of {names}, got {backend!r}")
    if call.device_type == "meta":
        return _META
    if backend == "auto":
        name = auto(call)
        if name == "reference":
            _warn_slow(call)
        return BACKENDS[name]
    if reasons := BACKENDS[backend].why_not(call):
        raise NotImplementedError(
            f"{call.op}: backend {backend!r} cannot run this: {'; '.join(reasons)}"
        )
    return BACKENDS[backend]


def explain(call: Call) -> dict[str, list[str]]:
    """Every backend with every reason why it cannot run a call; without a reason, it can.

    Examples:
        >>> explain(Call("selective_scan", "cpu", torch.float32, dstate=16))["causal_conv1d"]
        ['implements only causal_conv1d']
    """
    return {name: backend.why_not(call) for name, backend in BACKENDS.items()}


_WARNED: set[str] = set()


def _warn_slow(call: Call) -> None:
    reasons = "; ".join(
        f"{name}: {', '.join(BACKENDS[name].why_not(call))}"
        for name in _ORDER.get(call.device_type, ())
    )
    message = (
        f"{call.op}: no kernel runs this on {call.device_type} ({reasons or 'none exists for it'});"
        " using the slow PyTorch reference. `python -m cmimtl_kernels` shows what was built."
    )
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
