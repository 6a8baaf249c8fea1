"""causal_conv1d's functions against their equations: modes, states, layouts, messages."""

import re

import pytest
import torch

from cmimtl_kernels import testing
from cmimtl_kernels.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from cmimtl_kernels.testing import TOLERANCES, relative_l2
from tests.kernels.compat import equations

pytestmark = pytest.mark.filterwarnings("ignore:.*slow PyTorch reference:RuntimeWarning")


def conv_inputs(batch=2, dim=5, length=11, width=4, dtype=torch.float32, bias=True, states=False):
    generator = torch.Generator().manual_seed(0)
    shapes = dict(x=(batch, dim, length), weight=(dim, width))
    shapes |= dict(bias=(dim,)) if bias else {}
    shapes |= dict(initial_states=(batch, dim, width - 1)) if states else {}
    return {
        n: torch.randn(*shape, generator=generator).to(dtype if n in ("x",) else torch.float32)
        for n, shape in shapes.items()
    }


def check(function, expected, inputs, dtype=torch.float32, **options):
    actual = testing.run_with_gradients(function, inputs, **options)
    wide = {n: x.double() for n, x in inputs.items()}
    reference = testing.run_with_gradients(expected, wide, **options)
    assert actual.keys() == reference.keys()
    for name, x in actual.items():
        limit = TOLERANCES[dtype][0 if name.startswith("out_") else 1]
        error = relative_l2(x, reference[name])
        assert error <= limit, f"{name}: {error:.2e} > {limit}"


def out_alone(**arguments):
    return equations.conv(**arguments)[0]


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_convolution(width, bias, activation):
    inputs = conv_inputs(width=width, bias=bias)
    check(causal_conv1d_fn, out_alone, inputs, activation=activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_convolution_in_other_dtypes(dtype):
    inputs = conv_inputs(dtype=dtype)
    if dtype == torch.float64:
        inputs = {n: x.double() for n, x in inputs.items()}
    assert causal_conv1d_fn(**inputs).dtype == dtype
    check(causal_conv1d_fn, out_alone, inputs, dtype, activation="silu")


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("states", [False, True])
def test_convolution_of_every_layout(layout, states):
    inputs = conv_inputs(states=states)
    inputs["x"] = testing.with_layout(inputs["x"], layout)
    check(causal_conv1d_fn, out_alone, inputs, activation="silu")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("states", [False, True])
def test_states(length, states):
    """Initial and final states with their gradients, for lengths below and above the width."""

    def function(**arguments):
        return causal_conv1d_fn(**arguments, return_final_states=True)

    check(function, equations.conv, conv_inputs(length=length, states=states), activation="silu")


@pytest.mark.parametrize("length", [2, 11])
def test_final_states_are_written_where_asked(length):
    inputs = conv_inputs(length=length, states=True, dtype=torch.bfloat16)
    target = torch.full((2, 5, 3), float("nan"))
    out, states = causal_conv1d_fn(**inputs, return_final_states=True, final_states_out=target)
    _, expected = causal_conv1d_fn(**inputs, return_final_states=True)
    assert states is target and out.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(target, expected.float())


def test_final_states_go_on():
    inputs = conv_inputs(length=20)
    whole = causal_conv1d_fn(**inputs, activation="silu")
    x, state, parts = inputs.pop("x"), None, []
    for part in x.split([7, 1, 2, 10], dim=-1):
        out, state = causal_conv1d_fn(
            part, **inputs, initial_states=state, return_final_states=True, activation="silu"
        )
        parts.append(out)
    assert relative_l2(torch.cat(parts, -1), whole) < TOLERANCES[torch.float32][0]


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_packed_sequences_are_kept_apart(index_dtype):
    seq_idx = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 3, 3, -1], [5, 5, 4, 4, 4, 4, 4, 4, 4, 4, 4]])
    seq_idx = seq_idx.to(index_dtype)
    check(causal_conv1d_fn, out_alone, conv_inputs(), seq_idx=seq_idx, activation="silu")


