"""Every message of mamba_ssm's functions: the argument, what it must be, and what it got."""

import re

import pytest
import torch

from cmimtl_kernels.compat import mamba_ssm
from tests.kernels.compat.test_mamba_ssm import inner_inputs, scan_inputs, step_inputs

X = torch.zeros
SCAN, STEP, INNER = "selective_scan_fn", "selective_state_update", "mamba_inner_fn"
CASES = [
    (SCAN, dict(u=None), "u must be a tensor, got NoneType"),
    (SCAN, dict(u=X(2, 6)), "u must have shape (batch, dim, length), got (2, 6)"),
    (SCAN, dict(u=X(2, 6, 33).int()), "u must be of a float dtype, got int32"),
    (SCAN, dict(delta=X(2, 33, 6)), "delta must have shape (2, 6, 33), got (2, 33, 6)"),
    (SCAN, dict(A=X(6, 4, dtype=torch.complex64)),
     "A must be real, got complex64; complex states are not supported"),
    (SCAN, dict(B=X(6, 4, dtype=torch.complex64)),
     "B must be real, got complex64; complex states are not supported"),
    (SCAN, dict(A=X(5, 4)), "A must have shape (6, 4), got (5, 4)"),
    (SCAN, dict(A=X(6, 0)), "A must have shape (6, 1), got (6, 0)"),
    (SCAN, dict(A=X(6)), "A must have shape (dim, dstate), got (6,)"),
    (SCAN, dict(B=X(4)),
     "B must have shape (dim, dstate) or (batch, dstate, length) or (batch, ngroups, dstate,"
     " length), got (4,)"),
    (SCAN, dict(B=X(4, 6)), "B must have shape (6, 4), got (4, 6)"),
    (SCAN, dict(C=X(2, 33, 4)), "C must have shape (2, 4, 33), got (2, 33, 4)"),
    (SCAN, dict(C=X(2, 4, 4, 33)), "C must have a divisor of dim=6 as ngroups, got 4"),
    (SCAN, dict(D=X(1, 6)), "D must have shape (6,), got (1, 6)"),
    (SCAN, dict(z=X(2, 6)), "z must have shape (2, 6, 33), got (2, 6)"),
    (SCAN, dict(delta_bias=X(5)), "delta_bias must have shape (6,), got (5,)"),
    (STEP, dict(state=X(3, 6)),
     "state must have shape (batch, dim, dstate) or (batch, nheads, dim, dstate), got (3, 6)"),
    (STEP, dict(state=X(4, 6, 4)), "state must have shape (3, 6, 4), got (4, 6, 4)"),
    (STEP, dict(x=X(3, 1, 6)), "x must have shape (batch, dim), got (3, 1, 6)"),
    (STEP, dict(x=X(3, 5)), "x must have shape (3, 6), got (3, 5)"),
    (STEP, dict(dt=X(3, 5)), "dt must have shape (3, 6), got (3, 5)"),
    (STEP, dict(A=X(6, 4, dtype=torch.complex64)),
     "A must be real, got complex64; complex states are not supported"),
    (STEP, dict(B=X(3, 2, 4)), "B must have a divisor of nheads=1 as ngroups, got 2"),
    (STEP, dict(B=X(3, 5)), "B must have shape (3, 1, 4), got (3, 1, 5)"),
    (STEP, dict(D=X(1, 6)), "D must have shape (6,), got (1, 6)"),
    (STEP, dict(z=X(3)), "z must have shape (3, 6), got (3,)"),
    (STEP, dict(state_batch_indices=X(3)),
     "state_batch_indices must be int32 or int64, got float32"),
    (STEP, dict(state_batch_indices=X(2).int()),
     "state_batch_indices must have shape (3,), got (2,)"),
    (INNER, dict(xz=X(2, 16)), "xz must have shape (batch, 2 * dim, length), got (2, 16)"),
    (INNER, dict(xz=X(2, 15, 9)), "xz must have shape (2, 16, 9), got (2, 15, 9)"),
    (INNER, dict(conv1d_weight=X(8, 4)),
     "conv1d_weight must have shape (dim, 1, width), got (8, 4)"),
    (INNER, dict(x_proj_weight=X(9, 8)), "x_proj_weight must have shape (11, 8), got (9, 8)"),
    (INNER, dict(delta_proj_weight=X(3)),
     "delta_proj_weight must have shape (dim, dt_rank), got (3,)"),
    (INNER, dict(delta_proj_weight=X(7, 3)),
     "delta_proj_weight must have shape (8, 3), got (7, 3)"),
    (INNER, dict(B_proj_bias=X(3)), "B_proj_bias must have shape (4,), got (3,)"),
    (INNER, dict(dt_rms_weight=X(3)), "dt_rms_weight must have shape (8,), got (3,)"),
    (INNER, dict(A=X(8, 4, dtype=torch.complex64)),
     "A must be real, got complex64; complex states are not supported"),
    (INNER, dict(checkpoint_lvl=2), "checkpoint_lvl must be 0 or 1, got 2"),
]  # fmt: skip
MAKERS = {SCAN: scan_inputs, STEP: step_inputs, INNER: inner_inputs}


@pytest.mark.parametrize(
    "op, changes, message",
    CASES,
    ids=[f"{op}-{'-'.join(c)}-{i}" for i, (op, c, _) in enumerate(CASES)],
)
def test_message(op, changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"{op}: {message}") + "$"):
        getattr(mamba_ssm, op)(**MAKERS[op]() | changes)


def test_groups_of_one_step_must_agree():
    inputs = step_inputs(4, 2)
    inputs["C"] = inputs["C"][:, :1]
    with pytest.raises(ValueError, match=r"C must have shape \(3, 2, 4\), got \(3, 1, 4\)$"):
        mamba_ssm.selective_state_update(**inputs)
