"""The mathematics in plain PyTorch: slow, obvious and right. Every backend is tested against it.

This file imports only torch and calls no kernel. It computes in the accumulation dtype: float64 for
float64 inputs, float32 for all others. So a call with `.double()` inputs gives the values that the
tolerances are measured against. Arguments are not checked here; `cmimtl_kernels.ops` checks them
once for all backends.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state and of the arithmetic for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def valid_steps(lengths: Tensor | None, batch: int, length: int, device=None) -> Tensor:
    """(batch, length) bool, True where step t of sample b is inside `lengths[b]`."""
    if lengths is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def selective_scan(
    u: Tensor,  # (batch, length, dim)
    delta: Tensor,  # (batch, length, dim)
    A: Tensor,  # (dim, dstate)
    B: Tensor,  # (batch, length, dstate) or (batch, length, ngroups, dstate)
    C: Tensor,  # as B
    D: Tensor | None = None,  # (dim,)
    z: Tensor | None = None,  # (batch, length, dim)
    delta_bias: Tensor | None = None,  # (dim,)
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,  # (batch, dim, dstate)
    lengths: Tensor | None = None,  # (batch,)
    reverse: bool = False,
    return_last_state: bool = False,
):
    """Run the recurrence of `cmimtl_kernels.selective_scan`, which has the same arguments.

    Source: Gu & Dao 2023, algorithm 2 and section 3.3.
    """
    batch, length, dim = u.shape
    dstate = A.shape[1]
    dtype = u.dtype
    acc = accumulation_dtype(dtype)

    # Padded steps may hold anything, NaN included. They are replaced before any arithmetic, so that
    # neither their values nor their gradients can reach a valid step.
    valid = valid_steps(lengths, batch, length, u.device)  # (batch, length)
    u, delta, B, C = (_keep(valid, x.to(acc)) for x in (u, delta, B, C))
    A = A.to(acc)

    if delta_bias is not None:
        delta = _keep(valid, delta + delta_bias.to(acc))
    if delta_softplus:
        delta = _keep(valid, _softplus(delta))

    state = u.new_zeros(batch, dim, dstate) if initial_state is None else initial_state.to(acc)
    # unbind, and not x[:, t]: the backward pass of indexing writes a gradient of the size of x at
    # every step.
    steps = list(zip(*(x.unbind(1) for x in (valid, u, delta, B, C)), strict=True))
    ys: dict[int, Tensor] = {}  # step -> (batch, dim)
    for t in reversed(range(length)) if reverse else range(length):
        valid_t, u_t, delta_t, B_t, C_t = steps[t]
        # A padded step leaves the state as it is, also where A is infinite and 0 * A is NaN.
        decay = torch.exp(_keep(valid_t, delta_t[..., None] * A))  # (batch, dim, dstate)
        state = decay * state + (delta_t * u_t)[..., None] * _per_channel(B_t, dim)
        ys[t] = (_per_channel(C_t, dim) * state).sum(-1)
    out = torch.stack([ys[t] for t in range(length)], 1) if length else u
    if D is not None:
        out = out + D.to(acc) * u
    if z is not None:
        out = out * F.silu(_keep(valid, z.to(acc)))
    out = _keep(valid, out).to(dtype)
    return (out, state) if return_last_state else out


def cross_selective_scan(
    v: Tensor,  # (batch, length, dim)
    t: Tensor,  # (batch, length, dim)
    delta: Tensor,  # (batch, 2 * length, dim)
    A: Tensor,  # (dim, dstate)
    B: Tensor,  # (batch, 2 * length, dstate) or (batch, 2 * length, ngroups, dstate)
    C: Tensor,  # as B
    D: Tensor | None = None,  # (dim,)
    z_v: Tensor | None = None,  # (batch, length, dim)
    z_t: Tensor | None = None,  # (batch, length, dim)
    delta_bias: Tensor | None = None,  # (dim,)
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,  # (batch, dim, dstate)
    lengths: Tensor | None = None,  # (batch,), counted in steps of v and t
    reverse: bool = False,
    return_last_state: bool = False,
):
    """Run the scan of `cmimtl_kernels.cross_selective_scan`, with the interleaved sequence stored.

    The arguments are the same.
    """
    batch, length, dim = v.shape
    dtype = v.dtype
    acc = accumulation_dtype(dtype)
    valid = valid_steps(lengths, batch, length, v.device)
    v, t = (_keep(valid, x.to(acc)) for x in (v, t))
    out, last_state = selective_scan(
        interleave(v, t),
        delta.to(acc),
        A,
        B,
        C,
        D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        lengths=None if lengths is None else 2 * lengths,
        reverse=reverse,
        return_last_state=True,
    )
    out_v, out_t = out.view(batch, length, 2, dim).unbind(2)
    if z_v is not None and z_t is not None:
        gate = F.silu(_keep(valid, z_v.to(acc)) * _keep(valid, z_t.to(acc)))
        out_v, out_t = out_v * gate, out_t * gate
    out_v, out_t = out_v.to(dtype), out_t.to(dtype)
    return (out_v, out_t, last_state) if return_last_state else (out_v, out_t)


def interleave(v: Tensor, t: Tensor) -> Tensor:
    """The products p = v * t and the sums s = v + t in turn: p_0, s_0, p_1, s_1, …

    v and t, (batch, length, dim) -> (batch, 2 * length, dim)
    """
    batch, length, dim = v.shape
    return torch.stack((v * t, v + t), dim=2).reshape(batch, 2 * length, dim)


def causal_conv1d(
    x: Tensor,  # (batch, length, dim)
    weight: Tensor,  # (dim, width)
    bias: Tensor | None = None,  # (dim,)
    *,
    activation: str | None = None,  # None or "silu"
    lengths: Tensor | None = None,  # (batch,)
    reverse: bool = False,
):
    """Depthwise convolution over the steps t - width + 1 … t; with `reverse`, t … t + width - 1."""
    batch, length, dim = x.shape
    width = weight.shape[1]
    dtype = x.dtype
    acc = accumulation_dtype(dtype)
    valid = valid_steps(lengths, batch, length, x.device)
    pad = (0, width - 1) if reverse else (width - 1, 0)
    x = F.pad(_keep(valid, x.to(acc)), (0, 0, *pad))  # (batch, length + width - 1, dim)
    out = x.new_zeros(batch, length, dim)
    for k, weight_k in enumerate(weight.to(acc).unbind(1)):
        first = width - 1 - k if reverse else k
        # What a padded output would read has no part in it, nor in the gradients: its gradient is
        # 0, and 0 times infinity would be NaN.
        out = out + weight_k * _keep(valid, x[:, first : first + length])
    if bias is not None:
        out = out + bias.to(acc)
    out = _keep(valid, out)
    if activation == "silu":
        out = F.silu(out)  # which keeps 0
    return out.to(dtype)


def run(op: str, tensors: tuple[Tensor | None, ...], *options: bool):
    """Run one of the functions above with the arguments of its op, as a backend does.

    tensors and options are in the order of the op's schema in registration.py. A scan gives its
    last state too.
    """
    function = globals()[op]
    *inputs, lengths = tensors
    if op == "causal_conv1d":
        silu, reverse = options
        activation = "silu" if silu else None
        return function(*inputs, activation=activation, lengths=lengths, reverse=reverse)
    *inputs, initial_state = inputs
    delta_softplus, reverse = options
    return function(
        *inputs,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        lengths=lengths,
        reverse=reverse,
        return_last_state=True,
    )


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) at any x. F.softplus returns x itself above a threshold; this does not."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _per_channel(x: Tensor, dim: int) -> Tensor:
    """Give each channel the row of its group: one step of B or C, for every channel.

    (batch, dstate) or (batch, ngroups, dstate) -> (batch, dim, dstate)
    """
    if x.dim() == 2:
        return x[:, None].expand(-1, dim, -1)
    return x.repeat_interleave(dim // x.shape[1], dim=1)


def _keep(valid: Tensor, x: Tensor) -> Tensor:
    """x where `valid`, and 0 elsewhere, where the gradient is 0 too, even if x is NaN there."""
    return torch.where(
        valid.reshape(valid.shape + (1,) * (x.dim() - valid.dim())), x, x.new_zeros(())
    )
