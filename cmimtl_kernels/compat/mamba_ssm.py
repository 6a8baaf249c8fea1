"""`selective_scan_fn`, `selective_state_update` and `mamba_inner_fn` of the package mamba_ssm 2.

Signatures, layouts (channels first), defaults and the dtypes of the results are that package's. The
implementation is this library's own: it calls `cmimtl_kernels.selective_scan`, on every device.
Tensors are handed on as transposed views, and never copied to another layout. The functions of the
package causal_conv1d are here too, as the two packages are used together.

Where mamba_ssm's results are wrong, or where it fails, these functions are right:

- last_state is differentiable, and right with a constant B;
- in mamba_inner_fn, the biases of the projections get gradients of their shapes, and the weights of
  the norms get gradients;
- streams of several dtypes, as autocast makes them, are computed in the widest.

Examples:
    >>> u, delta = torch.randn(2, 4, 8), torch.rand(2, 4, 8)
    >>> A, B, C = -torch.rand(4, 16), torch.randn(2, 16, 8), torch.randn(2, 16, 8)
    >>> selective_scan_fn(u, delta, A, B, C, delta_softplus=True).shape
    torch.Size([2, 4, 8])
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from cmimtl_kernels import ops
from cmimtl_kernels.checks import check_flag
from cmimtl_kernels.compat._checks import (
    check_devices,
    check_indices,
    check_rank,
    check_shape,
    common_dtype,
    without_autocast,
)
from cmimtl_kernels.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from cmimtl_kernels.reference import accumulation_dtype

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "selective_scan_fn",
    "selective_state_update",
]

# A constant B or C gets a gradient, (batch, dim, dstate), from each step. The gradients of so many
# steps are held in memory before they are summed.
_CONSTANT_STEPS = 64


@overload
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
) -> Tensor: ...


@overload
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence of `cmimtl_kernels.selective_scan`, channels first.

    Args:
        u: (batch, dim, length), float32, bfloat16, float16 or float64; any strides.
        delta: (batch, dim, length).
        A: (dim, dstate), real.
        B: (dim, dstate), constant over time; (batch, dstate, length); or (batch, ngroups, dstate,
            length), where ngroups divides dim.
        C: as B, and not necessarily of its kind.
        D: (dim,).
        z: (batch, dim, length).
        delta_bias: (dim,).
        delta_softplus: whether softplus is applied to delta + delta_bias.
        return_last_state: also return the state after the last step.
    Returns:
        out: (batch, dim, length), dtype and, where dense, strides of u.
        last_state: (batch, dim, dstate), float32 (float64 where the computation is); only with
            return_last_state. Differentiable.
    Raises:
        ValueError: a shape or dtype does not fit, or a tensor is complex; the message says what it
            got.
    Numerics: as `cmimtl_kernels.selective_scan`. Where u, delta, B, C and z differ in dtype, they
        are computed in the common one (float32 for bfloat16 with float16).
    Autocast: has no influence, as in mamba_ssm.
    Memory: as `cmimtl_kernels.selective_scan`. The gradient of a constant B or C also takes batch *
        64 * dim * dstate elements while it is computed.
    """
    op = "selective_scan_fn"
    check_rank(op, "u", u, "(batch, dim, length)")
    batch, dim, length = u.shape
    check_shape(op, "u", u, (batch, dim, length))
    check_shape(op, "delta", delta, (batch, dim, length))
    dstate = _check_state_matrix(op, A, dim)
    B, C = _our_layout(op, "B", B, u, dstate), _our_layout(op, "C", C, u, dstate)
    for name, given, shape in (
        ("D", D, (dim,)),
        ("z", z, u.shape),
        ("delta_bias", delta_bias, (dim,)),
    ):
        if given is not None:
            check_shape(op, name, given, tuple(shape))
    check_devices(op, u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    check_flag(op, "delta_softplus", delta_softplus)

    constant = B.dim() == 2 or C.dim() == 2
    B, C = _same_groups(B, C, u)
    dtype = common_dtype(u, delta, B, C, z)
    x, step_size = (stream.transpose(1, 2).to(dtype) for stream in (u, delta))
    gate = None if z is None else z.transpose(1, 2).to(dtype)
    B, C = B.to(dtype), C.to(dtype)
    step = length
    if constant and torch.is_grad_enabled() and (B.requires_grad or C.requires_grad):
        step = _CONSTANT_STEPS
    parts: list[tuple[Tensor, Tensor]] = []  # out, (batch, dim, steps), and the state after them
    with without_autocast(u.device.type):
        for start in range(0, length, step) if length else (0,):
            part = slice(start, start + step)
            out, state = ops.selective_scan(
                x[:, part],
                step_size[:, part],
                A,
                B[:, part],
                C[:, part],
                D,
                None if gate is None else gate[:, part],
                delta_bias,
                delta_softplus=delta_softplus,
                initial_state=parts[-1][1] if parts else None,
                return_last_state=True,
            )
            parts.append((out.transpose(1, 2), state))
    outs = [out for out, _ in parts]
    out = (outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)).to(u.dtype)
    return (out, parts[-1][1]) if return_last_state else out


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Run one step of the scan, for generation, and update the state in place.

    Args:
        state: (batch, dim, dstate) or (batch, nheads, dim, dstate), any float dtype; written.
        x, dt: (batch, dim) or (batch, nheads, dim).
        A: (dim, dstate) or (nheads, dim, dstate).
        B, C: (batch, dstate) or (batch, ngroups, dstate), where ngroups divides nheads.
        D, dt_bias: (dim,) or (nheads, dim).
        z: as x.
        dt_softplus: whether softplus is applied to dt + dt_bias.
        state_batch_indices: (batch,) int32 or int64: state has any number of rows, and sample b
            uses row state_batch_indices[b]. A negative one marks padding: output 0, no row changes.
    Returns:
        out: shape and dtype of x.
    Raises:
        ValueError: as `selective_scan_fn`.
    Numerics: computed in float32 (float64 where x, dt, B, C or z is); the output is made from the
        state before it is rounded to its dtype.
    """
    op = "selective_state_update"
    check_rank(op, "state", state, "(batch, dim, dstate)", "(batch, nheads, dim, dstate)")
    heads = tuple(state.shape[1:-1])  # (dim,) or (nheads, dim)
    nheads, dim = heads if len(heads) == 2 else (1, *heads)
    check_rank(op, "x", x, "(batch, dim)" if len(heads) == 1 else "(batch, nheads, dim)")
    batch, dstate = x.shape[0], state.shape[-1]
    rows = state.shape[0] if state_batch_indices is not None else batch
    check_shape(op, "state", state, (rows, *heads, dstate))
    check_shape(op, "x", x, (batch, *heads))
    check_shape(op, "dt", dt, (batch, *heads))
    check_shape(op, "A", A, (*heads, dstate))
    for name, tensor, shape in (("D", D, heads), ("z", z, x.shape), ("dt_bias", dt_bias, heads)):
        if tensor is not None:
            check_shape(op, name, tensor, tuple(shape))
    B, C = (_check_step_map(op, name, m, batch, nheads, dstate) for name, m in (("B", B), ("C", C)))
    if B.shape != C.shape:
        raise ValueError(f"{op}: C must have shape {tuple(B.shape)}, got {tuple(C.shape)}")

    if state_batch_indices is not None:
        check_indices(op, "state_batch_indices", state_batch_indices, (batch,))
    check_devices(
        op, state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias,
        state_batch_indices=state_batch_indices,
    )  # fmt: skip
    check_flag(op, "dt_softplus", dt_softplus)

    before = state
    if state_batch_indices is not None:
        before = state.index_select(0, state_batch_indices.clamp(min=0))
    elif torch.is_grad_enabled():
        # The backward pass reads the state before the step, and that is overwritten below.
        before = state.clone()

    dtype = common_dtype(x, dt, B, C, z)
    channels = nheads * dim
    # The step is a scan of length 1. The heads, side by side, are its channels, and keep their
    # groups of B and C.
    u, delta = (s.reshape(batch, 1, channels).to(dtype) for s in (x, dt))
    gate = None if z is None else z.reshape(batch, 1, channels).to(dtype)
    with without_autocast(x.device.type):
        out, after = ops.selective_scan(
            u,
            delta,
            A.reshape(channels, dstate),
            B[:, None].to(dtype),
            C[:, None].to(dtype),
            None if D is None else D.reshape(channels),
            gate,
            None if dt_bias is None else dt_bias.reshape(channels),
            delta_softplus=dt_softplus,
            initial_state=before.reshape(batch, channels, dstate),
            return_last_state=True,
        )
    out, after = out.to(x.dtype).reshape(x.shape), after.reshape(before.shape)
    if state_batch_indices is None:
        state.copy_(after)
        return out
    valid = state_batch_indices >= 0
    state[state_batch_indices[valid]] = after[valid].to(state.dtype)
    return torch.where(valid.reshape(-1, *(1 for _ in heads)), out, out.new_zeros(()))


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Run a Mamba mixer after its first projection: convolution, projections, scan, projection.

        x, z      = the two halves of xz
        u         = silu(causal_conv1d(x))
        [r, B, C] = x_proj_weight u
        delta     = norm(delta_proj_weight r)
        B         = norm(B + B_proj_bias)
        C         = norm(C + C_proj_bias)
        out       = out_proj_weight scan(u, delta, A, B, C, D, z, delta_bias) + out_proj_bias

    Each norm is a root-mean-square norm with a weight of its own, and is left out where that weight
    is not given; so is each bias.

    Args:
        xz: (batch, 2 * dim, length).
        conv1d_weight: (dim, 1, width).
        conv1d_bias: (dim,).
        x_proj_weight: (dt_rank + 2 * dstate, dim); without the rows of B or C where they are given.
        delta_proj_weight: (dim, dt_rank).
        out_proj_weight: (d_model, dim).
        out_proj_bias: (d_model,).
        A: (dim, dstate), real.
        B, C: None, or what `selective_scan_fn` takes, which then replaces the projected one.
        D, delta_bias: (dim,).
        B_proj_bias, C_proj_bias: (dstate,), added to a projected B or C.
        delta_softplus: as in `selective_scan_fn`.
        checkpoint_lvl: 0 or 1. It has no influence: see Memory.
        b_rms_weight, c_rms_weight: (dstate,), for a projected B or C.
        dt_rms_weight: (dim,); this norm comes after delta_proj_weight.
        b_c_dt_rms_eps: epsilon of the three norms.
    Returns:
        (batch, length, d_model), in the dtype of the last projection.
    Raises:
        ValueError: a shape, dtype or option does not fit; the message says what it got.
    Memory: for the backward pass it keeps xz, u, delta, [r, B, C], the scan's output and its
        checkpoints. Of these, mamba_ssm computes u and delta again at its checkpoint_lvl 1.
    Autocast: the projections follow it; the convolution and the scan do not.
    """
    op = "mamba_inner_fn"
    check_rank(op, "xz", xz, "(batch, 2 * dim, length)")
    check_rank(op, "conv1d_weight", conv1d_weight, "(dim, 1, width)")
    dim, _, width = conv1d_weight.shape
    check_shape(op, "conv1d_weight", conv1d_weight, (dim, 1, width))
    check_shape(op, "xz", xz, (xz.shape[0], 2 * dim, xz.shape[2]))
    dstate = _check_state_matrix(op, A, dim)
    check_rank(op, "delta_proj_weight", delta_proj_weight, "(dim, dt_rank)")
    dt_rank = delta_proj_weight.shape[1]
    columns = [dt_rank, dstate if B is None else 0, dstate if C is None else 0]
    check_shape(op, "delta_proj_weight", delta_proj_weight, (dim, dt_rank))
    check_shape(op, "x_proj_weight", x_proj_weight, (sum(columns), dim))
    check_rank(op, "out_proj_weight", out_proj_weight, "(d_model, dim)")
    d_model = out_proj_weight.shape[0]
    check_shape(op, "out_proj_weight", out_proj_weight, (d_model, dim))
    x, z = xz.chunk(2, dim=1)
    for name, given in (("B", B), ("C", C)):
        if given is not None:
            _our_layout(op, name, given, x, dstate)
    vectors = dict(
        conv1d_bias=conv1d_bias, out_proj_bias=out_proj_bias, D=D, delta_bias=delta_bias,
        B_proj_bias=B_proj_bias, C_proj_bias=C_proj_bias, b_rms_weight=b_rms_weight,
        c_rms_weight=c_rms_weight, dt_rms_weight=dt_rms_weight,
    )  # fmt: skip
    sizes = dict(out_proj_bias=d_model)
    sizes |= dict.fromkeys(("B_proj_bias", "C_proj_bias", "b_rms_weight", "c_rms_weight"), dstate)
    for name, vector in vectors.items():
        if vector is not None:
            check_shape(op, name, vector, (sizes.get(name, dim),))
    check_devices(
        op, xz, conv1d_weight=conv1d_weight, x_proj_weight=x_proj_weight,
        delta_proj_weight=delta_proj_weight, out_proj_weight=out_proj_weight, A=A, B=B, C=C,
        **vectors,
    )  # fmt: skip
    check_flag(op, "delta_softplus", delta_softplus)
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"{op}: checkpoint_lvl must be 0 or 1, got {checkpoint_lvl!r}")

    u = causal_conv1d_fn(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    r, B_projected, C_projected = F.linear(u.transpose(1, 2), x_proj_weight).split(columns, dim=-1)
    delta = _norm(F.linear(r, delta_proj_weight), dt_rms_weight, b_c_dt_rms_eps)
    if B is None:
        B = _finish_map(B_projected, B_proj_bias, b_rms_weight, b_c_dt_rms_eps)
    if C is None:
        C = _finish_map(C_projected, C_proj_bias, c_rms_weight, b_c_dt_rms_eps)
    y = selective_scan_fn(
        u, delta.transpose(1, 2), A, B, C, D, z, delta_bias, delta_softplus=delta_softplus
    )
    bias = None if out_proj_bias is None else out_proj_bias.to(out_proj_weight.dtype)
    return F.linear(y.transpose(1, 2), out_proj_weight, bias)


def _finish_map(x: Tensor, bias: Tensor | None, rms_weight: Tensor | None, eps: float) -> Tensor:
    """Add the bias to a projected B or C and normalise it.

    (batch, length, dstate) -> (batch, dstate, length)
    """
    if bias is not None:
        x = x + bias.to(x.dtype)
    return _norm(x, rms_weight, eps).transpose(1, 2)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Apply a root-mean-square norm over the last axis, in float32 or wider.

    Without a weight, x itself is returned.
    """
    if weight is None:
        return x
    acc = accumulation_dtype(x.dtype)
    return F.rms_norm(x.to(acc), weight.shape, weight.to(acc), eps).to(x.dtype)


def _check_state_matrix(op: str, A: Tensor, dim: int) -> int:
    """Check A, (dim, dstate), and return dstate."""
    check_rank(op, "A", A, "(dim, dstate)")
    check_shape(op, "A", A, (dim, max(A.shape[1], 1)))
    return A.shape[1]


def _our_layout(op: str, name: str, x: Tensor, u: Tensor, dstate: int) -> Tensor:
    """Check B or C as it was given. -> (dim, dstate), or (batch, length, ngroups, dstate)."""
    batch, dim, length = u.shape
    layouts = "(dim, dstate)", "(batch, dstate, length)", "(batch, ngroups, dstate, length)"
    check_rank(op, name, x, *layouts)
    if x.dim() == 2:
        check_shape(op, name, x, (dim, dstate))
        return x
    if x.dim() == 3:
        check_shape(op, name, x, (batch, dstate, length))
        return x.transpose(1, 2)[:, :, None]
    ngroups = x.shape[1]
    check_shape(op, name, x, (batch, ngroups, dstate, length))
    if ngroups == 0 or dim % ngroups:
        raise ValueError(f"{op}: {name} must have a divisor of dim={dim} as ngroups, got {ngroups}")
    return x.permute(0, 3, 1, 2)


def _same_groups(B: Tensor, C: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Bring B and C to (batch, length, ngroups, dstate), with the larger ngroups of the two.

    A constant B or C gets a group for every channel, and stride 0 over batch and length.
    """
    batch, dim, length = u.shape
    groups = max(dim if x.dim() == 2 else x.shape[2] for x in (B, C))

    def widened(x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.expand(batch, length, dim, x.shape[1])
        if x.shape[2] == groups:
            return x
        shape = (batch, length, x.shape[2], groups // x.shape[2], x.shape[3])
        return x[:, :, :, None].expand(shape).flatten(2, 3)

    return widened(B), widened(C)


def _check_step_map(op: str, name: str, x: Tensor, batch: int, nheads: int, dstate: int) -> Tensor:
    """Check B or C of one step. -> (batch, ngroups, dstate)."""
    check_rank(op, name, x, "(batch, dstate)", "(batch, ngroups, dstate)")
    if x.dim() == 2:
        x = x[:, None]
    ngroups = x.shape[1]
    check_shape(op, name, x, (batch, ngroups, dstate))
    if ngroups == 0 or nheads % ngroups:
        raise ValueError(
            f"{op}: {name} must have a divisor of nheads={nheads} as ngroups, got {ngroups}"
        )
    return x
