"""Every tensor that the functions of mamba_ssm and causal_conv1d take is checked before it is used:
each wrong kind of it raises a ValueError that names the function and the argument."""

import re

import pytest
import torch

from cmimtl_kernels.compat.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_inner_fn,
    selective_scan_fn,
    selective_state_update,
)

BATCH, DIM, LENGTH, DSTATE, WIDTH, RANK = 2, 4, 6, 3, 4, 2


def ints(*shape):
    return torch.zeros(*shape, dtype=torch.int64)


CONV = {
    "x": torch.randn(BATCH, DIM, LENGTH),
    "weight": torch.randn(DIM, WIDTH),
    "bias": torch.randn(DIM),
}
SCAN = {
    "u": torch.randn(BATCH, DIM, LENGTH),
    "delta": torch.rand(BATCH, DIM, LENGTH),
    "A": -torch.rand(DIM, DSTATE),
    "B": torch.randn(BATCH, DSTATE, LENGTH),
    "C": torch.randn(BATCH, DSTATE, LENGTH),
    "D": torch.randn(DIM),
    "z": torch.randn(BATCH, DIM, LENGTH),
    "delta_bias": torch.randn(DIM),
}
STEP = {
    "state": torch.zeros(BATCH, DIM, DSTATE),
    "x": torch.randn(BATCH, DIM),
    "dt": torch.rand(BATCH, DIM),
    "A": -torch.rand(DIM, DSTATE),
    "B": torch.randn(BATCH, DSTATE),
    "C": torch.randn(BATCH, DSTATE),
    "D": torch.randn(DIM),
    "z": torch.randn(BATCH, DIM),
    "dt_bias": torch.randn(DIM),
}
INNER = {
    "xz": torch.randn(BATCH, 2 * DIM, LENGTH),
    "conv1d_weight": torch.randn(DIM, 1, WIDTH),
    "conv1d_bias": torch.randn(DIM),
    "x_proj_weight": torch.randn(RANK + 2 * DSTATE, DIM),
    "delta_proj_weight": torch.randn(DIM, RANK),
    "out_proj_weight": torch.randn(5, DIM),
    "out_proj_bias": torch.randn(5),
    "A": -torch.rand(DIM, DSTATE),
    "D": torch.randn(DIM),
    "delta_bias": torch.randn(DIM),
    "B_proj_bias": torch.randn(DSTATE),
    "C_proj_bias": torch.randn(DSTATE),
    "b_rms_weight": torch.ones(DSTATE),
    "c_rms_weight": torch.ones(DSTATE),
    "dt_rms_weight": torch.ones(DIM),
}
GIVEN = {"x_proj_weight": torch.randn(RANK, DIM), "B": SCAN["B"], "C": SCAN["C"]}
GIVEN = {n: x for n, x in INNER.items() if "proj_bias" not in n or n == "out_proj_bias"} | GIVEN
CALLS = {
    "conv": (causal_conv1d_fn, CONV | {"initial_states": torch.randn(BATCH, DIM, WIDTH - 1)}),
    "conv, packed": (causal_conv1d_fn, CONV | {"seq_idx": ints(BATCH, LENGTH)}),
    "conv, states": (
        causal_conv1d_fn,
        CONV
        | {"final_states_out": torch.zeros(BATCH, DIM, WIDTH - 1), "return_final_states": True},
    ),
    "conv step": (
        causal_conv1d_update,
        CONV
        | {
            "conv_state": torch.zeros(BATCH, DIM, WIDTH),
            "cache_seqlens": ints(BATCH),
            "conv_state_indices": torch.arange(BATCH),
        },
    ),
    "scan": (selective_scan_fn, SCAN),
    "scan, constant": (selective_scan_fn, SCAN | dict.fromkeys("BC", torch.randn(DIM, DSTATE))),
    "scan step": (selective_state_update, STEP | {"state_batch_indices": torch.arange(BATCH)}),
    "mixer": (mamba_inner_fn, INNER),
    "mixer, given": (mamba_inner_fn, GIVEN),
}
WRONG = {
    "a list": lambda x: x.tolist(),
    "complex": lambda x: x.to(torch.complex64),
    "bool": lambda x: x.bool(),
    "another kind": lambda x: x.float() if x.dtype == torch.int64 else x.to(torch.int64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "more axes": lambda x: x[None, None],
    "fewer axes": lambda x: x.flatten() if x.dim() > 1 else x[0],
    "larger": lambda x: torch.cat((x, x), 1 if x.dim() > 2 else 0),
    "sparse": lambda x: x.to_sparse(),
    "elsewhere": lambda x: x.to("meta"),
}
CASES = [(call, name) for call in CALLS for name, x in CALLS[call][1].items() if x is not True]


@pytest.mark.parametrize("call", CALLS)
def test_the_arguments_that_are_changed_below_are_right(call):
    function, arguments = CALLS[call]
    function(**arguments)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call, name", CASES)
def test_a_wrong_argument_is_named(call, name, wrong, autocast):
    function, arguments = CALLS[call]
    changed = arguments | {name: WRONG[wrong](arguments[name])}
    # The others' sizes and places are held against those of some, and may be named instead.
    named = re.escape(name) if wrong not in ("larger", "elsewhere") else r"\w+"
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        pytest.raises(ValueError, match=rf"^{function.__name__}: {named} must "),
    ):
        function(**changed)
