"""The scans in Triton's interpreter against the reference.

An operation takes as long on one element as on a thousand, so what costs is programs times steps
times states. The cases are the smallest ones that reach every branch of the kernels, each loop with
more than one turn, and each mask with lanes on both sides; what one case can vary at no cost, it
varies.
"""

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
    """Few steps, channels and states: one program, one group of states and two or three chunks.

    Seven steps are a chunk of six and one more, or of the cross scan two of six and one of two.
    """
    off = dict.fromkeys(matrix.TENSOR_OPTIONS, False)
    one = {"batch": 1, "length": 7, "dim": 5, "dstate": 3}
    few = one | {"length": 3}
    valid = (0, 1, 6, 7)
    bfloat16, float16 = {"dtype": torch.bfloat16}, {"dtype": torch.float16}
    return [
        Case(op, few | {"length": 1}, SOFT),
        Case(op, few | {"length": 2, "dstate": 4}, BACK),  # all four states of a quad
        Case(op, one | off, {"reverse": True}),
        Case(op, few | off | {"D": True}, {"reverse": True}),
        Case(op, few | off | {"z": True}),
        Case(op, few | off | {"delta_bias": True}, BACK),
        Case(op, few | off | {"initial_state": True}, SOFT),
        Case(op, few | {"dstate": 1, "ngroups": 1}, SOFT),
        Case(op, few | {"dstate": 16}, BACK),  # all states of a group of the backward scan
        Case(op, few | {"dstate": 17}, SOFT),  # and one more
        # Two groups of channels, in two tiles each, of which the second has two lanes.
        Case(op, few | {"length": 2, "dim": 68, "ngroups": 2} | bfloat16, SOFT),
        Case(op, one | float16, BACK),
        Case(op, few | {"batch": 2}, SOFT, "transposed"),
        Case(op, few | {"batch": 2}, BACK, "expanded"),
        Case(op, one | {"batch": 4}, BACK, "sliced", valid),
        Case(op, one | {"batch": 4} | off, SOFT, "sliced", valid),
        Case(op, {"batch": 0}, SOFT),
        Case(op, {"length": 0}, SOFT),
    ]


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
    Case(op, {"batch": batch, "length": 14 // tokens, "dim": 5, "dstate": 4}, o, layout, lengths)
    for op, tokens in (("selective_scan", 1), ("cross_selective_scan", 2))
    for batch, o, layout, lengths in (
        (1, SOFT, "contiguous", None),
        (3, BACK, "sliced", (0, 2, 14 // tokens)),  # two samples end before the last segment
    )
] + [
    # Two groups of states, and without options.
    Case("selective_scan", {"batch": 1, "length": 13, "dim": 3, "dstate": 34}, BACK),
    Case(
        "selective_scan",
        {"batch": 1, "length": 13, "dim": 3, "dstate": 3}
        | dict.fromkeys(matrix.TENSOR_OPTIONS, False),
    ),
]


@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_split_over_time(case, split):
    matrix.check(case, backend="triton")
    assert len(split) == 2, "forward and backward"
    assert all(segments >= 3 and steps % EVERY == 0 for segments, steps in split)


def test_a_split_gives_the_same_bits_with_and_without_a_gradient(split):
    inputs = testing.scan_inputs(1, 13, 2, 2)
    soft = SOFT | {"backend": "triton"}
    with_gradient = testing.run_with_gradients(ops.selective_scan, inputs, **soft)
    assert torch.equal(with_gradient["out_0"], ops.selective_scan(**inputs, **soft))
    assert len(split) == 3


@pytest.mark.parametrize("op", matrix.SCANS)
def test_two_channels_in_a_lane(op, monkeypatch):
    """One lane has two channels, the others have one; two groups of states."""
    from cmimtl_kernels.triton import plan

    monkeypatch.setattr(plan, "channels", lambda warps, processors: 2)
    sizes = {"batch": 1, "length": 2, "dim": 33, "dstate": 34}
    matrix.check(Case(op, sizes, SOFT), backend="triton")


@pytest.mark.parametrize("op", matrix.SCANS)
def test_warps_of_64_threads(op, monkeypatch):
    from cmimtl_kernels.triton import launch

    monkeypatch.setattr(launch, "lanes_of", lambda x: 64)
    sizes = {"batch": 1, "length": 2, "dim": 66, "dstate": 5}
    matrix.check(Case(op, sizes, SOFT), backend="triton")
