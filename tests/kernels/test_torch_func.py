"""The kernels under torch.func, forward-mode differentiation and torch.jit.trace: each gives what a
loop, or a call without it, gives, or one line that names the way out."""

import functools
import io
import re

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

from cmimtl_kernels import (
    CrossMamba,
    CrossMambaBlock,
    causal_conv1d,
    cross_selective_scan,
    selective_scan,
    testing,
)
from cmimtl_kernels.testing import relative_l2

FUNCTIONS = {
    "selective_scan": functools.partial(
        selective_scan, delta_softplus=True, return_last_state=True
    ),
    "cross_selective_scan": functools.partial(
        cross_selective_scan, delta_softplus=True, return_last_state=True
    ),
    "causal_conv1d": functools.partial(causal_conv1d, activation="silu"),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
kinds = pytest.mark.parametrize("interleave", ["product-sum", "gated"])
SHARED = ("A", "D", "delta_bias", "weight", "bias")  # one for all elements of a vmap


def inputs_of(name, seed=0, dtype=torch.float64):
    sizes = dict(batch=2, length=7, dim=4, dtype=dtype, seed=seed)
    sizes["lengths"] = torch.tensor([7, 3 + seed])
    if name == "causal_conv1d":
        return testing.conv_inputs(**sizes)
    return testing.scan_inputs(**sizes, dstate=3, cross=name == "cross_selective_scan")


def elements(name):
    """Three times the arguments of a function, of which some are shared, and all as one stack."""
    each = [inputs_of(name, seed) for seed in range(3)]
    for inputs in each:
        inputs |= {n: each[0][n] for n in SHARED if n in inputs}
    stacked = {
        n: x if n in SHARED else torch.stack([inputs[n] for inputs in each], -1)
        for n, x in each[0].items()
    }
    return each, stacked, {n: None if n in SHARED else -1 for n in stacked}


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def check_equal(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and relative_l2(a, b) < tolerance


@every_function
def test_vmap(name):
    each, stacked, dims = elements(name)
    outs = vmap(lambda kw: as_tuple(FUNCTIONS[name](**kw)), in_dims=(dims,))(stacked)
    alone = [as_tuple(FUNCTIONS[name](**inputs)) for inputs in each]
    check_equal(outs, [torch.stack(xs) for xs in zip(*alone, strict=True)])


def loss_of(name, inputs, floats):
    outs = as_tuple(FUNCTIONS[name](**inputs | floats))
    return sum((i + 1) * x.square().sum() for i, x in enumerate(outs))


@every_function
def test_gradients_of_each_element_and_of_all(name):
    each, stacked, dims = elements(name)
    wanted = [n for n, x in each[0].items() if x.is_floating_point()]

    def gradients(inputs):
        floats = {n: inputs[n] for n in wanted}
        return tuple(grad(lambda f: loss_of(name, inputs, f))(floats)[n] for n in wanted)

    alone = []
    for inputs in each:
        leaves = {n: inputs[n].clone().requires_grad_() for n in wanted}
        alone.append(torch.autograd.grad(loss_of(name, inputs, leaves), list(leaves.values())))
    expected = [torch.stack(xs) for xs in zip(*alone, strict=True)]
    check_equal(vmap(gradients, in_dims=(dims,))(stacked), expected, 1e-11)

    def total(shared):
        mapped = vmap(lambda kw: loss_of(name, kw, shared), in_dims=(dims,))
        return mapped(stacked).sum()

    shared = {n: stacked[n] for n in SHARED if n in stacked}
    sums = [expected[wanted.index(n)].sum(0) for n in shared]
    check_equal([grad(total)(shared)[n] for n in shared], sums, 1e-11)


def test_jacobian():
    inputs = inputs_of("selective_scan")

    def last_state(A):
        return FUNCTIONS["selective_scan"](**inputs | {"A": A})[1].sum((0, 2))  # (dim,)

    expected = torch.autograd.functional.jacobian(last_state, inputs["A"])
    check_equal([jacrev(last_state)(inputs["A"])], [expected], 1e-11)


@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_per_sample_of_a_block(interleave, bidirectional):
    torch.manual_seed(0)
    block = CrossMambaBlock(
        8, d_state=4, interleave=interleave, bidirectional=bidirectional
    ).double()
    visual, text = torch.randn(3, 7, 8).double(), torch.randn(3, 5, 8).double()
    n_v, n_t = torch.tensor([7, 2, 3]), torch.tensor([1, 4, 5])
    parameters = {n: p.detach() for n, p in block.named_parameters()}

    def loss(parameters, *sample):
        streams = tuple(x[None] for x in sample)
        out_v, out_t = functional_call(block, parameters, streams)
        return out_v.square().sum() + (3 * out_t).square().sum()

    samples = visual, text, n_v, n_t
    found = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *samples)
    for i in range(3):
        leaves = {n: p.clone().requires_grad_() for n, p in parameters.items()}
        loss(leaves, *(x[i] for x in samples)).backward()
        for n, leaf in leaves.items():
            assert relative_l2(found[n][i], leaf.grad) < 1e-11, n


# Forward-mode differentiation


@every_function
@pytest.mark.parametrize("mode", ["torch.func", "dual numbers"])
def test_forward_mode_needs_the_reference(name, mode):
    """The kernels say so, and never give a result without its tangent."""
    inputs = inputs_of(name)
    first = next(iter(inputs))
    x, tangent = inputs[first], torch.randn_like(inputs[first])

    def function(x, backend):
        return as_tuple(FUNCTIONS[name](**inputs | {first: x}, backend=backend))[0]

    def derivative(backend):
        if mode == "torch.func":
            return jvp(lambda x: function(x, backend), (x,), (tangent,))[1]
        with forward_ad.dual_level():
            out = function(forward_ad.make_dual(x, tangent), backend)
            return forward_ad.unpack_dual(out).tangent

    step = 1e-6
    ahead, behind = (function(x + sign * step * tangent, "cpu") for sign in (1, -1))
    check_equal([derivative("reference")], [(ahead - behind) / (2 * step)], 1e-7)
    message = (
        f"{name}: backend must be 'reference' for a forward-mode derivative (jvp), got kernels,"
        " which have none"
    )
    with pytest.raises(NotImplementedError, match="^" + re.escape(message) + "$"):
        derivative("cpu")


@kinds
@pytest.mark.parametrize("mode", ["torch.func", "dual numbers"])
def test_forward_mode_through_a_block(interleave, mode):
    torch.manual_seed(0)
    block = CrossMambaBlock(8, d_state=4, interleave=interleave, backend="reference").double()
    visual, text = torch.randn(2, 4, 8).double(), torch.randn(2, 3, 8).double()
    tangent, step = torch.randn_like(visual), 1e-6
    if mode == "torch.func":
        found = jvp(lambda v: block(v, text)[1], (visual,), (tangent,))[1]
    else:
        with forward_ad.dual_level():
            out = block(forward_ad.make_dual(visual, tangent), text)[1]
            found = forward_ad.unpack_dual(out).tangent
    ahead, behind = (block(visual + sign * step * tangent, text)[1] for sign in (1, -1))
    check_equal([found], [(ahead - behind) / (2 * step)], 1e-7)


# torch.jit.trace


@kinds
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_stack_is_saved_and_loaded(interleave, ragged):
    """It takes other batches, and has the gradients of the stack."""
    torch.manual_seed(0)
    stack = CrossMamba(8, 2, d_state=4, interleave=interleave, bidirectional=True, backend="cpu")

    def streams(batch):
        arguments = [torch.randn(batch, 7, 8), torch.randn(batch, 5, 8)]
        if ragged:
            arguments += [torch.randint(1, n + 1, (batch,)) for n in (7, 5)]
        return arguments

    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(stack, streams(2), check_trace=False), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for batch in (2, 3):
        arguments = streams(batch)
        results = []
        for function in (stack, traced):
            outs = function(*arguments)
            loss = sum(x.square().sum() for x in outs)
            named = dict(function.named_parameters())
            grads = torch.autograd.grad(loss, [named[n] for n, _ in stack.named_parameters()])
            results.append([*outs, *grads])
        check_equal(results[1], results[0], 1e-5)
