"""The package causal_conv1d as a backend: on a GPU itself, elsewhere the adapter to it.

Without a GPU a stand-in takes the package's place: a convolution in plain PyTorch that has the
package's signatures and refuses the layouts that the package refuses, or reads wrongly. It tests
what the adapter hands over and hands back, and nothing of the package.
"""

import dataclasses
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from cmimtl_kernels import backends, causal_conv1d, causal_conv1d_package, testing
from tests.kernels import matrix

BACKEND = backends.BACKENDS["causal_conv1d"]
CASES = [
    case
    for case in matrix.conv_cases()
    if case.lengths is None
    and not case.options.get("reverse")
    and case.sizes.get("width", 4) in (2, 3, 4)
    and case.sizes.get("dtype") != torch.float64
]
# Channels last needs dims that are multiples of 8.
CASES += [
    matrix.Case(
        "causal_conv1d", {"dim": 16, "length": n, "dtype": dtype}, {"activation": a}, layout
    )
    for n in (1, 2, 8, 33)
    for dtype, a in ((torch.float32, "silu"), (torch.bfloat16, None))
    for layout in ("contiguous", "sliced", "transposed", "expanded")
]


@pytest.mark.gpu
@pytest.mark.skipif(BACKEND.unavailable() is not None, reason=str(BACKEND.unavailable()))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_package_matches_reference(case):
    matrix.check(case, backend="causal_conv1d", device="cuda")


# The stand-in


def _require_layout(x: torch.Tensor, channels_last: bool) -> None:
    batch, dim, length = x.stride()
    assert x.data_ptr() % 16 == 0  # the package loads vectors of 16 bytes, and does not check
    if channels_last:
        assert dim == 1 and length > 1
        assert x.shape[1] % 8 == 0 and length % 8 == 0 and batch % 8 == 0
    else:
        assert length == 1 and x.is_contiguous()  # it checks the stride alone


def _convolve(x, weight, bias):
    """-> the sums before the activation, and what x was padded to."""
    assert x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    assert weight.dtype == torch.float32 and weight.shape == (x.shape[1], weight.shape[1])
    assert 2 <= weight.shape[1] <= 4
    if bias is not None:
        assert bias.dtype == weight.dtype and bias.shape == weight.shape[:1]
    padded = F.pad(x.float(), (weight.shape[1] - 1, 0))
    return F.conv1d(padded, weight[:, None], bias, groups=weight.shape[0]), padded


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    assert activation in (None, "silu", "swish")
    assert seq_idx is initial_states is final_states_out is None and not return_final_states
    _require_layout(x, x.stride(1) == 1 and x.stride(2) > 1)
    out, _ = _convolve(x, weight, bias)
    out = out if activation is None else F.silu(out)
    return torch.empty_like(x).copy_(out)


def causal_conv1d_bwd_function(
    x,
    weight,
    bias,
    dout,
    seq_idx,
    initial_states,
    dfinal_states,
    dx,
    return_dinitial_states,
    silu_activation,
):
    assert seq_idx is initial_states is dfinal_states is dx is None and not return_dinitial_states
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    _require_layout(x, channels_last)
    _require_layout(dout, channels_last)
    assert bias is None or bias.stride() == (1,)
    out, padded = _convolve(x, weight, bias)
    d = dout.float()
    if silu_activation:
        gate = out.sigmoid()
        d = d * gate * (1 + out * (1 - gate))
    dim, width = weight.shape
    dx = torch.nn.grad.conv1d_input(padded.shape, weight[:, None], d, groups=dim)[..., width - 1 :]
    dweight = torch.nn.grad.conv1d_weight(padded, (dim, 1, width), d, groups=dim)[:, 0]
    dbias = None if bias is None else d.sum((0, 2))
    return torch.empty_like(x).copy_(dx), torch.empty_like(weight).copy_(dweight), dbias, None


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 5, 9).transpose(1, 2),  # channels last, but 9 of them
        torch.zeros(2, 5, 12)[..., :8].transpose(1, 2),  # a step is 12 elements
        torch.zeros(2, 8, 6)[..., :5],  # channels first, not contiguous
        torch.zeros(81)[1:].view(2, 8, 5),  # misaligned
    ],
    ids=["dim", "stride", "slice", "misaligned"],
)
def test_stand_in_refuses_other_layouts(x):
    with pytest.raises(AssertionError):
        causal_conv1d_fn(x, torch.zeros(x.shape[1], 4))


@pytest.fixture(scope="module")
def _on_cpu():
    library = torch.library.Library(causal_conv1d_package.NAMESPACE, "IMPL")
    for name in ("causal_conv1d_fwd", "causal_conv1d_bwd"):
        library.impl(name, getattr(causal_conv1d_package, name), "CPU")
    yield
    library._destroy()


