"""NaN and infinities in Triton's interpreter: see tests/kernels/values.py.

With CMIMTL_VALUES=100, so many calls of each scan are drawn beside those that reach every mask.
"""

import os

import pytest

from tests.kernels import matrix, values
from tests.kernels.values import INF, Call

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]

DRAWN = int(os.environ.get("CMIMTL_VALUES", "0"))
# Lanes without a channel and states past the last one compute with zeros, which an infinity that
# they share with others makes NaN.
SHARED = {
    "an input, without D": [(0, 1, INF)],
    "a gradient, without D": [("dout_0", 1, -INF)],
    "B and C": [("B", 0, INF), ("C", 1, -INF)],
    "a step size": [("delta", 1, INF)],
    "A, in one state": [("A", 1, -INF), ("A", 8, 0b10001)],
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("op", matrix.SCANS)
def test_special_values_stay_with_those_that_read_them(op, name):
    sizes = {"batch": 1, "length": 2, "dim": 3, "dstate": 3}
    sizes["length"] //= 2 if op == "cross_selective_scan" else 1
    case = matrix.Case(op, sizes | dict.fromkeys(matrix.TENSOR_OPTIONS, False))
    first = "v" if op == "cross_selective_scan" else "u"
    specials = [(first if n == 0 else n, place, value) for n, place, value in SHARED[name]]
    Call(case, specials).check("triton")


@pytest.mark.parametrize("op", matrix.SCANS)
def test_special_values_in_scans_that_are_drawn(op):
    for seed in range(DRAWN or 1):
        values.draw(op, seed, matrix.DTYPES[:3], most=3).check("triton")


def test_special_values_in_convolutions_that_are_drawn():
    for seed in range(max(DRAWN, 15)):
        values.draw("causal_conv1d", seed, matrix.DTYPES[:3]).check("triton")
