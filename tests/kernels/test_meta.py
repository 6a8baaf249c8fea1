"""On the meta device, and on fake tensors, a call gives what it gives elsewhere but the values."""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cmimtl_kernels import (
    CrossMamba,
    CrossMambaBlock,
    causal_conv1d,
    compiled,
    cross_selective_scan,
    selective_scan,
    testing,
)
from cmimtl_kernels.compat import mamba_ssm

FUNCTIONS = {
    "selective_scan": functools.partial(selective_scan, return_last_state=True),
    "cross_selective_scan": functools.partial(cross_selective_scan, return_last_state=True),
    "causal_conv1d": causal_conv1d,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
backends = pytest.mark.parametrize("backend", ["auto", "cuda", "triton", "cpu", "reference"])
META = torch.device("meta")


def described(x):
    return tuple(x.shape), x.dtype, x.stride(), x.requires_grad


def inputs_of(name, **options):
    sizes = dict(batch=2, length=9, dim=4, lengths=torch.tensor([9, 5])) | options
    if name == "causal_conv1d":
        return testing.conv_inputs(**sizes)
    return testing.scan_inputs(**sizes, dstate=3, cross=name == "cross_selective_scan")


def outputs_and_gradients(function, inputs):
    """What the results, and the gradients of all inputs that have one, look like."""
    leaves = {
        n: x.detach().requires_grad_() if x is not None and x.is_floating_point() else x
        for n, x in inputs.items()
    }
    outs = function(**leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    wanted = [x for x in leaves.values() if x is not None and x.requires_grad]
    grads = torch.autograd.grad(outs, wanted, [torch.ones_like(out) for out in outs])
    return [described(x) for x in (*outs, *grads)]


def on_meta(inputs):
    return {n: None if x is None else x.to(META) for n, x in inputs.items()}


@every_function
@backends
@pytest.mark.parametrize("built", [True, False])
def test_ops(name, backend, built, monkeypatch):
    """Under every backend's name, and where no library was built."""
    expected = outputs_and_gradients(FUNCTIONS[name], inputs_of(name))
    if not built:
        monkeypatch.setattr(compiled, "_MISSING", dict.fromkeys(("cpu", "cuda"), "not built"))
    function = functools.partial(FUNCTIONS[name], backend=backend)
    assert outputs_and_gradients(function, on_meta(inputs_of(name))) == expected


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_strides_and_dtypes(name, dtype):
    """A stream that lies channels first, as convolutions leave it, has results that do."""

    def channels_first(inputs):
        wide = ("A", "D", "weight", "bias", "delta_bias", "lengths", "initial_state")
        return {
            n: x if x is None or n in wide else x.transpose(1, 2).contiguous().transpose(1, 2)
            for n, x in inputs.items()
        }

    inputs = channels_first(inputs_of(name, dtype=dtype))
    expected = outputs_and_gradients(FUNCTIONS[name], inputs)
    assert outputs_and_gradients(FUNCTIONS[name], on_meta(inputs)) == expected


@every_function
def test_autocast_has_no_influence(name):
    inputs = on_meta(inputs_of(name))
    expected = outputs_and_gradients(FUNCTIONS[name], inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert outputs_and_gradients(FUNCTIONS[name], inputs) == expected


def streams(device):
    shapes = (2, 7, 8), (2, 5, 8)
    return (*(torch.randn(s, device=device) for s in shapes), torch.tensor([7, 4], device=device))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("interleave", ["product-sum", "gated"])
def test_blocks(interleave, bidirectional, recompute):
    found = []
    for device in (torch.device("cpu"), META):
        with device:
            stack = CrossMamba(
                8, 2, interleave=interleave, bidirectional=bidirectional, recompute=recompute
            )
        outs = stack(*streams(device))
        sum(x.sum() for x in outs).backward()
        assert {p.device for p in stack.parameters()} == {device}
        found.append([described(x) for x in (*outs, *(p.grad for p in stack.parameters()))])
    assert found[0] == found[1]


@pytest.mark.parametrize("lengths", ["a tensor", "a list"])
def test_blocks_on_fake_tensors(lengths):
    with FakeTensorMode():
        visual, text, valid = streams("cpu")
        valid = [7, 4] if lengths == "a list" else valid
        out_v, out_t = CrossMambaBlock(8)(visual, text, valid)
    assert (out_v.shape, out_t.shape) == (visual.shape, text.shape)


def test_a_block_made_on_meta_is_initialised_later():
    torch.manual_seed(0)
    expected = CrossMambaBlock(8, bidirectional=True).state_dict()
    block = CrossMambaBlock(8, bidirectional=True, device=META).to_empty(device="cpu")
    block.load_state_dict(expected)
    for name, x in block.state_dict().items():
        assert torch.equal(x, expected[name]) and x.dtype == expected[name].dtype, name


def test_an_empty_model_of_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    with accelerate.init_empty_weights():
        block = CrossMambaBlock(8, bidirectional=True)
    assert {p.device for p in block.parameters()} == {META}
    marked = {n for n, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "A_b_log", "D", "D_b"}


def test_the_functions_of_mamba_ssm():
    sizes = dict(u=(2, 4, 9), delta=(2, 4, 9), A=(4, 3), B=(2, 3, 9), C=(4, 3))
    found = []
    for device in ("cpu", META):
        inputs = {n: torch.rand(s, device=device) for n, s in sizes.items()}
        function = functools.partial(mamba_ssm.selective_scan_fn, return_last_state=True)
        found.append(outputs_and_gradients(function, inputs))
        conv = dict(x=(2, 4, 9), weight=(4, 3), bias=(4,))
        inputs = {n: torch.rand(s, device=device) for n, s in conv.items()}
        found.append(outputs_and_gradients(mamba_ssm.causal_conv1d_fn, inputs))
    assert found[:2] == found[2:]
