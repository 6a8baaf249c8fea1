"""What needs the tensors of a GPU, but neither their data nor a GPU: tracing and the choice."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from cmimtl_kernels import backends, causal_conv1d, cross_selective_scan, selective_scan, testing

FUNCTIONS = {
    "selective_scan": selective_scan,
    "cross_selective_scan": cross_selective_scan,
    "causal_conv1d": causal_conv1d,
}


@pytest.fixture
def triton_available(monkeypatch):
    backend = dataclasses.replace(backends.BACKENDS["triton"], unavailable=lambda: None)
    monkeypatch.setitem(backends.BACKENDS, "triton", backend)


def fake_cuda(name: str) -> dict:
    """Arguments without data, on a GPU; inside a FakeTensorMode."""
    if name == "causal_conv1d":
        inputs = testing.conv_inputs(2, 9, 4)
    else:
        inputs = testing.scan_inputs(2, 9, 4, 3, cross=name == "cross_selective_scan", ngroups=1)
    device = {"device": "cuda"}
    return {n: x if x is None else torch.empty_like(x, **device) for n, x in inputs.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_traces_to_one_triton_op(name, triton_available):
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = {n: x for n, x in fake_cuda(name).items() if x is not None}

        def call(*tensors):
            return FUNCTIONS[name](**dict(zip(inputs, tensors, strict=True)), backend="triton")

        graph = make_fx(call)(*inputs.values())
        out = call(*inputs.values())
        out = out[0] if isinstance(out, tuple) else out
        first = next(iter(inputs.values()))
        assert (out.device.type, out.shape, out.stride()) == ("cuda", first.shape, first.stride())
    ops = [str(n.target) for n in graph.graph.nodes if "cmimtl" in str(n.target)]
    assert ops == [f"cmimtl_triton.{name}_fwd.default"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_have_the_shapes_of_what_they_are_of(name):
    # Through the op: autograd itself asks a device for its streams, even for fake tensors.
    backward = getattr(torch.ops.cmimtl_triton, f"{name}_bwd")
    forward = getattr(torch.ops.cmimtl_triton, f"{name}_fwd")
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = list(fake_cuda(name).values())
        if name == "causal_conv1d":
            grads = backward(forward(*tensors, True, False), *tensors, True, False)
        else:
            *outs, last, checkpoints = forward(*tensors, True, False, 4)
            grads = backward(*outs, last, *tensors, checkpoints, True, False, 4)
        wanted = [x for x in tensors if x is not None]
        assert [g.shape for g in grads[: len(wanted)]] == [x.shape for x in wanted]
        assert all(g.device.type == "cuda" for g in grads)


def test_the_choice_is_explained(triton_available, monkeypatch):
    call = backends.Call("selective_scan", "cuda", torch.float32, dstate=16)
    assert backends.explain(call)["triton"] == []
    reasons = backends.explain(call._replace(dtype=torch.float64, dstate=300))["triton"]
    assert len(reasons) == 2
    assert "float64" in reasons[0] and "256" in reasons[1]
    inputs = testing.scan_inputs(1, 3, 4, 300, dtype=torch.float64)
    with pytest.raises(NotImplementedError) as raised:
        selective_scan(**inputs, backend="triton")
    for reason in ("the inputs are on cpu", "the inputs are float64", "dstate up to 256, got 300"):
        assert reason in str(raised.value)
