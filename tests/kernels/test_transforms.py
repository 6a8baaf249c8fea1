"""The ops under PyTorch's transforms: opcheck, compile, export, torch.func, autocast, gradcheck.

On a CPU with the compiled kernels. What compiles, exports or transforms must be the kernels and not
the reference, so everything here names backend="cpu".
"""

import functools
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cmimtl_kernels import (
    CrossMamba,
    CrossMambaBlock,
    backends,
    causal_conv1d,
    cross_selective_scan,
    selective_scan,
    testing,
)
from cmimtl_kernels.registration import SCHEMAS
from cmimtl_kernels.testing import relative_l2, run_with_gradients

SCANS = ("selective_scan", "cross_selective_scan")
FUNCTIONS = {
    "selective_scan": functools.partial(
        selective_scan, backend="cpu", delta_softplus=True, return_last_state=True
    ),
    "cross_selective_scan": functools.partial(
        cross_selective_scan, backend="cpu", delta_softplus=True, return_last_state=True
    ),
    "causal_conv1d": functools.partial(causal_conv1d, backend="cpu", activation="silu"),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_scan = pytest.mark.parametrize("name", SCANS)


def inputs_of(name, **sizes):
    """Small arguments of a public function, tensors alone, lengths included."""
    sizes = {"batch": 2, "length": 9, "dim": 4} | sizes
    lengths = sizes.pop("lengths", torch.tensor([sizes["length"], 5]))
    if name == "causal_conv1d":
        return testing.conv_inputs(**sizes, lengths=lengths)
    sizes = {"dstate": 3} | sizes
    return testing.scan_inputs(**sizes, cross=name == "cross_selective_scan", lengths=lengths)


def test_auto_is_the_compiled_kernels():
    assert backends.auto(backends.Call("selective_scan", "cpu", torch.float32, 16)) == "cpu"


# opcheck: schema, autograd registration, fake kernel and what AOT dispatch makes of the three

# Steps between checkpoints. With 8 valid steps of 9, or 16 of 18 in the cross scan, each checkpoint
# is followed by a valid step; one that is not would be undefined, and nothing to compare.
EVERY, RAGGED = 6, (9, 8)


def op_samples(name):
    """Argument tuples of an op: without options, with all, in every dtype, in groups, reversed."""
    public, direction = name.rsplit("_", 1)
    if public == "causal_conv1d":
        cases = [({"bias": False}, None, False), ({"dtype": torch.float64}, RAGGED, True)]
    else:
        without = dict(D=False, z=False, delta_bias=False, initial_state=False)
        cases = [
            (without, None, False),
            ({}, RAGGED, True),
            ({"dtype": torch.float64, "ngroups": 2}, None, True),
            ({"dtype": torch.bfloat16}, RAGGED, False),
            ({"dtype": torch.float16}, None, False),
        ]
    for sizes, lengths, reverse in cases:
        lengths = None if lengths is None else torch.tensor(lengths)
        inputs = inputs_of(public, **sizes, lengths=lengths)
        for maps in ("B", "C"):
            if maps in inputs and inputs[maps].dim() == 3:
                inputs[maps] = inputs[maps][:, :, None]
        tensors = list(inputs.values())
        options = (True, reverse) if public == "causal_conv1d" else (True, reverse, EVERY)
        if direction == "fwd":
            floats = (x for x in tensors if x is not None and x.is_floating_point())
            for x in floats:
                x.requires_grad_()
            yield (*tensors, *options)
        elif public == "causal_conv1d":
            yield (torch.randn_like(tensors[0]), *tensors, *options)
        else:
            forward = getattr(torch.ops.cmimtl, f"{public}_fwd")
            *outs, last, checkpoints = forward(*tensors, *options)
            grads = [torch.randn_like(out) for out in outs]
            dlast_state = torch.randn_like(last) if reverse else None
            yield (*grads, dlast_state, *tensors, checkpoints, *options)


@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(name):
    op = getattr(torch.ops.cmimtl, name).default
    for sample in op_samples(name):
        torch.library.opcheck(op, sample)


# torch.compile


def check_equal(actual: dict, expected: dict, tolerance: float = 0.0) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        assert relative_l2(actual[name], expected[name]) <= tolerance, name


@pytest.mark.parametrize("ngroups", [None, 2])
@every_function
def test_compiled_function_equals_eager(name, ngroups):
    torch._dynamo.reset()
    sizes = {} if name == "causal_conv1d" else {"ngroups": ngroups}
    inputs = inputs_of(name, **sizes)
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    check_equal(run_with_gradients(compiled, inputs), run_with_gradients(FUNCTIONS[name], inputs))


def test_compiled_without_gradients():
    torch._dynamo.reset()
    inputs = inputs_of("selective_scan")
    compiled = torch.compile(FUNCTIONS["selective_scan"], fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for actual, expected in zip(
            compiled(**inputs), FUNCTIONS["selective_scan"](**inputs), strict=True
        ):
            assert torch.equal(actual, expected)


def mixer(u, delta, A_log, B, C, weight):
    """A function around the scan with work for a code generator on both sides of it."""
    u = torch.nn.functional.silu(u * 2)
    A = -torch.exp(A_log)
    out = selective_scan(u, delta, A, B, C, delta_softplus=True, backend="cpu")
    return (out * u) @ weight


def mixer_inputs(length=9):
    inputs = inputs_of("selective_scan", length=length, lengths=None)
    inputs = {n: inputs[n] for n in ("u", "delta", "A", "B", "C")}
    inputs["A_log"] = torch.log(-inputs.pop("A"))
    order = ("u", "delta", "A_log", "B", "C")
    return {n: inputs[n] for n in order} | {"weight": torch.randn(4, 3)}


@pytest.mark.slow
def test_inductor_equals_eager():
    torch._dynamo.reset()
    inputs = mixer_inputs()
    compiled = torch.compile(mixer, fullgraph=True)
    check_equal(run_with_gradients(compiled, inputs), run_with_gradients(mixer, inputs), 1e-5)


def test_dynamic_shapes_are_compiled_once():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixer, fullgraph=True, backend=counter, dynamic=True)
    for length in (40, 65, 99):  # a single checkpoint is a shape of its own
        inputs = mixer_inputs(length)
        check_equal(run_with_gradients(compiled, inputs), run_with_gradients(mixer, inputs), 1e-6)
    assert counter.frame_count == 1


def block_and_streams(interleave, bidirectional=False, ragged=True):
    torch.manual_seed(0)
    block = CrossMambaBlock(
        8, d_state=4, interleave=interleave, bidirectional=bidirectional, backend="cpu"
    )
    streams = dict(visual=torch.randn(2, 7, 8), text=torch.randn(2, 5, 8))
    if ragged:
        streams |= dict(visual_lengths=torch.tensor([7, 4]), text_lengths=torch.tensor([2, 5]))
    return block, streams


def run_module(function, module, streams):
    """Outputs and the gradients of streams and parameters."""
    streams = {n: x.clone() for n, x in streams.items()}
    for x in streams.values():
        if x.is_floating_point():
            x.requires_grad_()
    module.zero_grad()
    visual, text = function(**streams)
    (visual.square().sum() + (3 * text).square().sum()).backward()
    results = {"visual": visual.detach(), "text": text.detach()}
    results |= {f"d{n}": x.grad for n, x in streams.items() if x.is_floating_point()}
    return results | {f"d{n}": p.grad.clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize(
    "interleave, bidirectional, ragged",
    [
        ("product-sum", False, False),
        ("product-sum", True, True),
        ("gated", False, True),
        ("gated", True, False),
    ],
)
def test_compiled_block_equals_eager(interleave, bidirectional, ragged):
    torch._dynamo.reset()
    block, streams = block_and_streams(interleave, bidirectional, ragged)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    expected = run_module(block, block, streams)
    check_equal(run_module(compiled, block, streams), expected, 1e-6)


# torch.export


class Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C, lengths):
        return selective_scan(
            u, delta, A, B, C, lengths=lengths, delta_softplus=True, backend="cpu"
        )


@pytest.mark.parametrize("strict", [False, True])
def test_exported_scan(strict):
    names = ("u", "delta", "A", "B", "C", "lengths")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    sequence = {0: batch, 1: length}
    shapes = dict(u=sequence, delta=sequence, A={}, B=sequence, C=sequence, lengths={0: batch})
    arguments = [inputs_of("selective_scan")[n] for n in names]
    program = torch.export.export(Scan(), tuple(arguments), dynamic_shapes=shapes, strict=strict)
    targets = {node.target for node in program.graph.nodes}
    assert torch.ops.cmimtl.selective_scan_fwd.default in targets
    other = inputs_of("selective_scan", batch=3, length=21, lengths=torch.tensor([21, 0, 8]))
    arguments = [other[n] for n in names]
    assert torch.equal(program.module()(*arguments), Scan()(*arguments))


@pytest.mark.parametrize("interleave", ["product-sum", "gated"])
@pytest.mark.parametrize("ragged", [False, True])
def test_exported_block(interleave, ragged):
    block, streams = block_and_streams(interleave, ragged=ragged)
    batch = torch.export.Dim("batch")
    shapes = {n: {0: batch} for n in streams}
    program = torch.export.export(block.eval(), (), kwargs=streams, dynamic_shapes=shapes)
    larger = {n: torch.cat((x, x.flip(0), x)) for n, x in streams.items()}
    with torch.no_grad():
        for actual, expected in zip(program.module()(**larger), block(**larger), strict=True):
            assert relative_l2(actual, expected) < 1e-6


# torch.func


@every_function
def test_func_grad_and_vjp(name):
    inputs = inputs_of(name)
    function = FUNCTIONS[name]
    expected = run_with_gradients(function, inputs)
    wanted = [n for n, x in inputs.items() if x is not None and x.is_floating_point()]

    def of_wanted(*tensors):
        outputs = function(**inputs | dict(zip(wanted, tensors, strict=True)))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    tensors = [inputs[n] for n in wanted]
    outputs, vjp = torch.func.vjp(of_wanted, *tensors)
    generator = torch.Generator().manual_seed(1)  # run_with_gradients' incoming gradients
    cotangents = tuple(torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in outputs)
    actual = {f"out_{i}": x for i, x in enumerate(outputs)}
    actual |= {f"d{n}": g for n, g in zip(wanted, vjp(cotangents), strict=True)}
    check_equal(actual, expected)

    def loss(*tensors):
        return sum((x * c).sum() for x, c in zip(of_wanted(*tensors), cotangents, strict=True))

    gradients = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors)
    for n, gradient in zip(wanted, gradients, strict=True):
        assert relative_l2(gradient, expected[f"d{n}"]) < 1e-6, n


