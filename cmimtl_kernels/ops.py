"""The public functions: argument checks, autocast, the choice of a backend, the call."""

from typing import Literal, overload

from torch import Tensor

from cmimtl_kernels import backends
from cmimtl_kernels.backends import Call
from cmimtl_kernels.checks import (
    Lengths,
    autocast,
    check_flag,
    check_float,
    check_lengths,
    check_like,
    check_optional,
    check_rank,
    check_tensor,
    dtype_name,
)
from cmimtl_kernels.reference import accumulation_dtype


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Lengths | None = ...,
    reverse: bool = ...,
    return_last_state: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Lengths | None = ...,
    reverse: bool = ...,
    return_last_state: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Lengths | None = ...,
    reverse: bool = ...,
    return_last_state: bool,
    backend: str = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence over the length axis.

        d[t]     = softplus(delta[t] + delta_bias)               bias and softplus each optional
        state[t] = exp(d[t] * A) * state[t-1] + d[t] * u[t] * B[t]
        out[t]   = (<C[t], state[t]> + D * u[t]) * silu(z[t])    D and z each optional

    Source: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    algorithm 2.

    Args:
        u: (batch, length, dim), float32, bfloat16, float16 or float64; any strides.
        delta: (batch, length, dim), dtype of u. The step size before bias and softplus.
        A: (dim, dstate), real, any float dtype. Negative in a trained model.
        B: (batch, length, dstate) or (batch, length, ngroups, dstate), dtype of u; ngroups divides
            dim.
        C: as B.
        D: (dim,), any float dtype. The skip connection.
        z: (batch, length, dim), dtype of u. The gate.
        delta_bias: (dim,), any float dtype.
        delta_softplus: whether softplus is applied to the step size.
        initial_state: (batch, dim, dstate), any float dtype; zeros where None. Differentiable.
        lengths: (batch,) integers in [0, length], a tensor or what makes one: the valid steps of
            each sample. Steps past them are never read, leave the state as it is, and have output 0
            and gradient 0.
        reverse: run from the last valid step to the first.
        return_last_state: also return the state after the last processed step.
        backend: "auto", "cuda", "triton", "cpu" or "reference"; see
            `cmimtl_kernels.backends.explain`.
    Returns:
        out: (batch, length, dim), dtype and, where dense, strides of u.
        last_state: (batch, dim, dstate), float32 (float64 where u is); only with return_last_state.
            Differentiable.
    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument and what
            it got.
        NotImplementedError: the named backend cannot run this input; the message lists every
            reason.
    Numerics: computed in float32 (float64 where u is) and rounded once, on store; the same bits on
        every run, gradients included.
    Memory: for the backward pass it keeps its inputs and batch * ceil(length / k) * dim * dstate
        states, k = `backends.BACKENDS[name].checkpoint_every`.
    Derivatives: first ones, by autograd or torch.func, whose vmap runs the elements one by one.
        `backend="reference"` also has second ones and those in forward mode.
    Autocast: u, delta, B, C and z are cast to the autocast dtype; A, D, delta_bias and the states
        are not.
    Examples:
        >>> import torch
        >>> u, delta = torch.randn(2, 8, 4), torch.rand(2, 8, 4)
        >>> A, B, C = -torch.rand(4, 16), torch.randn(2, 8, 16), torch.randn(2, 8, 16)
        >>> selective_scan(u, delta, A, B, C).shape
        torch.Size([2, 8, 4])
    """
    op = "selective_scan"
    check_float(op, "u", u)
    check_rank(op, "u", u, 3, "(batch, length, dim)")
    u, delta, B, C, z = autocast(op, ("u", "delta", "B", "C", "z"), (u, delta, B, C, z))
    batch, length, dim = u.shape
    check_like(op, "delta", delta, u, (batch, length, dim))
    check_optional(op, "z", z, u, (batch, length, dim))
    A, D, delta_bias, B, C, initial_state = _check_shared(
        op, u, length, A, D, delta_bias, B, C, initial_state
    )
    lengths = check_lengths(op, lengths, u, length)
    check_flag(op, "delta_softplus", delta_softplus)
    check_flag(op, "reverse", reverse)

    kernels = backends.choose(backend, Call(op, u.device.type, u.dtype, A.shape[1]))
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, lengths)
    out, last_state = kernels.run(op, tensors, delta_softplus, reverse)
    return (out, last_state) if return_last_state else out


@overload
def cross_selective_scan(
    v: Tensor,
    t: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z_v: Tensor | None = ...,
    z_t: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Lengths | None = ...,
    reverse: bool = ...,
    return_last_state: Literal[False] = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def cross_selective_scan(
    v: Tensor,
    t: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z_v: Tensor | None = ...,
    z_t: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Lengths | None = ...,
    reverse: bool = ...,
    return_last_state: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def cross_selective_scan(
    v: Tensor,
    t: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z_v: Tensor | None = ...,
    z_t: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    initial_state: Tensor | None = ...,
    lengths: Lengths | None = ...,
    reverse: bool = ...,
    return_last_state: bool,
    backend: str = ...,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]: ...


def cross_selective_scan(
    v: Tensor,
    t: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z_v: Tensor | None = None,
    z_t: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Run one selective scan over the interleaved products and sums of two streams.

        x[2l]     = v[l] * t[l]                           the products and the sums, in turn:
        x[2l + 1] = v[l] + t[l]                           2 * length steps, never stored
        y         = selective_scan(x, delta, A, B, C, D)
        g[l]      = silu(z_v[l] * z_t[l])                 optional
        out_v[l]  = y[2l] * g[l]
        out_t[l]  = y[2l + 1] * g[l]

    Source: CMI-MTL (arXiv 2511.01357), the Cross-Mamba block. The order of the tokens and the
    shared gate are this library's reading of it.

    Args:
        v: (batch, length, dim), float32, bfloat16, float16 or float64; any strides. The visual
            stream.
        t: (batch, length, dim), dtype of v. The text stream, already aligned to v.
        delta: (batch, 2 * length, dim), dtype of v. The step sizes of x before bias and softplus.
        A: (dim, dstate), real, any float dtype.
        B: (batch, 2 * length, dstate) or (batch, 2 * length, ngroups, dstate), dtype of v.
        C: as B.
        D: (dim,), any float dtype.
        z_v, z_t: (batch, length, dim), dtype of v; both or neither.
        delta_bias: (dim,), any float dtype.
        delta_softplus: whether softplus is applied to the step size.
        initial_state: (batch, dim, dstate); zeros where None. Differentiable.
        lengths: (batch,) integers in [0, length]: the valid steps of each stream, as in
            `selective_scan`.
        reverse: run x from its last valid step to its first.
        return_last_state: also return the state after the last processed step of x.
        backend: as in `selective_scan`.
    Returns:
        out_v, out_t: (batch, length, dim), dtype of v.
        last_state: (batch, dim, dstate), float32 (float64 where v is); only with return_last_state.
    Raises, numerics, autocast: as `selective_scan`.
    Memory: for the backward pass it keeps its inputs and batch * ceil(2 * length / k) * dim *
        dstate states; x is formed again from v and t.
    """
    op = "cross_selective_scan"
    check_float(op, "v", v)
    check_rank(op, "v", v, 3, "(batch, length, dim)")
    names = "v", "t", "delta", "B", "C", "z_v", "z_t"
    v, t, delta, B, C, z_v, z_t = autocast(op, names, (v, t, delta, B, C, z_v, z_t))
    batch, length, dim = v.shape
    check_like(op, "t", t, v, (batch, length, dim))
    check_like(op, "delta", delta, v, (batch, 2 * length, dim))
    if (z_v is None) != (z_t is None):
        missing, given = ("z_t", "z_v") if z_t is None else ("z_v", "z_t")
        raise ValueError(f"{op}: {missing} must be given together with {given}, got None")
    check_optional(op, "z_v", z_v, v, (batch, length, dim))
    check_optional(op, "z_t", z_t, v, (batch, length, dim))
    A, D, delta_bias, B, C, initial_state = _check_shared(
        op, v, 2 * length, A, D, delta_bias, B, C, initial_state
    )
    lengths = check_lengths(op, lengths, v, length)
    check_flag(op, "delta_softplus", delta_softplus)
    check_flag(op, "reverse", reverse)

    kernels = backends.choose(backend, Call(op, v.device.type, v.dtype, A.shape[1]))
    tensors = (v, t, delta, A, B, C, D, z_v, z_t, delta_bias, initial_state, lengths)
    out_v, out_t, last_state = kernels.run(op, tensors, delta_softplus, reverse)
    return (out_v, out_t, last_state) if return_last_state else (out_v, out_t)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Depthwise causal convolution with bias and activation, fused.

        out[t] = act(bias + sum_k weight[k] * x[t - width + 1 + k])

    Steps before the first one count as 0.

    Args:
        x: (batch, length, dim), float32, bfloat16, float16 or float64; any strides.
        weight: (dim, width), any float dtype.
        bias: (dim,), any float dtype.
        activation: None or "silu".
        lengths: (batch,) integers in [0, length]: valid steps; the rest is never read and has
            output 0.
        reverse: look at the steps that follow instead of those before, the mirror image in time.
        backend: as in `selective_scan`; or "causal_conv1d", the package of that name, which
            "auto" takes where none of our own kernels can run. The package takes widths from 2 to
            4, and neither lengths nor reverse; its gradients of weight and bias are the same bits
            on every run only with `torch.use_deterministic_algorithms(True)`.
    Returns:
        (batch, length, dim), dtype of x.
    Raises: as `selective_scan`.
    Memory: for the backward pass it keeps its inputs. The package also keeps copies of those that
        do not lie in one of its two layouts.
    """
    op = "causal_conv1d"
    check_float(op, "x", x)
    check_rank(op, "x", x, 3, "(batch, length, dim)")
    (x,) = autocast(op, ("x",), (x,))
    acc = accumulation_dtype(x.dtype)
    check_tensor(op, "weight", weight)
    if weight.dim() != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] == 0:
        raise ValueError(
            f"{op}: weight must have shape (dim={x.shape[2]}, width >= 1),"
            f" got {tuple(weight.shape)}"
        )
    weight = check_like(op, "weight", weight, x, tuple(weight.shape), acc)
    bias = check_optional(op, "bias", bias, x, (x.shape[2],), acc)
    if activation not in (None, "silu"):
        raise ValueError(f"{op}: activation must be None or 'silu', got {activation!r}")
    lengths = check_lengths(op, lengths, x, x.shape[1])
    check_flag(op, "reverse", reverse)

    call = Call(
        op,
        x.device.type,
        x.dtype,
        width=weight.shape[1],
        lengths=lengths is not None,
        reverse=reverse,
    )
    kernels = backends.choose(backend, call)
    return kernels.run(op, (x, weight, bias, lengths), activation == "silu", reverse)


def _check_shared(
    op: str,
    u: Tensor,
    steps: int,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
):
    """Check the arguments that both scans have.

    A, D, delta_bias and the state are returned in the accumulation dtype.
    """
    batch, _, dim = u.shape
    acc = accumulation_dtype(u.dtype)
    check_tensor(op, "A", A)
    if A.dtype.is_complex:
        raise ValueError(
            f"{op}: A must be real, got {dtype_name(A.dtype)}; complex states are not supported"
        )
    if A.dim() != 2 or A.shape[0] != dim or A.shape[1] == 0:
        raise ValueError(f"{op}: A must have shape (dim={dim}, dstate >= 1), got {tuple(A.shape)}")
    dstate = A.shape[1]
    A = check_like(op, "A", A, u, (dim, dstate), acc)
    D = check_optional(op, "D", D, u, (dim,), acc)
    delta_bias = check_optional(op, "delta_bias", delta_bias, u, (dim,), acc)
    B = _check_map(op, "B", B, u, steps, dstate)
    C = _check_map(op, "C", C, u, steps, dstate)
    if B.shape != C.shape:
        groups_of_B, groups_of_C = (x.shape[2] if x.dim() == 4 else 1 for x in (B, C))
        if groups_of_B != groups_of_C:
            raise ValueError(
                f"{op}: C must have the groups of B ({groups_of_B}), got {groups_of_C} groups"
            )
    initial_state = check_optional(op, "initial_state", initial_state, u, (batch, dim, dstate), acc)
    return A, D, delta_bias, B, C, initial_state


def _check_map(op: str, name: str, x: Tensor, u: Tensor, steps: int, dstate: int) -> Tensor:
    """Check B or C, which is (batch, steps, dstate) or (batch, steps, ngroups, dstate)."""
    check_tensor(op, name, x)
    batch, _, dim = u.shape
    if x.dim() == 3:
        return check_like(op, name, x, u, (batch, steps, dstate))
    if x.dim() != 4 or x.shape[2] == 0 or dim % x.shape[2]:
        raise ValueError(
            f"{op}: {name} must have shape {(batch, steps, dstate)} or (batch={batch},"
            f" steps={steps}, ngroups, dstate={dstate}) with ngroups a divisor of"
            f" dim={dim}, got {tuple(x.shape)}"
        )
    return check_like(op, name, x, u, (batch, steps, x.shape[2], dstate))
