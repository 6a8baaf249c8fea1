"""The scans in Triton's interpreter against the reference; few steps, as each costs ~10 ms."""

import pytest
import torch

from cmimtl_kernels import ops, testing
from tests.kernels import matrix
from tests.kernels.matrix import Case
from tests.triton.interpreted.conftest import EVERY

pytestmark = pytest.mark.usefixtures("interpreted")

SOFT = {"delta_softplus": True}
BACK = {"delta_softplus": True, "reverse": True}


def cases(op: str) -> list[Case]:
    """The matrix in small; a checkpoint every four steps, so seven steps are two or four chunks."""
    off = dict.fromkeys(matrix.TENSOR_OPTIONS, False)
    one = {"batch": 1, "length": 7, "dim": 5}
    cases = [Case(op, one | {"length": n, "dstate": 4}, o) for n in (1, 2, 4) for o in (SOFT, BACK)]
    cases += [Case(op, one | {"length": 19, "dim": 70}, SOFT)]  # several tiles of channels
    cases += [Case(op, one | {"length": 3, "dstate": n}, SOFT) for n in (1, 2, 17, 40)]
    cases += [Case(op, one | {"length": 3, "dim": 6, "ngroups": g}, SOFT) for g in (1, 3)]
    cases += [Case(op, one | off, o) for o in ({}, {"reverse": True})]
    cases += [Case(op, one | off | {"length": 3, name: True}) for name in matrix.TENSOR_OPTIONS]
    for dtype in (torch.bfloat16, torch.float16):
        cases += [Case(op, one | {"dtype": dtype, "dim": 33}, o) for o in (SOFT, BACK)]
    cases += [
        Case(op, {"length": 4, "dim": 6}, SOFT, layout)
        for layout in ("sliced", "transposed", "expanded")
    ]
    valid = (0, 1, 4, 7)
    sizes = {"batch": 4, "length": 7, "dim": 5, "dstate": 3}
    cases += [Case(op, sizes | s, o, "sliced", valid) for s in ({}, off) for o in (SOFT, BACK)]
    return [*cases, Case(op, {"batch": 0}, SOFT), Case(op, {"length": 0}, SOFT)]


CASES = [case for op in matrix.SCANS for case in cases(op)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    matrix.check(case, backend="triton")


@pytest.fixture
def split(monkeypatch):
    """Scans are split over time; -> the (segments, steps of one) of each split."""
    from cmimtl_kernels.triton import launch, plan

    monkeypatch.setattr(launch, "processors_of", lambda x: 100)
    monkeypatch.setattr(plan, "FEWEST_STEPS", 3)
    carry = launch._carry
    splits = []
    monkeypatch.setattr(launch, "_carry", lambda *a: splits.append(a[-2:]) or carry(*a))
    return splits


SPLIT = [
    Case(op, {"batch": batch, "length": 22 // steps, "dim": 5, "dstate": n}, o, layout, lengths)
    for op, steps in (("selective_scan", 2), ("cross_selective_scan", 4))
    for batch, n, o, layout, lengths in (
        (1, 4, SOFT, "contiguous", None),
        (3, 4, BACK, "sliced", (0, 3, 22 // steps)),  # two samples end before the last segment
    )
] + [
    Case("selective_scan", {"batch": 1, "length": 9, "dim": 3, "dstate": 34}, BACK),
    Case("selective_scan", dict.fromkeys(matrix.TENSOR_OPTIONS, False) | {"length": 9, "dim": 3}),
]


@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_split_over_time(case, split):
    matrix.check(case, backend="triton")
    assert len(split) == 2, "forward and backward"
    assert all(segments >= 3 and steps % EVERY == 0 for segments, steps in split)


def test_a_split_gives_the_same_bits_with_and_without_a_gradient(split):
    inputs = testing.scan_inputs(1, 10, 5, 4)
    soft = SOFT | {"backend": "triton"}
    with_gradient = testing.run_with_gradients(ops.selective_scan, inputs, **soft)
    assert torch.equal(with_gradient["out_0"], ops.selective_scan(**inputs, **soft))
    assert len(split) == 3


@pytest.mark.parametrize("op", matrix.SCANS)
@pytest.mark.parametrize("sizes", [{"dim": 33}, {"dim": 6, "dstate": 34, "ngroups": 2}], ids=str)
def test_two_channels_in_a_lane(op, sizes, monkeypatch):
    from cmimtl_kernels.triton import plan

    monkeypatch.setattr(plan, "channels", lambda warps, processors: 2)
    matrix.check(Case(op, {"batch": 1, "length": 3} | sizes, SOFT), backend="triton")


@pytest.mark.parametrize("op", matrix.SCANS)
def test_warps_of_64_threads(op, monkeypatch):
    from cmimtl_kernels.triton import launch

    monkeypatch.setattr(launch, "lanes_of", lambda x: 64)
    matrix.check(Case(op, {"batch": 1, "length": 3, "dim": 70}, SOFT), backend="triton")
