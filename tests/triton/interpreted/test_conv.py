"""The convolution in Triton's interpreter: every branch, and tiles that are not full."""

import pytest
import torch

from tests.kernels import matrix
from tests.kernels.matrix import Case

pytestmark = pytest.mark.usefixtures("interpreted")

OP = "causal_conv1d"
SILU = {"activation": "silu"}
BACK = {"activation": "silu", "reverse": True}
VALID = (0, 1, 2, 31, 40)
CASES = [
    Case(OP, {"length": 1, "dim": 9}, SILU),
    Case(OP, {"length": 3, "dim": 1}, BACK),  # fewer steps than weights
    Case(OP, {"length": 32, "dim": 64}, SILU),  # a full tile, and one more of each
    Case(OP, {"batch": 1, "length": 33, "dim": 65}, BACK),
    Case(OP, {"width": 1, "length": 20}, BACK),
    Case(OP, {"width": 9, "length": 20}, SILU),
    Case(OP),
    Case(OP, {"bias": False}, {"reverse": True}),
    Case(OP, {"dtype": torch.bfloat16, "dim": 24}, SILU, "contiguous", (33, 5)),
    Case(OP, {"dtype": torch.float16, "dim": 24}, BACK, "contiguous", (33, 5)),
    Case(OP, {"batch": 5, "length": 40, "dim": 11}, BACK, "sliced", VALID),
    Case(OP, {"batch": 5, "length": 40, "dim": 11}, SILU, "transposed", VALID),
    Case(OP, {"length": 20, "dim": 11}, BACK, "expanded"),
    Case(OP, {"batch": 0}, SILU),
    Case(OP, {"length": 0}, SILU),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    matrix.check(case, backend="triton")
