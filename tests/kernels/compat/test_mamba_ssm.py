"""mamba_ssm's functions against their equations: every layout, option and gradient."""

import inspect

import pytest
import torch

from cmimtl_kernels import testing
from cmimtl_kernels.compat import mamba_ssm
from cmimtl_kernels.testing import TOLERANCES, relative_l2
from tests.kernels.compat import equations

pytestmark = pytest.mark.filterwarnings("ignore:.*slow PyTorch reference:RuntimeWarning")

# name -> parameters with their defaults, as mamba_ssm 2 and causal_conv1d 1.5 have them.
REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "selective_scan_fn": dict(
        u=REQUIRED, delta=REQUIRED, A=REQUIRED, B=REQUIRED, C=REQUIRED, D=None, z=None,
        delta_bias=None, delta_softplus=False, return_last_state=False,
    ),
    "selective_state_update": dict(
        state=REQUIRED, x=REQUIRED, dt=REQUIRED, A=REQUIRED, B=REQUIRED, C=REQUIRED, D=None, z=None,
        dt_bias=None, dt_softplus=False, state_batch_indices=None,
    ),
    "mamba_inner_fn": dict(
        xz=REQUIRED, conv1d_weight=REQUIRED, conv1d_bias=REQUIRED, x_proj_weight=REQUIRED,
        delta_proj_weight=REQUIRED, out_proj_weight=REQUIRED, out_proj_bias=REQUIRED, A=REQUIRED,
        B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None,
        delta_softplus=True, checkpoint_lvl=1, b_rms_weight=None, c_rms_weight=None,
        dt_rms_weight=None, b_c_dt_rms_eps=1e-6,
    ),
    "causal_conv1d_fn": dict(
        x=REQUIRED, weight=REQUIRED, bias=None, seq_idx=None, initial_states=None,
        return_final_states=False, final_states_out=None, activation=None,
    ),
    "causal_conv1d_update": dict(
        x=REQUIRED, conv_state=REQUIRED, weight=REQUIRED, bias=None, activation=None,
        cache_seqlens=None, conv_state_indices=None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(getattr(mamba_ssm, name)).parameters
    assert [(p.name, p.default) for p in parameters.values()] == list(SIGNATURES[name].items())
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def scan_inputs(kind_B="variable", kind_C="variable", dtype=torch.float32, **sizes):
    """Arguments of selective_scan_fn; kinds: "constant", "variable" or a number of groups."""
    sizes = {"length": 33, "dim": 6, "dstate": 4} | sizes
    inputs = testing.scan_inputs(**sizes, initial_state=False, dtype=torch.float64)
    del inputs["initial_state"], inputs["lengths"]
    for name in ("u", "delta", "z"):
        inputs[name] = inputs[name].transpose(1, 2)
    for name, kind in (("B", kind_B), ("C", kind_C)):
        x = inputs[name].transpose(1, 2)  # (batch, dstate, length)
        if kind == "constant":
            x = torch.randn(inputs["A"].shape, dtype=torch.float64)
        elif kind != "variable":
            x = torch.randn(x.shape[0], kind, *x.shape[1:], dtype=torch.float64)
        inputs[name] = x
    weights = {"A", "D", "delta_bias"} | {n for n in "BC" if inputs[n].dim() == 2}
    return {
        n: x.float() if n in weights and dtype != torch.float64 else x.to(dtype)
        for n, x in inputs.items()
    }


def check_gradients(function, expected, inputs, tolerances, **options):
    """Outputs and every gradient of function(**inputs) against expected of the same in float64."""
    wide = {n: x.double() for n, x in inputs.items()}
    actual = testing.run_with_gradients(function, inputs, **options)
    reference = testing.run_with_gradients(expected, wide, **options)
    assert actual.keys() == reference.keys()
    for name, x in actual.items():
        limit = tolerances[0] if name.startswith("out_") else tolerances[1]
        error = relative_l2(x, reference[name])
        assert error <= limit, f"{name}: {error:.2e} > {limit}"
        if not name.startswith("out_"):
            assert x.dtype == inputs[name[1:]].dtype and x.shape == inputs[name[1:]].shape, name
    return actual


def scan_with_state(**arguments):
    return mamba_ssm.selective_scan_fn(**arguments, return_last_state=True)


KINDS = ["constant", "variable", 1, 2, 6]


@pytest.mark.parametrize("kind_B", KINDS)
@pytest.mark.parametrize("kind_C", KINDS)
def test_scan_of_every_kind_of_B_and_C(kind_B, kind_C):
    inputs = scan_inputs(kind_B, kind_C, length=5)
    check_gradients(
        scan_with_state,
        equations.selective_scan,
        inputs,
        TOLERANCES[torch.float32],
        delta_softplus=True,
    )


@pytest.mark.parametrize("length", [64, 65, 130])
def test_a_constant_B_longer_than_one_part(length):
    """Its gradient is summed part by part: around one part, and three of them."""
    inputs = scan_inputs("constant", "constant", length=length)
    check_gradients(
        scan_with_state,
        equations.selective_scan,
        inputs,
        TOLERANCES[torch.float32],
        delta_softplus=True,
    )


@pytest.mark.parametrize("missing", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_scan_without_optional_arguments(missing):
    inputs = {n: x for n, x in scan_inputs().items() if n not in missing}
    inputs["delta"] = inputs["delta"].abs()  # the step size is positive without its softplus
    if "delta_bias" in inputs:
        inputs["delta_bias"] = inputs["delta_bias"].abs()
    check_gradients(scan_with_state, equations.selective_scan, inputs, TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scan_in_other_dtypes(dtype):
    inputs = scan_inputs(2, 2, dtype=dtype)
    actual = check_gradients(
        scan_with_state, equations.selective_scan, inputs, TOLERANCES[dtype], delta_softplus=True
    )
    assert actual["out_0"].dtype == dtype
    assert actual["out_1"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_scan_of_every_layout(layout):
    inputs = scan_inputs()
    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = testing.with_layout(inputs[name], layout)
    actual = check_gradients(
        scan_with_state,
        equations.selective_scan,
        inputs,
        TOLERANCES[torch.float32],
        delta_softplus=True,
    )
    if layout in ("contiguous", "transposed"):
        assert actual["out_0"].stride() == inputs["u"].stride()


def test_streams_of_several_dtypes_are_computed_in_the_widest():
    inputs = scan_inputs(dtype=torch.bfloat16)
    for name in ("delta", "B"):
        inputs[name] = inputs[name].float()
    out = mamba_ssm.selective_scan_fn(**inputs, delta_softplus=True)
    assert out.dtype == torch.bfloat16
    wide = {n: x.float() for n, x in inputs.items()}
    expected = mamba_ssm.selective_scan_fn(**wide, delta_softplus=True)
    assert torch.equal(out, expected.bfloat16())


def test_autocast_leaves_scan_and_convolution_alone():
    inputs = scan_inputs()
    expected = mamba_ssm.selective_scan_fn(**inputs, delta_softplus=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mamba_ssm.selective_scan_fn(**inputs, delta_softplus=True)
        assert torch.equal(out, expected)
        assert mamba_ssm.causal_conv1d_fn(inputs["u"], torch.ones(6, 4)).dtype == torch.float32


def test_last_state_of_a_constant_B_contains_B():
    """One step: the state is delta * u * B."""
    u, delta = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 0.5)
    _, state = mamba_ssm.selective_scan_fn(
        u, delta, -torch.ones(1, 2), torch.tensor([[2.0, 5.0]]), torch.ones(1, 2),
        return_last_state=True,
    )  # fmt: skip
    assert torch.equal(state, torch.tensor([[[3.0, 7.5]]]))


def test_scan_of_nothing():
    inputs = scan_inputs(length=1)
    for name in ("u", "delta", "z", "B", "C"):
        inputs[name] = inputs[name][..., :0]
    out, state = scan_with_state(**inputs)
    assert out.shape == (2, 6, 0) and torch.equal(state, torch.zeros(2, 6, 4))


# One step


def step_inputs(nheads=None, ngroups=None, dtype=torch.float32, batch=3, dim=6, dstate=4):
    generator = torch.Generator().manual_seed(0)
    heads = (dim,) if nheads is None else (nheads, dim)
    groups = (dstate,) if ngroups is None else (ngroups, dstate)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = dict(
        state=normal(batch, *heads, dstate), x=normal(batch, *heads), dt=normal(batch, *heads),
        A=-normal(*heads, dstate).exp(), B=normal(batch, *groups), C=normal(batch, *groups),
        D=normal(*heads), z=normal(batch, *heads), dt_bias=normal(*heads),
    )  # fmt: skip
    wide = {"state", "A", "D", "dt_bias"} if dtype != torch.float64 else set()
    return {n: x.float() if n in wide else x.to(dtype) for n, x in inputs.items()}


def expected_step(inputs, dt_softplus=True):
    """The equations in float64, for inputs with or without heads. -> out, state"""
    wide = {n: x.double() for n, x in inputs.items() if x is not None}
    if wide["state"].dim() == 3:
        for name in ("state", "x", "dt", "z"):
            if name in wide:
                wide[name] = wide[name][:, None]
    wide |= {n: wide[n][:, None] for n in "BC" if wide[n].dim() == 2}
    out, state = equations.state_update(**wide, dt_softplus=dt_softplus)
    return out.reshape(inputs["x"].shape), state.reshape(inputs["state"].shape)


@pytest.mark.parametrize("nheads, ngroups", [(None, None), (None, 1), (4, None), (4, 2), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_state_update(nheads, ngroups, dtype):
    inputs = step_inputs(nheads, ngroups, dtype)
    expected, expected_state = expected_step(inputs)
    state = inputs["state"]
    out = mamba_ssm.selective_state_update(**inputs, dt_softplus=True)
    assert out.dtype == dtype and out.shape == inputs["x"].shape
    assert relative_l2(out, expected) < TOLERANCES[dtype][0]
    assert relative_l2(state, expected_state) < TOLERANCES[state.dtype][0]


@pytest.mark.parametrize("missing", ["D", "z", "dt_bias"])
def test_state_update_without_optional_arguments(missing):
    inputs = {n: x for n, x in step_inputs(2).items() if n != missing}
    inputs["dt"] = inputs["dt"].abs()
    expected, _ = expected_step(inputs, dt_softplus=False)
    out = mamba_ssm.selective_state_update(**inputs)
    assert relative_l2(out, expected) < TOLERANCES[torch.float32][0]


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_state_update_of_a_narrow_state(state_dtype):
    inputs = step_inputs()
    inputs["state"] = inputs["state"].to(state_dtype)
    expected, expected_state = expected_step(inputs)
    out = mamba_ssm.selective_state_update(**inputs, dt_softplus=True)
    assert relative_l2(out, expected) < TOLERANCES[torch.float32][0]
    assert inputs["state"].dtype == state_dtype
    assert relative_l2(inputs["state"], expected_state) < TOLERANCES[state_dtype][0]


def test_state_update_of_a_strided_state():
    inputs = step_inputs(2)
    big = torch.zeros(3, 2, 4, 6)
    big.transpose(2, 3).copy_(inputs["state"])
    expected, expected_state = expected_step(inputs)
    inputs["state"] = big.transpose(2, 3)
    out = mamba_ssm.selective_state_update(**inputs, dt_softplus=True)
    assert relative_l2(out, expected) < TOLERANCES[torch.float32][0]
    assert relative_l2(big.transpose(2, 3), expected_state) < TOLERANCES[torch.float32][0]


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_state_update_of_chosen_rows(index_dtype):
    inputs = step_inputs(batch=3)
    pool = torch.randn(7, 6, 4)
    rows = torch.tensor([5, -1, 2], dtype=index_dtype)
    before = pool.clone()
    inputs["state"] = pool[[5, 0, 2]]
    expected, expected_state = expected_step(inputs)
    inputs["state"] = pool
    out = mamba_ssm.selective_state_update(**inputs, dt_softplus=True, state_batch_indices=rows)
    assert relative_l2(out[::2], expected[::2]) < TOLERANCES[torch.float32][0]
    assert torch.equal(out[1], torch.zeros(6))
    assert relative_l2(pool[[5, 2]], expected_state[::2]) < TOLERANCES[torch.float32][0]
    untouched = [0, 1, 3, 4, 6]
    assert torch.equal(pool[untouched], before[untouched])


def test_state_updates_continue_a_scan():
    inputs = scan_inputs(2, 2)
    whole, last_state = scan_with_state(**inputs, delta_softplus=True)
    cut = 30
    part = {n: x[..., :cut] if x.dim() > 2 else x for n, x in inputs.items()}
    _, state = scan_with_state(**part, delta_softplus=True)
    # The groups of channels are heads here: (batch, dim) as (batch, groups, dim / groups).
    state = state.reshape(2, 2, 3, 4)
    for t in range(cut, 33):
        u, delta, z = (inputs[n][..., t].reshape(2, 2, 3) for n in ("u", "delta", "z"))
        A, D, bias = inputs["A"].reshape(2, 3, 4), inputs["D"], inputs["delta_bias"]
        out = mamba_ssm.selective_state_update(
            state, u, delta, A, inputs["B"][..., t], inputs["C"][..., t], D.reshape(2, 3), z,
            bias.reshape(2, 3), dt_softplus=True,
        )  # fmt: skip
        assert relative_l2(out.flatten(1), whole[..., t]) < TOLERANCES[torch.float32][0]
    assert relative_l2(state.flatten(1, 2), last_state) < TOLERANCES[torch.float32][0]


def test_state_update_is_differentiable():
    """Every gradient of out, though the state that it was made from is overwritten."""
    inputs = step_inputs(2, 1, torch.float64)

    def step(state, **arguments):
        return mamba_ssm.selective_state_update(state.clone(), **arguments, dt_softplus=True)

    def expected(**arguments):
        return equations.state_update(**arguments, dt_softplus=True)[0]

    check_gradients(step, expected, inputs, TOLERANCES[torch.float64])


# The mixer


def inner_inputs(dtype=torch.float64, norms=False, given="", length=9):
    generator = torch.Generator().manual_seed(0)
    dim, dstate, dt_rank, d_model, width = 8, 4, 3, 5, 4

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    rows = dt_rank + dstate * (2 - len(given))
    inputs = dict(
        xz=normal(2, 2 * dim, length), conv1d_weight=normal(dim, 1, width),
        conv1d_bias=normal(dim), x_proj_weight=normal(rows, dim) / 3,
        delta_proj_weight=normal(dim, dt_rank) / 2, out_proj_weight=normal(d_model, dim),
        out_proj_bias=normal(d_model), A=-normal(dim, dstate).exp(), D=normal(dim),
        delta_bias=normal(dim) - 2,
    )  # fmt: skip
    for name in "BC":
        if name in given:
            inputs[name] = normal(2, dstate, length)
        else:
            inputs[f"{name}_proj_bias"] = normal(dstate)
    if norms:
        inputs |= dict(b_rms_weight=normal(dstate), c_rms_weight=normal(dstate))
        inputs |= dict(dt_rms_weight=normal(dim))
    return inputs


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("given", ["", "B", "C", "BC"])
def test_inner(norms, given):
    inputs = inner_inputs(norms=norms, given=given)
    if norms and given:  # the norms are for a projected B or C
        inputs = {n: x for n, x in inputs.items() if n != f"{given[0].lower()}_rms_weight"}
        inputs = {n: x for n, x in inputs.items() if n != f"{given[-1].lower()}_rms_weight"}
    check_gradients(
        mamba_ssm.mamba_inner_fn, equations.mamba_inner, inputs, TOLERANCES[torch.float64]
    )


@pytest.mark.parametrize("level", [0, 1])
def test_inner_without_biases(level):
    inputs = inner_inputs(torch.float32)
    kept = {n: x for n, x in inputs.items() if "bias" not in n and n != "D"}
    none = dict(conv1d_bias=None, out_proj_bias=None)
    out = mamba_ssm.mamba_inner_fn(**kept, **none, checkpoint_lvl=level, delta_softplus=True)
    expected = equations.mamba_inner(**{n: x.double() for n, x in kept.items()}, **none)
    assert relative_l2(out, expected) < 5e-6


def test_inner_of_channels_last_memory():
    inputs = inner_inputs()
    expected = mamba_ssm.mamba_inner_fn(**inputs)
    inputs["xz"] = testing.with_layout(inputs["xz"], "transposed")
    assert relative_l2(mamba_ssm.mamba_inner_fn(**inputs), expected) < 1e-12


def test_inner_under_autocast():
    """float32 weights and xz in bfloat16, as a mixer's first projection leaves it."""
    inputs = inner_inputs(torch.float32)
    expected = equations.mamba_inner(**{n: x.double() for n, x in inputs.items()})
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mamba_ssm.mamba_inner_fn(**leaves | {"xz": leaves["xz"].bfloat16()})
    assert out.dtype == torch.bfloat16
    assert relative_l2(out, expected) < 3e-2
    out.sum().backward()
    for name, x in leaves.items():
        assert x.grad.dtype == torch.float32 and x.grad.isfinite().all(), name
