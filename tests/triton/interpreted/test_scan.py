"""The scans in Triton's interpreter against the reference; few steps, as each costs ~10 ms."""

import pytest
import torch

from tests.kernels import matrix
from tests.kernels.matrix import Case

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