@pytest.fixture
def stand_in(_on_cpu, monkeypatch):
    """backend="causal_conv1d" takes CPU tensors, and the stand-in is the package."""
    package, functions = ModuleType("causal_conv1d"), ModuleType("causal_conv1d.cpp_functions")
    package.causal_conv1d_fn = causal_conv1d_fn
    functions.causal_conv1d_bwd_function = causal_conv1d_bwd_function
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    monkeypatch.setitem(sys.modules, "causal_conv1d.cpp_functions", functions)
    backend = dataclasses.replace(BACKEND, devices=("cpu",), unavailable=lambda: None)
    monkeypatch.setitem(backends.BACKENDS, "causal_conv1d", backend)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adapter_matches_reference(stand_in, case):
    matrix.check(case, backend="causal_conv1d")


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dim", [9, 16])
def test_adapter_keeps_the_strides_of_dense_inputs(stand_in, dim, layout):
    inputs = testing.conv_inputs(dim=dim)
    inputs["x"] = testing.with_layout(inputs["x"], layout)
    out = causal_conv1d(**inputs, backend="causal_conv1d")
    assert out.stride() == inputs["x"].stride()


def test_adapter_copies_misaligned_inputs(stand_in):
    inputs = testing.conv_inputs(dim=16)
    x = inputs["x"]
    inputs["x"] = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    testing.check_op("causal_conv1d", inputs, backend="causal_conv1d")


@pytest.mark.parametrize("bias", [True, False])
def test_adapter_is_a_sound_op(stand_in, bias):
    inputs = testing.conv_inputs(dim=8, bias=bias)
    x, weight = inputs["x"].requires_grad_(), inputs["weight"].requires_grad_()
    op = getattr(torch.ops, causal_conv1d_package.NAMESPACE).causal_conv1d_fwd.default
    torch.library.opcheck(op, (x, weight, inputs["bias"], None, True, False))


# Who runs it


def only(monkeypatch, *names: str) -> None:
    """Of what runs on a GPU, these alone can be used."""
    for name in ("cuda", "triton", "causal_conv1d"):
        missing = None if name in names else "not here"
        backend = dataclasses.replace(backends.BACKENDS[name], unavailable=lambda why=missing: why)
        monkeypatch.setitem(backends.BACKENDS, name, backend)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"width": 5}, "takes a width of 2, 3 or 4, got 5"),
        ({"width": 1}, "takes a width of 2, 3 or 4, got 1"),
        ({"lengths": True}, "takes no lengths"),
        ({"reverse": True}, "has no reverse"),
        ({"dtype": torch.float64}, "takes float32, bfloat16, float16, the inputs are float64"),
        ({"op": "selective_scan"}, "implements only causal_conv1d"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_it_cannot_run_is_refused_by_name_and_passed_over_by_auto(
    monkeypatch, changed, reason
):
    only(monkeypatch, "causal_conv1d")
    call = backends.Call("causal_conv1d", "cuda", torch.float32, width=4)
    assert backends.choose("causal_conv1d", call).name == backends.auto(call) == "causal_conv1d"
    call = call._replace(**changed)
    assert backends.auto(call) == "reference"
    with pytest.raises(NotImplementedError) as raised:
        backends.choose("causal_conv1d", call)
    assert str(raised.value) == f"{call.op}: backend 'causal_conv1d' cannot run this: {reason}"


@pytest.mark.parametrize("ours", ["cuda", "triton"])
def test_our_own_kernels_come_before_it(monkeypatch, ours):
    only(monkeypatch, ours, "causal_conv1d")
    assert backends.auto(backends.Call("causal_conv1d", "cuda", torch.float32, width=4)) == ours


def test_options_reach_the_choice():
    inputs = testing.conv_inputs(width=5, lengths=torch.tensor([33, 5]))
    with pytest.raises(NotImplementedError) as raised:
        causal_conv1d(**inputs, reverse=True, backend="causal_conv1d")
    for reason in ("the inputs are on cpu", "got 5", "takes no lengths", "has no reverse"):
        assert reason in str(raised.value)


@pytest.mark.parametrize("which", ["fwd", "bwd"])
def test_the_op_itself_refuses_what_the_package_has_not(stand_in, which):
    op = getattr(getattr(torch.ops, causal_conv1d_package.NAMESPACE), f"causal_conv1d_{which}")
    x, weight = torch.zeros(1, 4, 8), torch.zeros(8, 4)
    gradient = (x,) if which == "bwd" else ()
    with pytest.raises(
        NotImplementedError, match=rf"causal_conv1d_{which}: .* this: takes no lengths; has no rev"
    ):
        op(*gradient, x, weight, None, torch.tensor([4]), False, True)
