"""The Triton ops under PyTorch's transforms, interpreted: opcheck, compile, export."""

import functools

import pytest
import torch

from cmimtl_kernels import causal_conv1d, cross_selective_scan, selective_scan, testing
from cmimtl_kernels.registration import SCHEMAS
from cmimtl_kernels.triton import NAMESPACE

pytestmark = pytest.mark.usefixtures("interpreted")

# One chunk: a checkpoint that no valid step follows is undefined, and nothing to compare.
EVERY = 6
SOFT = {"backend": "triton", "delta_softplus": True}
FUNCTIONS = {
    "selective_scan": functools.partial(selective_scan, return_last_state=True, **SOFT),
    "cross_selective_scan": functools.partial(cross_selective_scan, return_last_state=True, **SOFT),
    "causal_conv1d": functools.partial(causal_conv1d, backend="triton", activation="silu"),
}


def inputs_of(name: str, length: int = 3, batch: int = 1):
    valid = torch.tensor([length - 1] * batch)
    if name == "causal_conv1d":
        return testing.conv_inputs(batch, length, 3, lengths=valid)
    cross = name == "cross_selective_scan"
    return testing.scan_inputs(batch, length, 3, 2, cross=cross, ngroups=1, lengths=valid)


@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(name):
    public, direction = name.rsplit("_", 1)
    tensors = list(inputs_of(public).values())
    options = (True, True) if public == "causal_conv1d" else (True, True, EVERY)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    if direction == "fwd":
        for x in tensors:
            if x.is_floating_point():
                x.requires_grad_()
        sample = (*tensors, *options)
    elif public == "causal_conv1d":
        sample = (torch.randn_like(tensors[0]), *tensors, *options)
    else:
        forward = getattr(getattr(torch.ops, NAMESPACE), f"{public}_fwd")
        *outs, last, checkpoints = forward(*tensors, *options)
        grads = [torch.randn_like(x) for x in (*outs, last)]
        sample = (*grads, *tensors, checkpoints, *options)
    # With dynamic shapes the same is traced again: the fake kernels are those of every namespace.
    checks = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_static",
    )
    torch.library.opcheck(op, sample, test_utils=checks)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_function_equals_eager(name):
    torch._dynamo.reset()
    inputs = inputs_of(name)
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    actual = testing.run_with_gradients(compiled, inputs)
    expected = testing.run_with_gradients(FUNCTIONS[name], inputs)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


class Scan(torch.nn.Module):
    def forward(self, u, delta, A, B, C):
        return selective_scan(u, delta, A, B, C, **SOFT)


def test_exported_scan():
    names = ("u", "delta", "A", "B", "C")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    sequence = {0: batch, 1: length}
    shapes = dict(u=sequence, delta=sequence, A={}, B=sequence, C=sequence)
    inputs = inputs_of("selective_scan", batch=2)
    program = torch.export.export(Scan(), tuple(inputs[n] for n in names), dynamic_shapes=shapes)
    targets = {node.target for node in program.graph.nodes}
    assert getattr(torch.ops, NAMESPACE).selective_scan_fwd.default in targets
    other = inputs_of("selective_scan", length=5, batch=1)
    arguments = [other[n] for n in names]
    assert torch.equal(program.module()(*arguments), Scan()(*arguments))
