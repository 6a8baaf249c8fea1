"""Checks and dtype rules that the compatibility modules share."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cmimtl_kernels.ops import dtype_name


def check_shape(op: str, name: str, x: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Raise a ValueError unless x is a real floating-point tensor of one of these shapes."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.is_complex():
        raise ValueError(
            f"{op}: {name} must be real, got {dtype_name(x.dtype)};"
            " complex states are not supported"
        )
    if not x.is_floating_point():
        raise ValueError(f"{op}: {name} must be of a float dtype, got {dtype_name(x.dtype)}")
    if tuple(x.shape) not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(x.shape)}")


def check_rank(op: str, name: str, x: Tensor, *layouts: str) -> None:
    """Raise a ValueError unless x is a tensor with the rank of one layout, like "(batch, dim)"."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dim() not in [layout.count(",") + 1 for layout in layouts]:
        wanted = " or ".join(layouts)
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(x.shape)}")


def check_indices(op: str, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless x is an integer tensor of this shape."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
        got = dtype_name(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{op}: {name} must be int32 or int64, got {got}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(x.shape)}")


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
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
