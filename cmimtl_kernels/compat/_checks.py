"""Checks and dtype rules that the compatibility modules share."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cmimtl_kernels.checks import FLOATS, autocast_dtype, check_tensor, dtype_name


def check_shape(op: str, name: str, x: Any, *shapes: tuple[int, ...]) -> None:
    """Raise a ValueError unless x is a real floating-point tensor of one of these shapes."""
    check_tensor(op, name, x)
    if x.is_complex():
        raise ValueError(
            f"{op}: {name} must be real, got {dtype_name(x.dtype)};"
            " complex states are not supported"
        )
    if x.dtype not in FLOATS:
        raise ValueError(f"{op}: {name} must be of a float dtype, got {dtype_name(x.dtype)}")
    if tuple(x.shape) not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(x.shape)}")


def check_rank(op: str, name: str, x: Tensor, *layouts: str) -> None:
    """Raise a ValueError unless x is a tensor with the rank of one layout, like "(batch, dim)"."""
    check_tensor(op, name, x)
    if x.dim() not in [layout.count(",") + 1 for layout in layouts]:
        wanted = " or ".join(layouts)
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(x.shape)}")


def check_indices(op: str, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless x is an integer tensor of this shape."""
    check_tensor(op, name, x)
    if x.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op}: {name} must be int32 or int64, got {dtype_name(x.dtype)}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(x.shape)}")


def check_devices(op: str, like: Tensor, **others: Tensor | None) -> None:
    """Raise a ValueError unless all tensors are on the device of `like`; None is skipped."""
    device = like.device
    for name, x in others.items():
        if x is not None and x.device != device:
            raise ValueError(f"{op}: {name} must be on {device}, got {x.device}")


def common_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that holds every tensor without loss; None is skipped."""
    dtypes = [x.dtype for x in tensors if x is not None]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        if other != dtype:
            dtype = torch.promote_types(dtype, other)
    return dtype


def without_autocast(device_type: str) -> AbstractContextManager:
    """A context without autocast: in the packages that these modules stand in for, autocast
    changes the projections and not the scan."""
    if autocast_dtype(device_type) is not None:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