def test_packed_sequences_equal_each_alone():
    inputs = conv_inputs(batch=1)
    seq_idx = torch.tensor([[0] * 4 + [1] * 7])
    packed = causal_conv1d_fn(**inputs, seq_idx=seq_idx, activation="silu")
    x = inputs.pop("x")
    parts = [causal_conv1d_fn(p, **inputs, activation="silu") for p in (x[..., :4], x[..., 4:])]
    assert relative_l2(packed, torch.cat(parts, -1)) < TOLERANCES[torch.float32][0]


# Updates


def expected_update(x, steps, weight, bias, activation):
    """The steps before, then x, in float64: what an update returns."""
    reach = weight.shape[1] - 1
    before = steps[..., steps.shape[-1] - reach :]
    tensors = (t.double() for t in (x, weight, bias, before))
    return equations.conv(*tensors, activation=activation)[0]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("width, state_len", [(1, 1), (2, 1), (2, 6), (4, 3), (4, 4), (4, 8)])
@pytest.mark.parametrize("length", [None, 1, 2, 9])
def test_update(width, state_len, length, activation):
    inputs = conv_inputs(length=length or 1, width=width)
    x, state = inputs["x"], torch.randn(2, 5, state_len)
    expected = expected_update(x, state, inputs["weight"], inputs["bias"], activation)
    expected_state = torch.cat((state, x), -1)[..., -state.shape[-1] :]
    inputs["x"] = x[..., 0] if length is None else x
    out = causal_conv1d_update(conv_state=state, **inputs, activation=activation)
    assert out.shape == inputs["x"].shape
    assert relative_l2(out.reshape(expected.shape), expected) < TOLERANCES[torch.float32][0]
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("state_len", [3, 5])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_update_of_a_ring(state_len, length):
    """Step i lives at i % state_len; checked against a history that is never overwritten."""
    inputs = conv_inputs(length=length)
    x, seen = inputs["x"], torch.tensor([6, 13], dtype=torch.int32)
    history = torch.randn(2, 5, 20)
    ring = torch.zeros(2, 5, state_len)
    steps = torch.zeros(2, 5, state_len)
    for b, n in enumerate(seen.tolist()):
        for i in range(n - state_len, n):
            ring[b, :, i % state_len] = history[b, :, i]
        steps[b] = history[b, :, n - state_len : n]
    expected = expected_update(x, steps, inputs["weight"], inputs["bias"], "silu")
    out = causal_conv1d_update(conv_state=ring, **inputs, activation="silu", cache_seqlens=seen)
    assert relative_l2(out, expected) < TOLERANCES[torch.float32][0]
    latest = torch.cat((steps, x), -1)[..., -state_len:]
    for b, n in enumerate(seen.tolist()):
        for j, i in enumerate(range(n + length - state_len, n + length)):
            assert torch.equal(ring[b, :, i % state_len], latest[b, :, j])


@pytest.mark.parametrize("ring", [False, True])
def test_update_of_chosen_rows(ring):
    inputs = conv_inputs(batch=3, length=2)
    pool = torch.randn(6, 5, 4)
    before = pool.clone()
    rows = torch.tensor([4, -1, 1], dtype=torch.int32)
    options = dict(cache_seqlens=torch.tensor([5, 6, 7])) if ring else {}
    own = pool[[4, 0, 1]]
    expected = causal_conv1d_update(conv_state=own, **inputs, **options)
    out = causal_conv1d_update(conv_state=pool, **inputs, **options, conv_state_indices=rows)
    assert torch.equal(out[::2], expected[::2]) and torch.equal(out[1], torch.zeros(5, 2))
    assert torch.equal(pool[[4, 1]], own[::2])
    assert torch.equal(pool[[0, 2, 3, 5]], before[[0, 2, 3, 5]])


