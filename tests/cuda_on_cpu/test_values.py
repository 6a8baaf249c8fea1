"""NaN and infinities in the CUDA kernels: see tests/kernels/values.py.

With CMIMTL_VALUES=1000, so many calls are drawn for each op.
"""

import os

import pytest

from tests.kernels import matrix, values

pytestmark = pytest.mark.usefixtures("cuda_on_cpu")

DRAWN = int(os.environ.get("CMIMTL_VALUES", "20"))


@pytest.mark.parametrize("op", values.OPS)
def test_special_values_in_calls_that_are_drawn(op):
    """Those of a scan make NaN of more than they should, as docs/numerics.md has it, but none is
    lost."""
    for seed in range(DRAWN):
        call = values.draw(op, seed, matrix.DTYPES[:3])
        call.check("cuda", numbers_only=op in matrix.SCANS)
