"""`causal_conv1d_fn` and `causal_conv1d_update` of the package causal_conv1d, version 1.5.

Signatures, layouts, defaults and the dtypes of the results are that package's. The implementation
is this library's own: it calls `cmimtl_kernels.causal_conv1d`, on every device. It also takes what
the package refuses: any width, any number of channels, any strides in every mode, and state tensors
of another dtype than x.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from cmimtl_kernels import ops
from cmimtl_kernels.compat._checks import (
    check_devices,
    check_indices,
    check_rank,
    check_shape,
    without_autocast,
)
from cmimtl_kernels.reference import accumulation_dtype


@overload
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: Literal[False] = ...,
    final_states_out: Tensor | None = ...,
    activation: str | None = ...,
) -> Tensor: ...


@overload
def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: bool = ...,
    final_states_out: Tensor | None = ...,
    activation: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution with bias and activation, channels first.

    Args:
        x: (batch, dim, length), any strides.
        weight: (dim, width), any float dtype.
        bias: (dim,).
        seq_idx: (batch, length) int32 or int64: which packed sequence each step belongs to. Steps
            of another sequence count as 0, and where it is negative the output is 0.
        initial_states: (batch, dim, width - 1), the steps before the first; zeros where None.
            Differentiable.
        return_final_states: also return the last width - 1 steps, to go on from.
        final_states_out: (batch, dim, width - 1), where to write them.
        activation: None, "silu" or "swish", which are the same.
    Returns:
        out: (batch, dim, length), dtype and, where dense, strides of x.
        final_states: (batch, dim, width - 1), dtype of x; only with return_final_states; this is
            final_states_out where that is given. Differentiable.
    Raises:
        ValueError: a shape, dtype or combination does not fit; the message says what it got.
    Memory: for the backward pass it keeps its inputs. With seq_idx it runs in plain PyTorch, and
        also keeps `width` products of the size of x.
    Autocast: has no influence.
    """
    op = "causal_conv1d_fn"
    check_rank(op, "x", x, "(batch, dim, length)")
    batch, dim, length = x.shape
    check_shape(op, "x", x, (batch, dim, length))
    _check_weights(op, x, weight, bias, activation)
    states = (batch, dim, weight.shape[1] - 1)
    if initial_states is not None:
        check_shape(op, "initial_states", initial_states, states)
    if final_states_out is not None:
        if not return_final_states:
            raise ValueError(
                f"{op}: final_states_out must be None without return_final_states, got a tensor"
            )
        check_shape(op, "final_states_out", final_states_out, states)
    if seq_idx is not None:
        check_indices(op, "seq_idx", seq_idx, (batch, length))
    check_devices(
        op, x, seq_idx=seq_idx, initial_states=initial_states, final_states_out=final_states_out
    )
    if seq_idx is not None:
        for name, given in (
            ("initial_states", initial_states is not None),
            ("return_final_states", return_final_states),
        ):
            if given:
                raise ValueError(
                    f"{op}: {name} must not be given together with seq_idx, got both; a state"
                    " belongs to one sequence"
                )
        return _convolve_packed(x, weight, bias, seq_idx, activation)

    out = _convolve(x, weight, bias, activation)
    width = weight.shape[1]
    if initial_states is not None and length:
        # Only the first width - 1 steps see the initial states, so only these are computed again.
        reach = min(width - 1, length)
        window = torch.cat((initial_states.to(x.dtype), x[..., :reach]), dim=-1)
        out[..., :reach] = _convolve(window, weight, bias, activation)[..., width - 1 :]
    if not return_final_states:
        return out
    before = x.new_zeros(states) if initial_states is None else initial_states.to(x.dtype)
    final_states = torch.cat((before, x[..., max(length - width + 1, 0) :]), dim=-1)
    final_states = final_states[..., final_states.shape[-1] - width + 1 :]
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return out, final_states


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve new steps, which follow those that conv_state holds, and update conv_state.

    Args:
        x: (batch, dim) or (batch, dim, length), the new steps.
        conv_state: (batch, dim, state_len) with state_len >= width - 1; written in place. Its last
            steps are the latest ones; with cache_seqlens it is a ring.
        weight, bias, activation: as in `causal_conv1d_fn`.
        cache_seqlens: (batch,) int32 or int64: how many steps came before x. Step i is kept at
            index i % state_len.
        conv_state_indices: (batch,) int32 or int64: conv_state has any number of rows, and sample b
            uses row conv_state_indices[b]. A negative one marks padding: output 0, no row changes.
    Returns:
        out: shape and dtype of x.
    Raises:
        ValueError: as `causal_conv1d_fn`.
    """
    op = "causal_conv1d_update"
    check_rank(op, "x", x, "(batch, dim)", "(batch, dim, length)")
    single = x.dim() == 2
    if single:
        x = x[..., None]
    batch, dim, length = x.shape
    check_shape(op, "x", x, (batch, dim, length))
    _check_weights(op, x, weight, bias, activation)
    check_rank(op, "conv_state", conv_state, "(batch, dim, state_len)")
    rows = conv_state.shape[0] if conv_state_indices is not None else batch
    reach, state_len = weight.shape[1] - 1, conv_state.shape[2]
    check_shape(op, "conv_state", conv_state, (rows, dim, state_len))
    if state_len < reach:
        raise ValueError(
            f"{op}: conv_state must hold at least width - 1 = {reach} steps, got {state_len}"
        )
    if cache_seqlens is not None:
        check_indices(op, "cache_seqlens", cache_seqlens, (batch,))
    if conv_state_indices is not None:
        check_indices(op, "conv_state_indices", conv_state_indices, (batch,))
    check_devices(
        op,
        x,
        conv_state=conv_state,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )
    state = conv_state
    if conv_state_indices is not None:
        state = conv_state.index_select(0, conv_state_indices.clamp(min=0))

    if cache_seqlens is None:
        steps = torch.cat((state, x.to(state.dtype)), dim=-1)  # (batch, dim, state_len + length)
        before = steps[..., state_len - reach : state_len]
        state_after = steps[..., length:]
    else:
        start = cache_seqlens[:, None].long()  # (batch, 1)
        at = (start + torch.arange(-reach, 0, device=x.device)) % state_len
        before = state.gather(2, at[:, None].expand(-1, dim, -1))
        # A ring shorter than x keeps only the last steps, so that no index is written twice.
        kept = min(length, state_len)
        at = (start + torch.arange(length - kept, length, device=x.device)) % state_len
        newest = x[..., length - kept :].to(state.dtype)
        state_after = state.scatter(2, at[:, None].expand(-1, dim, -1), newest)

    window = torch.cat((before.to(x.dtype), x), dim=-1)  # (batch, dim, width - 1 + length)
    out = _convolve(window, weight, bias, activation)[..., reach:]
    if conv_state_indices is None:
        conv_state.copy_(state_after)
    else:
        valid = conv_state_indices >= 0
        conv_state[conv_state_indices[valid]] = state_after[valid]
        out = torch.where(valid[:, None, None], out, out.new_zeros(()))
    return out[..., 0] if single else out


def _check_weights(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation) -> None:
    dim = x.shape[1]
    check_rank(op, "weight", weight, "(dim, width)")
    check_shape(op, "weight", weight, (dim, max(weight.shape[1], 1)))
    if bias is not None:
        check_shape(op, "bias", bias, (dim,))
    check_devices(op, x, weight=weight, bias=bias)
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{op}: activation must be None, 'silu' or 'swish', got {activation!r}")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Call the public op through views: channels first, (batch, dim, length), in and out."""
    with without_autocast(x.device.type):
        return ops.causal_conv1d(
            x.transpose(1, 2), weight, bias, activation="silu" if activation else None
        ).transpose(1, 2)


def _convolve_packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: str | None
) -> Tensor:
    """Convolve several sequences in a row, which seq_idx tells apart.

    The output is a sum over the steps that the convolution sees, those of other sequences masked.
    """
    acc = accumulation_dtype(x.dtype)
    length, width = x.shape[2], weight.shape[1]
    padded = F.pad(x.to(acc), (width - 1, 0))  # (batch, dim, width - 1 + length)
    owner = F.pad(seq_idx, (width - 1, 0), value=-1)
    zero = padded.new_zeros(())
    out = zero if bias is None else bias.to(acc)[:, None]
    for k, weight_k in enumerate(weight.to(acc).unbind(1)):
        same = (owner[:, k : k + length] == seq_idx)[:, None]  # (batch, 1, length)
        out = out + weight_k[:, None] * torch.where(same, padded[..., k : k + length], zero)
    out = F.silu(out) if activation else out
    return torch.where((seq_idx >= 0)[:, None], out, zero).to(x.dtype)
