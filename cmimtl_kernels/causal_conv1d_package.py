"""The convolution by the package causal_conv1d, in the namespace `cmimtl_causal_conv1d`.

The package is optional, and the first call imports it. Its kernels take x as (batch, dim, length)
in one of two layouts: channels first and contiguous, or channels last with dim and all strides
multiples of 8. Both must be aligned to 16 bytes. An x or a gradient in another layout is copied
here.

The package's backward pass adds up dweight and dbias with atomics, and so in any order, unless
`torch.use_deterministic_algorithms(True)` is set.
"""

import torch
from torch import Tensor

from cmimtl_kernels import registration

NAMESPACE = "cmimtl_causal_conv1d"
OPS = ("causal_conv1d",)
_UNIT = 8  # channels-last strides are multiples of this many elements
_ALIGNMENT = 16  # bytes


def cannot(width: int, lengths: bool, reverse: bool) -> list[str]:
    """Every reason why the package cannot run a convolution."""
    reasons = []
    if not 2 <= width <= 4:
        reasons.append(f"takes a width of 2, 3 or 4, got {width}")
    if lengths:
        reasons.append("takes no lengths")
    if reverse:
        reasons.append("has no reverse")
    return reasons


def causal_conv1d_fwd(
    x: Tensor,  # (batch, length, dim)
    weight: Tensor,  # (dim, width)
    bias: Tensor | None,  # (dim,)
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
) -> Tensor:
    _check("causal_conv1d_fwd", weight, lengths, reverse)
    if x.numel() == 0:
        return torch.empty_like(x)
    from causal_conv1d import causal_conv1d_fn

    out = causal_conv1d_fn(
        _laid_out(x, _channels_last(x)),
        weight.contiguous(),
        bias,
        activation="silu" if silu else None,
    )
    return registration.laid_out(x, out.transpose(1, 2))


def causal_conv1d_bwd(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check("causal_conv1d_bwd", weight, lengths, reverse)
    weight = weight.contiguous()
    nothing = weight.new_empty(0)
    if x.numel() == 0:
        dbias = nothing if bias is None else torch.zeros_like(bias)
        return torch.empty_like(x), torch.zeros_like(weight), dbias
    # The package's own autograd function calls this function, and so does mamba_ssm.
    from causal_conv1d.cpp_functions import causal_conv1d_bwd_function

    last = _channels_last(x)
    dx, dweight, dbias, _ = causal_conv1d_bwd_function(
        _laid_out(x, last),
        weight,
        None if bias is None else bias.contiguous(),
        _laid_out(dout, last),
        None,  # seq_idx
        None,  # initial_states
        None,  # dfinal_states
        None,  # dx
        False,  # return_dinitial_states
        silu,
    )
    return registration.laid_out(x, dx.transpose(1, 2)), dweight, nothing if bias is None else dbias


def _check(op: str, weight: Tensor, lengths: Tensor | None, reverse: bool) -> None:
    if reasons := cannot(weight.shape[1], lengths is not None, reverse):
        raise NotImplementedError(f"{op}: the package cannot run this: {'; '.join(reasons)}")


def _channels_last(x: Tensor) -> bool:
    """Whether the package gets x, (batch, length, dim), channels last or else channels first."""
    channels_first = x.shape[1] > 1 and x.transpose(1, 2).is_contiguous()
    return x.shape[2] % _UNIT == 0 and not channels_first


def _laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """x, (batch, length, dim), as (batch, dim, length) in a layout that the package takes.

    It is copied where it lies otherwise. The stride of a dimension of size 1 matters too, because
    the package tells the layouts apart by the strides.
    """
    aligned = x.data_ptr() % _ALIGNMENT == 0
    if channels_last:
        batch, step, channel = x.stride()
        fits = channel == 1 and step >= x.shape[2] and step % _UNIT == batch % _UNIT == 0
        x = x if aligned and fits else x.clone(memory_format=torch.contiguous_format)
        return x.transpose(1, 2)
    x = x.transpose(1, 2)
    fits = x.is_contiguous() and x.stride(2) == 1
    return x if aligned and fits else x.clone(memory_format=torch.contiguous_format)


registration.define(NAMESPACE, OPS)
for _function in (causal_conv1d_fwd, causal_conv1d_bwd):
    torch.library.impl(f"{NAMESPACE}::{_function.__name__}", "cuda")(_function)