def test_func_grad_of_a_block():
    block, streams = block_and_streams("product-sum")
    expected = run_module(block, block, streams)

    def loss(parameters):
        visual, text = torch.func.functional_call(block, parameters, kwargs=streams)
        return visual.square().sum() + (3 * text).square().sum()

    parameters = {n: p.detach() for n, p in block.named_parameters()}
    for n, gradient in torch.func.grad(loss)(parameters).items():
        assert relative_l2(gradient, expected[f"d{n}"]) < 1e-5, n


# Autograd


def float64_function(name, reverse, **fixed):
    """A public function of its float64 tensors alone, and these."""
    inputs = inputs_of(name, batch=2, length=5, dim=2, dtype=torch.float64, **fixed)
    wanted = [n for n, x in inputs.items() if x is not None and x.is_floating_point()]

    def function(*tensors):
        return FUNCTIONS[name](**inputs | dict(zip(wanted, tensors, strict=True)), reverse=reverse)

    return function, [inputs[n].requires_grad_() for n in wanted]


@pytest.mark.parametrize("lengths", [None, (5, 3)], ids=["all", "ragged"])
@pytest.mark.parametrize("reverse", [False, True])
@every_function
def test_gradcheck(name, reverse, lengths):
    """Of every input, the initial state too, through every output, the last state too."""
    lengths = None if lengths is None else torch.tensor(lengths)
    function, tensors = float64_function(name, reverse, lengths=lengths)
    assert torch.autograd.gradcheck(function, tensors)


