"""The reference, against the equations written out for one channel and one state, and by finite
differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from cmimtl_kernels import reference, testing


def _by_hand(u, delta, A, B, C, D, z, bias, state, *, softplus=True):
    """One sample, one channel, one state: lists of floats -> (outputs, last state)."""
    out = []
    for u_t, delta_t, B_t, C_t, z_t in zip(u, delta, B, C, z, strict=True):
        d = delta_t + bias
        d = math.log1p(math.exp(d)) if softplus else d
        state = math.exp(d * A) * state + d * u_t * B_t
        out.append((C_t * state + D * u_t) * z_t / (1 + math.exp(-z_t)))
    return out, state


def test_one_channel_by_hand():
    x = testing.scan_inputs(batch=1, length=6, dim=1, dstate=1, dtype=torch.float64)
    out, last = reference.selective_scan(**x, delta_softplus=True, return_last_state=True)
    flat = {n: None if t is None else t.flatten().tolist() for n, t in x.items()}
    expected, state = _by_hand(
        flat["u"], flat["delta"], flat["A"][0], flat["B"], flat["C"], flat["D"][0], flat["z"],
        flat["delta_bias"][0], flat["initial_state"][0],
    )  # fmt: skip
    assert out.flatten().tolist() == pytest.approx(expected, rel=1e-13)
    assert last.item() == pytest.approx(state, rel=1e-13)


def test_cross_scan_by_hand():
    x = testing.scan_inputs(batch=1, length=3, dim=1, dstate=1, cross=True, dtype=torch.float64)
    out_v, out_t, last = reference.cross_selective_scan(
        **x, delta_softplus=True, return_last_state=True
    )
    flat = {n: None if t is None else t.flatten().tolist() for n, t in x.items()}
    tokens, gates = [], []
    for v, t, z_v, z_t in zip(flat["v"], flat["t"], flat["z_v"], flat["z_t"], strict=True):
        tokens += [v * t, v + t]
        gates += [z_v * z_t] * 2
    expected, state = _by_hand(
        tokens, flat["delta"], flat["A"][0], flat["B"], flat["C"], flat["D"][0], gates,
        flat["delta_bias"][0], flat["initial_state"][0],
    )  # fmt: skip
    assert out_v.flatten().tolist() == pytest.approx(expected[::2], rel=1e-13)
    assert out_t.flatten().tolist() == pytest.approx(expected[1::2], rel=1e-13)
    assert last.item() == pytest.approx(state, rel=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_by_hand(reverse):
    x = testing.conv_inputs(batch=1, length=6, dim=1, width=3, dtype=torch.float64)
    out = reference.causal_conv1d(**x, activation="silu", reverse=reverse).flatten().tolist()
    values, weight, bias = (x[n].flatten().tolist() for n in ("x", "weight", "bias"))
    for t in range(6):
        y = bias[0]
        for k in range(3):
            s = t + 2 - k if reverse else t - 2 + k
            y += weight[k] * values[s] if 0 <= s < 6 else 0
        assert out[t] == pytest.approx(y / (1 + math.exp(-y)), rel=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("op", ["selective_scan", "cross_selective_scan"])
def test_gradcheck(op, reverse):
    cross = op == "cross_selective_scan"
    lengths = torch.tensor([3, 4])
    inputs = testing.scan_inputs(
        2, 4, 2, 3, ngroups=2, cross=cross, lengths=lengths, dtype=torch.float64
    )
    names = [n for n, x in inputs.items() if x is not None and x.is_floating_point()]
    leaves = [inputs[n].requires_grad_() for n in names]
    options = {"delta_softplus": True, "reverse": reverse, "return_last_state": True}
    function = getattr(reference, op)
    assert gradcheck(
        lambda *x: function(**inputs | dict(zip(names, x, strict=True)), **options), leaves
    )


def test_softplus_has_no_threshold_and_no_overflow():
    x = torch.tensor(
        [-800.0, -40.0, 0.0, 19.0, 25.0, 800.0], dtype=torch.float64, requires_grad=True
    )
    y = reference._softplus(x)
    expected = [
        0.0,
        math.exp(-40),
        math.log(2),
        math.log1p(math.exp(19)),
        25 + math.exp(-25),
        800.0,
    ]
    assert y.tolist() == pytest.approx(expected, rel=1e-14)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.isfinite().all()