def test_updates_continue_a_convolution():
    inputs = conv_inputs(length=12, dtype=torch.bfloat16)
    whole = causal_conv1d_fn(**inputs, activation="silu")
    x = inputs.pop("x")
    _, state = causal_conv1d_fn(x[..., :9], **inputs, return_final_states=True)
    for t in range(9, 12):
        out = causal_conv1d_update(x[..., t], state, **inputs, activation="silu")
        assert out.dtype == torch.bfloat16
        assert relative_l2(out, whole[..., t]) < TOLERANCES[torch.bfloat16][0]


# Messages

X = torch.zeros
FN, UPDATE = causal_conv1d_fn, causal_conv1d_update
STATE = {"conv_state": X(2, 5, 3)}
CASES = [
    (FN, dict(x=X(2, 5)), "x must have shape (batch, dim, length), got (2, 5)"),
    (FN, dict(x=[1.0]), "x must be a tensor, got list"),
    (FN, dict(weight=X(5, 1, 4)), "weight must have shape (dim, width), got (5, 1, 4)"),
    (FN, dict(weight=X(4, 4)), "weight must have shape (5, 4), got (4, 4)"),
    (FN, dict(weight=X(5, 0)), "weight must have shape (5, 1), got (5, 0)"),
    (FN, dict(weight=X(5, 4).int()), "weight must be of a float dtype, got int32"),
    (FN, dict(bias=X(4)), "bias must have shape (5,), got (4,)"),
    (FN, dict(activation="relu"), "activation must be None, 'silu' or 'swish', got 'relu'"),
    (FN, dict(initial_states=X(2, 5, 4)),
     "initial_states must have shape (2, 5, 3), got (2, 5, 4)"),
    (FN, dict(final_states_out=X(2, 5, 3)),
     "final_states_out must be None without return_final_states, got a tensor"),
    (FN, dict(return_final_states=True, final_states_out=X(2, 5, 4)),
     "final_states_out must have shape (2, 5, 3), got (2, 5, 4)"),
    (FN, dict(seq_idx=X(2, 11)), "seq_idx must be int32 or int64, got float32"),
    (FN, dict(seq_idx=X(2, 10).int()), "seq_idx must have shape (2, 11), got (2, 10)"),
    (FN, dict(seq_idx=X(2, 11).int(), initial_states=X(2, 5, 3)),
     "initial_states must not be given together with seq_idx, got both; a state belongs to one"
     " sequence"),
    (FN, dict(seq_idx=X(2, 11).int(), return_final_states=True),
     "return_final_states must not be given together with seq_idx, got both; a state belongs to"
     " one sequence"),
    (UPDATE, STATE | dict(x=X(2)),
     "x must have shape (batch, dim) or (batch, dim, length), got (2,)"),
    (UPDATE, dict(conv_state=X(2, 5)),
     "conv_state must have shape (batch, dim, state_len), got (2, 5)"),
    (UPDATE, dict(conv_state=X(3, 5, 3)), "conv_state must have shape (2, 5, 3), got (3, 5, 3)"),
    (UPDATE, dict(conv_state=X(2, 5, 2)),
     "conv_state must hold at least width - 1 = 3 steps, got 2"),
    (UPDATE, STATE | dict(cache_seqlens=X(2)), "cache_seqlens must be int32 or int64, got float32"),
    (UPDATE, STATE | dict(cache_seqlens=X(3).int()),
     "cache_seqlens must have shape (2,), got (3,)"),
    (UPDATE, STATE | dict(conv_state_indices=[0, 1]),
     "conv_state_indices must be a tensor, got list"),
    (UPDATE, STATE | dict(activation="relu"),
     "activation must be None, 'silu' or 'swish', got 'relu'"),
]  # fmt: skip


@pytest.mark.parametrize("function, changes, message", CASES)
def test_message(function, changes, message):
    expected = "^" + re.escape(f"{function.__name__}: {message}") + "$"
    with pytest.raises(ValueError, match=expected):
        function(**conv_inputs() | changes)
