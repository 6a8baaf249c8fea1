"""The checks that the public functions and the blocks share.

They run at every call, so each reads only a few attributes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmimtl_kernels.registration import inside_transform

Lengths = Tensor | Sequence[int]  # also a numpy array

_DENSE = torch.strided
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast gives the streams on this kind of device; None where it is off."""
    # The meta device has no autocast, and asking for it raises an error.
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def autocast(op: str, names: Sequence[str], streams: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the streams to the autocast dtype where autocast is on for the device of the first.

    Where the first is float64, all are left alone. Each result is None where its argument is.
    """
    dtype = autocast_dtype(streams[0].device.type)
    if dtype is None or streams[0].dtype == torch.float64:
        return streams
    for name, x in zip(names, streams, strict=True):
        if x is not None:  # a cast would make a number of anything
            check_float(op, name, x)
    return tuple(None if x is None else x.to(dtype) for x in streams)


def check_lengths(
    op: str, given: Lengths | None, like: Tensor, length: int, name: str = "lengths"
) -> Tensor | None:
    """Check lengths and return them as int64 on the device of `like`.

    Only values on the CPU are checked: reading them on a GPU would make the CPU wait for it.
    Kernels clamp them to [0, length].
    """
    if given is None:
        return None
    try:
        lengths = given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{op}: {name} must be integers, got {type(given).__name__}") from None
    check_tensor(op, name, lengths)
    if lengths.dtype not in _INTEGERS:
        raise ValueError(f"{op}: {name} must be integers, got {dtype_name(lengths.dtype)}")
    if tuple(lengths.shape) != (like.shape[0],):
        raise ValueError(
            f"{op}: {name} must have shape (batch={like.shape[0]},), got {tuple(lengths.shape)}"
        )
    if lengths is given and lengths.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {lengths.device}")
    lengths = lengths.to(torch.int64)  # uint16 and wider have no minimum
    if _holds_values(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > length:
            worst = low if low < 0 else high
            raise ValueError(f"{op}: {name} must be in [0, {length}], got {worst}")
    return lengths if isinstance(given, Tensor) else lengths.to(like.device)


def _holds_values(x: Tensor) -> bool:
    """Whether x has values, and they can be read now: it is no stand-in, and nothing is traced."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not inside_transform()
    )


def check_flag(op: str, name: str, x: bool) -> None:
    if not isinstance(x, bool):
        raise ValueError(f"{op}: {name} must be True or False, got {x!r}")


def check_tensor(op: str, name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.layout is not _DENSE:
        raise ValueError(f"{op}: {name} must be dense, got {str(x.layout).removeprefix('torch.')}")


def check_float(op: str, name: str, x: Any) -> None:
    check_tensor(op, name, x)
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} must be float32, bfloat16, float16 or float64, got {dtype_name(x.dtype)}"
        )


def check_rank(op: str, name: str, x: Tensor, rank: int, shape: str) -> None:
    if x.is_nested:
        raise ValueError(
            f"{op}: {name} must be dense, got a nested tensor; pad it and give lengths"
        )
    if x.dim() != rank:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(x.shape)}")


def check_like(
    op: str,
    name: str,
    x: Any,
    like: Tensor,
    shape: tuple[int, ...],
    to: torch.dtype | None = None,
) -> Tensor:
    """Check shape, device and dtype of x; with `to`, any float dtype is taken and converted."""
    check_tensor(op, name, x)
    if x.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {x.device}")
    if x.dtype == (like.dtype if to is None else to):
        return x  # `to` takes 2 us a call, as much as all checks of this function together
    if to is None:
        raise ValueError(
            f"{op}: {name} must be {dtype_name(like.dtype)}, got {dtype_name(x.dtype)}"
        )
    check_float(op, name, x)
    return x.to(to)


def check_optional(
    op: str,
    name: str,
    x: Tensor | None,
    like: Tensor,
    shape: tuple[int, ...],
    to: torch.dtype | None = None,
) -> Tensor | None:
    return None if x is None else check_like(op, name, x, like, shape, to)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
