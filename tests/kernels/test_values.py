"""NaN, infinities and errors of rounding, in every argument of every op: see values.py.

With CMIMTL_VALUES=10000, so many calls are drawn for each op and target.
"""

import os

import pytest
import torch

from cmimtl_kernels import reference, testing
from tests.kernels import matrix, values
from tests.kernels.test_scan import NO_CUDA, on_every_target
from tests.kernels.values import INF, NAN, Call

TARGETS = [
    pytest.param("reference", "cpu", id="reference"),
    pytest.param("reference, double", "cpu", id="reference in double precision"),
    pytest.param("cpu", "cpu", id="cpu"),
    pytest.param("cuda", "cuda", id="cuda", marks=[pytest.mark.gpu, NO_CUDA]),
    pytest.param("triton", "cuda", id="triton", marks=[pytest.mark.gpu, NO_CUDA]),
]
on_all_targets = pytest.mark.parametrize("backend, device", TARGETS)
on_every_op = pytest.mark.parametrize("op", values.OPS)
DRAWN = int(os.environ.get("CMIMTL_VALUES", "100"))


def dtypes_of(device: str) -> tuple[torch.dtype, ...]:
    return matrix.DTYPES if device == "cpu" else matrix.DTYPES[:3]


@on_all_targets
@on_every_op
def test_a_special_value_in_each_argument(op, backend, device):
    for k, (case, name) in enumerate(alone(op)):
        for value in (INF, -INF, (1 + 7 * k) % 32):
            Call(case, [(name, 1 + 5 * k, value)], seed=k).check(backend, device)


def alone(op: str) -> list[tuple[matrix.Case, str]]:
    """Each argument of a call with all options and padding, and of one with none."""
    soft = {"activation": "silu"} if op == "causal_conv1d" else {"delta_softplus": True}
    off = {"bias": False} if op == "causal_conv1d" else dict.fromkeys(matrix.TENSOR_OPTIONS, False)
    few = {"length": 9, "dim": 5} | ({} if op == "causal_conv1d" else {"dstate": 3})
    cases = [
        matrix.Case(op, few, soft | {"reverse": True}, lengths=(9, 6)),
        matrix.Case(op, few | off),
    ]
    return [(case, name) for case in cases for name in values.arguments(case)]


@on_all_targets
@on_every_op
def test_special_values_in_calls_that_are_drawn(op, backend, device):
    for seed in range(DRAWN):
        values.draw(op, seed, dtypes_of(device)).check(backend, device)


@on_every_target
@pytest.mark.parametrize("op", matrix.SCANS)
def test_every_nan_in_A(op, backend, device):
    """Whatever its bits: the fast exponential of a chunk would make numbers of some."""
    sizes = {"length": 9, "dim": 5, "dstate": 3}
    for payload in range(32):
        case = matrix.Case(op, sizes, {"delta_softplus": payload % 2 == 0})
        Call(case, [("A", payload, payload)], seed=payload).check(backend, device)


def test_the_payloads_are_different_nans():
    for dtype in matrix.DTYPES:
        bits = [values.nan(payload, dtype) for payload in range(32)]
        assert all(x.isnan() for x in bits)
        whole = (
            torch.int16 if dtype.itemsize == 2 else {4: torch.int32, 8: torch.int64}[dtype.itemsize]
        )
        assert len({x.view(whole).item() for x in bits}) > 20
        assert {x.view(whole).item() < 0 for x in bits} == {True, False}


# What the loop in float64 and the reference are to say, worked out by hand


@pytest.mark.parametrize("lengths", [None, (3,)])
def test_a_state_that_is_forgotten_at_once(lengths):
    """A = -infinity: the decay is 0, and a padded step, of size 0, is none."""
    inputs = {n: torch.ones(1, 5, 1, dtype=torch.float64) for n in ("u", "delta", "B", "C")}
    inputs["u"][0, :, 0] = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0])
    inputs["A"] = torch.full((1, 1), -INF, dtype=torch.float64)
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    given = None if lengths is None else torch.tensor(lengths)
    out, last = reference.selective_scan(**leaves, lengths=given, return_last_state=True)
    out.sum().backward()
    zeros = [0.0] * (2 if lengths else 0)
    assert out.flatten().tolist() == [2.0, 3.0, 5.0, 7.0, 11.0][: 5 - len(zeros)] + zeros
    assert last.item() == (5 if lengths else 11)
    assert leaves["u"].grad.flatten().tolist() == [1.0] * (5 - len(zeros)) + zeros
    assert leaves["A"].grad.item() == 0
    # The gradient by the step size has the term A * 0, which is NaN.
    assert leaves["delta"].grad.flatten().isnan().tolist() == [
        x != 0 for x in out.flatten().tolist()
    ]


def test_a_step_of_size_0_with_an_infinite_A_is_nan():
    one = torch.ones(1, 2, 1)
    delta = torch.tensor([[[1.0], [0.0]]])
    out = reference.selective_scan(one, delta, torch.full((1, 1), -INF), one, one).flatten()
    assert out[0] == 1 and out[1].isnan()


def test_silu_and_softplus_at_infinity_are_torchs():
    x = torch.tensor([INF, -INF, NAN, 1e4, -1e4, 0.0], dtype=torch.float64, requires_grad=True)
    for function, ours in (
        (torch.nn.functional.silu, values.silu),
        (torch.nn.functional.softplus, values.softplus),
    ):
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        for mine, theirs in zip(ours(x.detach()), (y, slope), strict=True):
            assert torch.equal(mine.nan_to_num(7), theirs.detach().nan_to_num(7))
            assert torch.equal(mine.isnan(), theirs.isnan())


@pytest.mark.parametrize("wrong", [NAN, INF, -INF, 1.1])
def test_a_difference_is_seen(wrong):
    wanted = torch.tensor([1.0, 2.0, INF, NAN], dtype=torch.float64)
    assert not values.difference(wanted.float(), wanted)
    for place in range(4):
        actual = wanted.clone()
        actual[place] = wrong
        same = torch.equal(actual.nan_to_num(7), wanted.nan_to_num(7))
        assert bool(values.difference(actual.float(), wanted)) != same


# Errors of rounding


@on_every_target
@pytest.mark.parametrize("dtype", matrix.DTYPES[:3], ids=str)
@on_every_op
def test_errors_do_not_grow_with_any_size(op, dtype, backend, device):
    for case in values.growth_cases(op, dtype):
        values.check_growth(case, backend, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [256, 4096])
def test_a_sum_that_is_rounded_at_every_addition_is_out_of_bounds(dtype, count):
    terms = torch.randn(count, 64, generator=torch.Generator().manual_seed(0)).double()
    exact, total = terms.sum(0), torch.zeros(64, dtype=dtype)
    for term in terms:
        total = (total.float() + term.float()).to(dtype)
    limit = values.ROUNDED_ONCE[dtype]
    assert testing.relative_l2(exact.to(dtype), exact) < limit / 2
    assert testing.relative_l2(total, exact) > 2 * limit