@every_scan
def test_gradcheck_in_groups(name):
    function, tensors = float64_function(name, False, ngroups=2)
    assert torch.autograd.gradcheck(function, tensors)


@every_scan
def test_states_are_differentiable(name):
    """The gradient of a scan in two parts, through the state between them, is that of the whole."""
    inputs = inputs_of(name, length=12, dtype=torch.float64, lengths=None)
    sequences = [n for n in inputs if n not in ("A", "D", "delta_bias", "initial_state", "lengths")]

    def in_two(**arguments):
        outs = []
        for half in (slice(None, 5), slice(5, None)):
            part = dict(arguments)
            for n in sequences:
                steps = part[n].shape[1] // 12
                stop = None if half.stop is None else steps * half.stop
                part[n] = part[n][:, steps * half.start if half.start else None : stop]
            *out, arguments["initial_state"] = FUNCTIONS[name](**part)
            outs.append(out)
        joined = [torch.cat(pieces, 1) for pieces in zip(*outs, strict=True)]
        return *joined, arguments["initial_state"]

    whole = run_with_gradients(FUNCTIONS[name], inputs)
    check_equal(run_with_gradients(in_two, inputs), whole, 1e-12)


@every_function
def test_a_second_derivative_is_refused(name):
    inputs = inputs_of(name)
    first = next(iter(inputs.values())).requires_grad_()
    outputs = FUNCTIONS[name](**inputs)
    out = outputs[0] if isinstance(outputs, tuple) else outputs
    (gradient,) = torch.autograd.grad(out.square().sum(), first, create_graph=True)
    message = (
        "cmimtl_kernels: create_graph must be False, got a second derivative through a kernel; use"
        " backend='reference'"
    )
    with pytest.raises(NotImplementedError, match="^" + re.escape(message) + "$"):
        gradient.sum().backward()


