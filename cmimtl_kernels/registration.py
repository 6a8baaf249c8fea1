"""The op contract: one schema per op, its fake kernel and its autograd formula, for every backend.

A backend is a set of kernels in a `torch.library` namespace. `cmimtl` holds the compiled kernels,
of which the dispatcher picks those for CPU or CUDA by the tensors' device; `cmimtl_triton` holds
the Triton kernels, and `cmimtl_causal_conv1d` those of the package of that name. Tests add
namespaces of their own. `define(namespace)` gives a namespace the ops below; the kernels come from
`STABLE_TORCH_LIBRARY_IMPL` in csrc/ or from `torch.library`. The schemas stand here and not in C++,
so that there is one text of them, whichever libraries were built.

Conventions of every kernel:

- B and C are (batch, steps, ngroups, dstate), or (batch, steps, dstate) where all channels are one
  group; so are their gradients. steps is length, and 2 * length in the cross scan.
- lengths is (batch,), int64, on the tensors' device. It counts steps of u, and in the cross scan
  steps of v and t.
- A, D, delta_bias and the states are in the accumulation dtype: float32, or float64 where u is.
- An output of the shape of an input (u, z, v, …) has the strides of that input where it is dense.
- checkpoints is (batch, ceil(steps / checkpoint_every), dim, dstate). It holds the state before
  every checkpoint_every-th processed step; with `reverse`, steps are counted from the last valid
  one. A checkpoint that no valid step follows is undefined. With checkpoint_every = 0 it is empty,
  (0,), and no backward pass can run.
- A gradient that does not apply (dD without D) is an empty tensor.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmimtl_kernels.reference import accumulation_dtype

_SCAN_OPTIONS = "bool delta_softplus, bool reverse, int checkpoint_every"
_SCAN_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
)
_CROSS_TENSORS = (
    "Tensor v, Tensor t, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? z_v, Tensor? z_t, Tensor? delta_bias"
)
_STATE = "Tensor? initial_state, Tensor? lengths"

SCHEMAS = {
    "selective_scan_fwd": f"({_SCAN_TENSORS}, {_STATE}, {_SCAN_OPTIONS})"
    " -> (Tensor out, Tensor last_state, Tensor checkpoints)",
    "selective_scan_bwd": f"(Tensor dout, Tensor? dlast_state, {_SCAN_TENSORS}, {_STATE},"
    f" Tensor checkpoints, {_SCAN_OPTIONS})"
    " -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor dz,"
    " Tensor ddelta_bias, Tensor dinitial_state)",
    "cross_selective_scan_fwd": f"({_CROSS_TENSORS}, {_STATE}, {_SCAN_OPTIONS})"
    " -> (Tensor out_v, Tensor out_t, Tensor last_state, Tensor checkpoints)",
    "cross_selective_scan_bwd": "(Tensor dout_v, Tensor dout_t, Tensor? dlast_state,"
    f" {_CROSS_TENSORS}, {_STATE}, Tensor checkpoints, {_SCAN_OPTIONS})"
    " -> (Tensor dv, Tensor dt, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD,"
    " Tensor dz_v, Tensor dz_t, Tensor ddelta_bias, Tensor dinitial_state)",
    "causal_conv1d_fwd": "(Tensor x, Tensor weight, Tensor? bias, Tensor? lengths,"
    " bool silu, bool reverse) -> Tensor out",
    "causal_conv1d_bwd": "(Tensor dout, Tensor x, Tensor weight, Tensor? bias, Tensor? lengths,"
    " bool silu, bool reverse) -> (Tensor dx, Tensor dweight, Tensor dbias)",
}

OPS = tuple(name.removesuffix("_fwd") for name in SCHEMAS if name.endswith("_fwd"))
SCANS = tuple(op for op in OPS if "checkpoints" in SCHEMAS[f"{op}_fwd"])

# The ops of a library exist only as long as its library object.
_LIBRARIES: dict[str, torch.library.Library] = {}
_OPS: dict[tuple[str, str], torch._ops.OpOverload] = {}
_FUNCTIONS: dict[tuple[str, str], type[torch.autograd.Function]] = {}
_TRANSFORMED: dict[torch._ops.OpOverload, type[torch.autograd.Function]] = {}


def define(namespace: str, ops: tuple[str, ...] = OPS) -> None:
    """Define the two passes of each of `ops` in `namespace`, with fake kernels and autograd.

    A second call for the same namespace changes nothing.
    """
    if namespace in _LIBRARIES:
        return
    library = _LIBRARIES[namespace] = torch.library.Library(namespace, "DEF")
    names = [f"{op}_{which}" for op in ops for which in ("fwd", "bwd")]
    for name in names:
        library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        _OPS[namespace, name] = getattr(getattr(torch.ops, namespace), name).default
    for name in names:
        backward = _BACKWARDS[name](_OPS.get((namespace, name.replace("_fwd", "_bwd"))))
        setup = _SETUPS.get(name)
        torch.library.register_fake(f"{namespace}::{name}", _checked(name), lib=library)
        torch.library.register_autograd(
            f"{namespace}::{name}", backward, setup_context=setup, lib=library
        )
        _TRANSFORMED[_OPS[namespace, name]] = _transformed(_OPS[namespace, name], setup, backward)
        if setup is not None:
            _FUNCTIONS[namespace, name] = _function(_OPS[namespace, name], name, setup, backward)


# Calls
#
# An op with an autograd formula from torch.library can be compiled and exported. But a call of it
# costs 70 us in Python where it is differentiated, as much as a scan of a hundred steps, and 6 us
# elsewhere (measured on one core at 3 GHz, with 13 arguments). So in eager calls the same formula
# runs in a torch.autograd.Function, and the kernel is called below autograd. torch.func takes
# neither kind: it needs a Function with a separate setup_context, which costs another 40 us.


def run(
    namespace: str,
    op: str,
    tensors: tuple[Tensor | None, ...],
    options: tuple[bool, ...],
    checkpoint_every: int,
):
    """Run the forward pass of an op, recorded by autograd where a tensor requires it.

    Args:
        namespace: of the kernels.
        op: one of OPS.
        tensors, options: in the order of the op's schema, without checkpoint_every.
        checkpoint_every: of a scan that is recorded; no other keeps states.
    Returns:
        the outputs of the schema, without the checkpoints.
    """
    # Inside a transform a tensor does not tell whether a gradient of it is wanted.
    differentiated = _needs_grad(tensors) or inside_transform()
    if op not in SCANS:
        return _call(namespace, f"{op}_fwd", (*tensors, *options), differentiated)
    every = checkpoint_every if differentiated else 0
    outputs = _call(namespace, f"{op}_fwd", (*tensors, *options, every), differentiated)
    return outputs[:-1]


def _needs_grad(tensors: tuple[Tensor | None, ...]) -> bool:
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


def _call(namespace: str, name: str, args: tuple, differentiated: bool):
    """Run a forward op and return its outputs.

    Args:
        namespace, name: the op is `torch.ops.<namespace>.<name>`.
        args: all arguments of the op.
        differentiated: whether autograd is to record the call.
    """
    op = _OPS[namespace, name]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return op(*args)
    if inside_transform():
        return _TRANSFORMED[op].apply(*args)
    if differentiated:
        return _FUNCTIONS[namespace, name].apply(*args)
    with _below_autograd():
        return op(*args)


def laid_out(x: Tensor, result: Tensor) -> Tensor:
    """`result` with the strides of `torch.empty_like(x)`, as the contract has it."""
    like = torch.empty_like(x, device="meta")
    if like.stride() == result.stride():
        return result
    return result.new_empty_strided(like.shape, like.stride()).copy_(result)


def inside_transform() -> bool:
    """Whether torch.func is at work (grad, vjp, vmap, ...), or forward-mode differentiation is."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


