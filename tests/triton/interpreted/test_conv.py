"""The convolution in Triton's interpreter, on the whole matrix but float64: no loop over steps."""

import pytest
import torch

from tests.kernels import matrix

pytestmark = pytest.mark.usefixtures("interpreted")
CASES = [c for c in matrix.conv_cases() if c.sizes.get("dtype") != torch.float64]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    matrix.check(case, backend="triton")