@pytest.mark.parametrize("changed", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_a_change_in_place_is_noticed(changed):
    """What the backward pass needs must not be written meanwhile, views of it included."""
    inputs = inputs_of("selective_scan")
    out, _ = FUNCTIONS["selective_scan"](**inputs | {"u": inputs["u"].clone().requires_grad_()})
    if changed != "u":
        inputs[changed].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    else:
        u = inputs["u"].clone().requires_grad_()
        stream = u * 1
        out, _ = FUNCTIONS["selective_scan"](**inputs | {"u": stream})
        stream.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@every_scan
def test_only_what_is_asked_for_gets_a_gradient(name):
    inputs = inputs_of(name)
    inputs["B"].requires_grad_()
    outputs = FUNCTIONS[name](**inputs)
    outputs[0].sum().backward()
    assert inputs["B"].grad.shape == inputs["B"].shape
    assert all(x.grad is None for n, x in inputs.items() if n != "B" and x is not None)


# Autocast


@pytest.mark.parametrize("compiled", [False, True])
@every_function
def test_autocast(name, compiled):
    """Streams in bfloat16; weights and states as they are; gradients in the dtypes given."""
    torch._dynamo.reset()
    inputs = inputs_of(name)
    wide = {"A", "D", "delta_bias", "initial_state", "weight", "bias"}
    function = FUNCTIONS[name]
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")

    def under_autocast(**arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(**arguments)

    actual = run_with_gradients(under_autocast, inputs)
    outs = [n for n in actual if n.startswith("out_")]
    streams = outs if name == "causal_conv1d" else outs[:-1]
    assert all(actual[n].dtype == torch.bfloat16 for n in streams)
    assert all(actual[n].dtype == torch.float32 for n in actual if n not in streams)

    narrow = {n: x if x is None or n in wide or n == "lengths" else x.bfloat16()
              for n, x in inputs.items()}  # fmt: skip
    expected = run_with_gradients(FUNCTIONS[name], narrow)
    for n in actual:
        assert relative_l2(actual[n], expected[n]) < 1e-6, n


def test_autocast_leaves_float64_alone():
    inputs = inputs_of("selective_scan", dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = FUNCTIONS["selective_scan"](**inputs)
    assert out.dtype == state.dtype == torch.float64


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_of_a_stack(compiled):
    torch._dynamo.reset()
    torch.manual_seed(0)
    fusion = CrossMamba(8, 2, d_state=4, bidirectional=True, backend="cpu")
    streams = dict(visual=torch.randn(2, 7, 8), text=torch.randn(2, 5, 8))
    function = torch.compile(fusion, fullgraph=True, backend="aot_eager") if compiled else fusion
    expected = run_module(fusion, fusion, streams)

    def under_autocast(**arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(**arguments)

    actual = run_module(under_autocast, fusion, streams)
    for name, x in actual.items():
        assert x.dtype == torch.float32, name  # the residual streams and the parameters are
        assert relative_l2(x, expected[name]) < 5e-2, name
