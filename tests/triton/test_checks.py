"""What a raw Triton op refuses, without a run of its kernels."""

import re

import pytest

from cmimtl_kernels import _library, registration
from cmimtl_kernels.triton.checks import check
from tests.kernels import raw_calls

NOT_BUILT = _library.load_libraries()["cpu"]


@pytest.mark.skipif(NOT_BUILT is not None, reason=f"the CPU library: {NOT_BUILT}")
@pytest.mark.parametrize("op", registration.SCHEMAS)
def test_random_calls(op):
    """The CPU kernels give the checkpoints."""
    outcomes = {True: 0, False: 0}
    for what, call in raw_calls.calls("cmimtl", op, 150, 0):
        missed = raw_calls.requirement_missed("cmimtl_triton", op, call)
        arguments = tuple(call[name] for name, _, _ in raw_calls.arguments_of(op))
        outcomes[missed] += 1
        if missed:
            with pytest.raises(RuntimeError) as error:
                check(op, arguments)
            names = "|".join(name for name, _, _ in raw_calls.arguments_of(op))
            assert re.match(rf"{op}: ({names}) must .*, got ", str(error.value)), what
        else:
            check(op, arguments)
    assert min(outcomes.values()) > 20, outcomes
