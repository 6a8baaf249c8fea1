"""The Triton kernels on a device, in what the matrix of tests/kernels/test_scan.py does not ask."""

import functools

import pytest
import torch

from cmimtl_kernels import cross_selective_scan, selective_scan, testing
from tests.kernels import matrix
from tests.kernels.matrix import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

FUNCTIONS = {"selective_scan": selective_scan, "cross_selective_scan": cross_selective_scan}
SOFT = {"backend": "triton", "delta_softplus": True}


def run(function, op: str, **sizes) -> dict:
    inputs = testing.scan_inputs(**sizes, cross=op == "cross_selective_scan", device="cuda")
    return testing.run_with_gradients(function, inputs)


@pytest.mark.parametrize("op", matrix.SCANS)
def test_long_and_few_is_split(op, monkeypatch):
    from cmimtl_kernels.triton import launch

    carry = launch._carry
    splits = []
    monkeypatch.setattr(launch, "_carry", lambda *a: splits.append(a[-2]) or carry(*a))
    sizes = {"batch": 1, "length": 2049, "dim": 40}
    matrix.check(Case(op, sizes, {"delta_softplus": True}), backend="triton", device="cuda")
    assert len(splits) == 2


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("op", matrix.SCANS)
def test_each_layout(op, channels, monkeypatch):
    from cmimtl_kernels.triton import plan

    monkeypatch.setattr(plan, "channels", lambda warps, processors: channels)
    case = Case(op, {"length": 65, "dim": 130}, {"delta_softplus": True})
    matrix.check(case, backend="triton", device="cuda")


def test_tuning_changes_no_bit(monkeypatch):
    function = functools.partial(selective_scan, **SOFT)
    expected = run(function, "selective_scan", length=65, dim=130)
    monkeypatch.setenv("CMIMTL_TRITON_AUTOTUNE", "1")
    actual = run(function, "selective_scan", length=65, dim=130)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("op", matrix.SCANS)
def test_the_same_bits_on_every_run(op):
    function = functools.partial(FUNCTIONS[op], **SOFT)
    first, *others = (run(function, op, length=577, dim=130) for _ in range(5))
    assert all(torch.equal(other[key], first[key]) for other in others for key in first)


@pytest.mark.parametrize("op", matrix.SCANS)
def test_compiles_in_full(op):
    torch._dynamo.reset()
    function = functools.partial(FUNCTIONS[op], **SOFT)
    compiled = torch.compile(function, fullgraph=True)
    actual, expected = (run(f, op, length=33, dim=16) for f in (compiled, function))
    for key in expected:
        assert testing.relative_l2(actual[key], expected[key]) < 1e-6, key
