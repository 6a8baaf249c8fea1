"""NaN and infinities in every argument of the CUDA ops, and errors of rounding: see
tests/kernels/values.py."""

import os

import pytest

from tests.kernels import matrix, values
from tests.kernels.test_values import alone, on_every_op
from tests.kernels.values import INF, Call

pytestmark = pytest.mark.usefixtures("cuda_on_cpu")
DRAWN = int(os.environ.get("CMIMTL_VALUES", "40"))


@on_every_op
def test_a_special_value_in_each_argument(op):
    for k, (case, name) in enumerate(alone(op)):
        for value in (INF, -INF, (1 + 7 * k) % 32):
            Call(case, [(name, 1 + 5 * k, value)], seed=k).check("cuda")


@on_every_op
def test_special_values_in_calls_that_are_drawn(op):
    for seed in range(DRAWN):
        values.draw(op, seed, matrix.DTYPES[:3]).check("cuda")


@pytest.mark.parametrize("dtype", matrix.DTYPES[:2], ids=str)
@on_every_op
def test_errors_do_not_grow_with_any_size(op, dtype):
    for case in values.growth_cases(op, dtype, scale=8):
        values.check_growth(case, "cuda")