_below_autograd = torch._C._AutoDispatchBelowAutograd


def _function(op, name: str, setup, backward) -> type[torch.autograd.Function]:
    """Make a torch.autograd.Function of an op and its formula, for eager calls."""

    def forward(ctx, *args):
        with _below_autograd():
            output = op(*args)
        setup(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), members)


def _transformed(op, setup, backward) -> type[torch.autograd.Function]:
    """Make a torch.autograd.Function of an op and its formula that torch.func takes."""

    def vmap(info, in_dims, *args):
        """Run the op once for each element: its batch could hold them all, but not its gradients
        of what the elements share, which are wanted for each alone."""
        outputs = []
        for i in range(info.batch_size):
            element = (
                x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)
            )
            outputs.append(_TRANSFORMED[op].apply(*element))
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(torch.stack(xs) for xs in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    def jvp(ctx, *tangents):
        raise NotImplementedError(
            f"{op._opname[:-4]}: backend must be 'reference' for a forward-mode derivative (jvp),"
            " got kernels, which have none"
        )

    members = {
        "forward": staticmethod(lambda *args: op(*args)),
        "setup_context": staticmethod(setup or (lambda ctx, inputs, output: None)),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
        "jvp": staticmethod(jvp),
    }
    return type(op._opname, (torch.autograd.Function,), members)


def _call_backward(op, *args):
    if inside_transform():
        return _TRANSFORMED[op].apply(*args)
    # With create_graph the backward op is recorded too. Its own formula raises an error when a
    # second derivative is wanted.
    if torch.is_grad_enabled():
        return op(*args)
    with _below_autograd():
        return op(*args)


# Fake kernels give results of the right shapes and dtypes without data


def _optional_like(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if x is None else torch.empty_like(x)


def _scan_fwd_extras(u: Tensor, delta: Tensor, A: Tensor, checkpoint_every: int):
    """The results (last_state, checkpoints) of either scan."""
    batch, steps, dim = delta.shape
    dstate = A.shape[1]
    acc = accumulation_dtype(u.dtype)
    shape: tuple[int, ...] = (0,)
    if checkpoint_every:
        shape = (batch, (steps + checkpoint_every - 1) // checkpoint_every, dim, dstate)
    return u.new_empty((batch, dim, dstate), dtype=acc), u.new_empty(shape, dtype=acc)


def _scan_bwd_shared(u, delta, A, B, C, D, z, delta_bias, initial_state):
    """The gradients (ddelta, dA, dB, dC, dD), (ddelta_bias, dinitial_state) of either scan."""
    wide = u.new_empty(0, dtype=accumulation_dtype(u.dtype))
    return (
        (
            torch.empty_like(delta),
            torch.empty_like(A, memory_format=torch.contiguous_format),
            torch.empty_like(B, memory_format=torch.contiguous_format),
            torch.empty_like(C, memory_format=torch.contiguous_format),
            _optional_like(D, wide),
        ),
        (_optional_like(delta_bias, wide), _optional_like(initial_state, wide)),
    )


def _fake_scan_fwd(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    initial_state,
    lengths,
    delta_softplus,
    reverse,
    checkpoint_every,
):
    return torch.empty_like(u), *_scan_fwd_extras(u, delta, A, checkpoint_every)


def _fake_scan_bwd(
    dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, checkpoints,
    delta_softplus, reverse, checkpoint_every,
):  # fmt: skip
    first, last = _scan_bwd_shared(u, delta, A, B, C, D, z, delta_bias, initial_state)
    return torch.empty_like(u), *first, _optional_like(z, u), *last


def _fake_cross_fwd(
    v, t, delta, A, B, C, D, z_v, z_t, delta_bias, initial_state, lengths, delta_softplus, reverse,
    checkpoint_every,
):  # fmt: skip
    return (
        torch.empty_like(v),
        torch.empty_like(t),
        *_scan_fwd_extras(v, delta, A, checkpoint_every),
    )


def _fake_cross_bwd(
    dout_v, dout_t, dlast_state, v, t, delta, A, B, C, D, z_v, z_t, delta_bias, initial_state,
    lengths, checkpoints, delta_softplus, reverse, checkpoint_every,
):  # fmt: skip
    first, last = _scan_bwd_shared(v, delta, A, B, C, D, z_v, delta_bias, initial_state)
    gates = _optional_like(z_v, v), _optional_like(z_t, t)
    return torch.empty_like(v), torch.empty_like(t), *first, *gates, *last


def _fake_conv_fwd(x, weight, bias, lengths, silu, reverse):
    return torch.empty_like(x)


def _fake_conv_bwd(dout, x, weight, bias, lengths, silu, reverse):
    wide = x.new_empty(0, dtype=accumulation_dtype(x.dtype))
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return torch.empty_like(x), dweight, _optional_like(bias, wide)


_FAKES: dict[str, Callable] = {
    "selective_scan_fwd": _fake_scan_fwd,
    "selective_scan_bwd": _fake_scan_bwd,
    "cross_selective_scan_fwd": _fake_cross_fwd,
    "cross_selective_scan_bwd": _fake_cross_bwd,
    "causal_conv1d_fwd": _fake_conv_fwd,
    "causal_conv1d_bwd": _fake_conv_bwd,
}


def _checked(name: str) -> Callable:
    """The fake kernel of an op, after the checks that keep its own code from stumbling.

    It also runs for a call in which one tensor is on meta and the others are not.
    """
    fake = _FAKES[name]
    schema = SCHEMAS[name].partition("->")[0]
    arguments = [
        (position, argument, not optional)
        for position, (kind, optional, argument) in enumerate(
            re.findall(r"(Tensor|bool|int)(\??) (\w+)", schema)
        )
        if kind == "Tensor"
    ]
    ranks = {"A": (2,), "weight": (2,), "B": (3, 4), "C": (3, 4), "checkpoints": (1, 4)}

    def checked(*args):
        device = args[0].device if args[0] is not None else None
        for position, argument, required in arguments:
            x = args[position]
            if x is None and required:
                raise RuntimeError(f"{name}: {argument} must be a tensor, got None")
            if x is not None and x.device != device:
                raise RuntimeError(f"{name}: {argument} must be on {device}, got {x.device}")
            allowed = ranks.get(argument, (3,))
            if required and x.dim() not in allowed:
                raise RuntimeError(
                    f"{name}: {argument} must have {' or '.join(map(str, allowed))} dimensions,"
                    f" got {tuple(x.shape)}"
                )
        return fake(*args)

    return checked


# Autograd calls the backward ops and turns the gradients of absent inputs into None


def _setup_scan(ctx, inputs, output):
    *tensors, delta_softplus, reverse, checkpoint_every = inputs
    ctx.options = delta_softplus, reverse, checkpoint_every
    ctx.save_for_backward(*tensors, output[-1])
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)


def _setup_conv(ctx, inputs, output):
    *tensors, silu, reverse = inputs
    ctx.options = silu, reverse
    ctx.save_for_backward(*tensors)


def _scan_backward(op):
    def backward(ctx, dout, dlast_state, _):
        *inputs, checkpoints = ctx.saved_tensors
        _check_checkpoints("selective_scan", ctx.options)
        dout = torch.zeros_like(inputs[0]) if dout is None else dout
        grads = _call_backward(op, dout, dlast_state, *inputs, checkpoints, *ctx.options)
        return *_present(grads, inputs[:9]), None, None, None, None

    return backward


def _cross_backward(op):
    def backward(ctx, dout_v, dout_t, dlast_state, _):
        *inputs, checkpoints = ctx.saved_tensors
        _check_checkpoints("cross_selective_scan", ctx.options)
        dout_v, dout_t = (
            torch.zeros_like(x) if g is None else g
            for g, x in zip((dout_v, dout_t), inputs[:2], strict=True)
        )
        grads = _call_backward(op, dout_v, dout_t, dlast_state, *inputs, checkpoints, *ctx.options)
        return *_present(grads, inputs[:11]), None, None, None, None

    return backward


def _conv_backward(op):
    def backward(ctx, dout):
        inputs = ctx.saved_tensors
        grads = _call_backward(op, dout, *inputs, *ctx.options)
        return *_present(grads, inputs[:3]), None, None, None

    return backward


def _second_derivative(_):
    def backward(ctx, *_):
        raise NotImplementedError(
            "cmimtl_kernels: create_graph must be False, got a second derivative through a kernel;"
            " use backend='reference'"
        )

    return backward


def _check_checkpoints(op: str, options) -> None:
    if options[-1] == 0:
        raise RuntimeError(
            f"{op}: checkpoint_every must be positive where a gradient is wanted, got 0"
        )


def _present(grads, inputs):
    """The gradients of the inputs that were given, and None for the others."""
    return (None if x is None else g for g, x in zip(grads, inputs, strict=True))


_SETUPS = {
    "selective_scan_fwd": _setup_scan,
    "cross_selective_scan_fwd": _setup_scan,
    "causal_conv1d_fwd": _setup_conv,
}
_BACKWARDS = {
    "selective_scan_fwd": _scan_backward,
    "cross_selective_scan_fwd": _cross_backward,
    "causal_conv1d_fwd": _conv_backward,
    "selective_scan_bwd": _second_derivative,
    "cross_selective_scan_bwd": _second_derivative,
    "causal_conv1d_bwd": _second_derivative,
}
