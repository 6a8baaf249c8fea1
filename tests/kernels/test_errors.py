"""Every message of the public functions: it names the op, the argument, the requirement and what it
got."""

import re

import numpy as np
import pytest
import torch

from cmimtl_kernels import (
    CrossMamba,
    CrossMambaBlock,
    causal_conv1d,
    cross_selective_scan,
    selective_scan,
    testing,
)

X = torch.zeros


def _call(op, **changes):
    if op == "causal_conv1d":
        return causal_conv1d(**testing.conv_inputs(batch=2, length=5, dim=4) | changes)
    cross = op == "cross_selective_scan"
    function = cross_selective_scan if cross else selective_scan
    inputs = testing.scan_inputs(batch=2, length=5, dim=4, dstate=3, cross=cross)
    return function(**inputs | changes)


SCAN, CROSS, CONV = "selective_scan", "cross_selective_scan", "causal_conv1d"
CASES = [
    (SCAN, {"u": [1.0]}, "u must be a tensor, got list"),
    (SCAN, {"u": X(2, 5, 4).long()}, "u must be float32, bfloat16, float16 or float64, got int64"),
    (SCAN, {"u": X(5, 4)}, "u must have shape (batch, length, dim), got (5, 4)"),
    (SCAN, {"delta": X(2, 6, 4)}, "delta must have shape (2, 5, 4), got (2, 6, 4)"),
    (SCAN, {"delta": X(2, 5, 4).half()}, "delta must be float32, got float16"),
    (SCAN, {"delta": None}, "delta must be a tensor, got NoneType"),
    (SCAN, {"delta": X(2, 5, 4, device="meta")}, "delta must be on cpu, got meta"),
    (SCAN, {"z": X(2, 5, 3)}, "z must have shape (2, 5, 4), got (2, 5, 3)"),
    (SCAN, {"A": None}, "A must be a tensor, got NoneType"),
    (SCAN, {"A": X(4, 3, dtype=torch.complex64)},
     "A must be real, got complex64; complex states are not supported"),
    (SCAN, {"A": X(5, 3)}, "A must have shape (dim=4, dstate >= 1), got (5, 3)"),
    (SCAN, {"A": X(4, 0)}, "A must have shape (dim=4, dstate >= 1), got (4, 0)"),
    (SCAN, {"A": X(4, 3, dtype=torch.int32)},
     "A must be float32, bfloat16, float16 or float64, got int32"),
    (SCAN, {"B": None}, "B must be a tensor, got NoneType"),
    (SCAN, {"B": X(2, 5, 7)}, "B must have shape (2, 5, 3), got (2, 5, 7)"),
    (SCAN, {"B": X(2, 5)},
     "B must have shape (2, 5, 3) or (batch=2, steps=5, ngroups, dstate=3) with ngroups a divisor"
     " of dim=4, got (2, 5)"),
    (SCAN, {"C": X(2, 5, 3, 3)},
     "C must have shape (2, 5, 3) or (batch=2, steps=5, ngroups, dstate=3) with ngroups a divisor"
     " of dim=4, got (2, 5, 3, 3)"),
    (SCAN, {"C": X(2, 5, 2, 3)}, "C must have the groups of B (1), got 2 groups"),
    (SCAN, {"D": X(3)}, "D must have shape (4,), got (3,)"),
    (SCAN, {"delta_bias": X(4, 1)}, "delta_bias must have shape (4,), got (4, 1)"),
    (SCAN, {"initial_state": X(4, 3)}, "initial_state must have shape (2, 4, 3), got (4, 3)"),
    (SCAN, {"lengths": X(2)}, "lengths must be integers, got float32"),
    (SCAN, {"lengths": X(3, dtype=torch.int64)}, "lengths must have shape (batch=2,), got (3,)"),
    (SCAN, {"lengths": X(2, dtype=torch.int64, device="meta")}, "lengths must be on cpu, got meta"),
    (SCAN, {"lengths": torch.tensor([5, 6])}, "lengths must be in [0, 5], got 6"),
    (SCAN, {"lengths": torch.tensor([-1, 5])}, "lengths must be in [0, 5], got -1"),
    (SCAN, {"lengths": [5.0, 3.0]}, "lengths must be integers, got float32"),
    (SCAN, {"lengths": [[5], [3, 4]]}, "lengths must be integers, got list"),
    (SCAN, {"lengths": {5, 3}}, "lengths must be integers, got set"),
    (SCAN, {"lengths": 5}, "lengths must have shape (batch=2,), got ()"),
    (SCAN, {"lengths": (5, 6)}, "lengths must be in [0, 5], got 6"),
    (SCAN, {"lengths": torch.tensor([5, 6], dtype=torch.uint16)},
     "lengths must be in [0, 5], got 6"),
    (SCAN, {"lengths": torch.tensor([True, False])}, "lengths must be integers, got bool"),
    (SCAN, {"u": X(2, 5, 4).to_sparse()}, "u must be dense, got sparse_coo"),
    (SCAN, {"A": X(4, 3).to_sparse_csr()}, "A must be dense, got sparse_csr"),
    (SCAN, {"u": torch.nested.nested_tensor([X(5, 4), X(3, 4)])},
     "u must be dense, got a nested tensor; pad it and give lengths"),
    (SCAN, {"u": torch.nested.nested_tensor([X(5, 4), X(3, 4)], layout=torch.jagged)},
     "u must be dense, got jagged"),
    (SCAN, {"u": torch.quantize_per_tensor(X(2, 5, 4), 0.1, 0, torch.qint8)},
     "u must be float32, bfloat16, float16 or float64, got qint8"),
    (SCAN, {"delta_softplus": 1}, "delta_softplus must be True or False, got 1"),
    (SCAN, {"reverse": None}, "reverse must be True or False, got None"),
    (CROSS, {"delta_softplus": "yes"}, "delta_softplus must be True or False, got 'yes'"),
    (CROSS, {"reverse": 0}, "reverse must be True or False, got 0"),
    (CONV, {"reverse": 0}, "reverse must be True or False, got 0"),
    (CONV, {"weight": [[1.0]] * 4}, "weight must be a tensor, got list"),
    (CONV, {"bias": [1.0] * 4}, "bias must be a tensor, got list"),
    (SCAN, {"backend": None},
     "backend must be one of auto, cuda, triton, causal_conv1d, cpu, reference, got None"),
    (CONV, {"backend": ["cpu"]},
     "backend must be one of auto, cuda, triton, causal_conv1d, cpu, reference, got ['cpu']"),
    (SCAN, {"backend": "tpu"},
     "backend must be one of auto, cuda, triton, causal_conv1d, cpu, reference, got 'tpu'"),
    (CROSS, {"t": X(2, 4, 4)}, "t must have shape (2, 5, 4), got (2, 4, 4)"),
    (CROSS, {"delta": X(2, 5, 4)}, "delta must have shape (2, 10, 4), got (2, 5, 4)"),
    (CROSS, {"z_t": None}, "z_t must be given together with z_v, got None"),
    (CROSS, {"z_v": None}, "z_v must be given together with z_t, got None"),
    (CROSS, {"z_v": X(2, 10, 4)}, "z_v must have shape (2, 5, 4), got (2, 10, 4)"),
    (CROSS, {"B": X(2, 5, 3)}, "B must have shape (2, 10, 3), got (2, 5, 3)"),
    (CONV, {"x": X(2, 5)}, "x must have shape (batch, length, dim), got (2, 5)"),
    (CONV, {"weight": X(5, 4)}, "weight must have shape (dim=4, width >= 1), got (5, 4)"),
    (CONV, {"weight": X(4, 0)}, "weight must have shape (dim=4, width >= 1), got (4, 0)"),
    (CONV, {"bias": X(1)}, "bias must have shape (4,), got (1,)"),
    (CONV, {"activation": "relu"}, "activation must be None or 'silu', got 'relu'"),
]  # fmt: skip


@pytest.mark.parametrize(
    "op, changes, message", CASES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_message(op, changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"{op}: {message}")):
        _call(op, **changes)


STREAMS = [
    (SCAN, ("u", "delta", "B", "C", "z")),
    (CROSS, ("v", "t", "delta", "B", "C", "z_v", "z_t")),
    (CONV, ("x",)),
]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
@pytest.mark.parametrize("op, name", [(op, name) for op, names in STREAMS for name in names])
def test_autocast_casts_floats_alone(op, name, dtype):
    make = testing.conv_inputs if op == CONV else testing.scan_inputs
    sizes = {} if op == CONV else dict(dstate=3, cross=op == CROSS)
    shape = make(batch=2, length=5, dim=4, **sizes)[name].shape
    wrong = {name: X(shape, dtype=dtype)}
    got = str(dtype).removeprefix("torch.")
    message = f"{op}: {name} must be float32, bfloat16, float16 or float64, got {got}"
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="^" + re.escape(message) + "$"),
    ):
        _call(op, **wrong)


@pytest.mark.parametrize("op", [SCAN, CROSS, CONV])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_backend_that_cannot_run_says_every_reason(op, backend):
    with pytest.raises(NotImplementedError) as error:
        _call(op, backend=backend)
    message = str(error.value)
    assert message.startswith(f"{op}: backend {backend!r} cannot run this: ")
    assert "runs on cuda, the inputs are on cpu" in message


def test_second_derivatives_say_which_backend_has_them():
    inputs = testing.scan_inputs(batch=1, length=3, dim=2, dstate=2)
    delta = inputs["delta"].requires_grad_()
    out = selective_scan(**inputs, backend="cpu")
    (slope,) = torch.autograd.grad(out.sum(), delta, create_graph=True)
    with pytest.raises(
        NotImplementedError, match=r"create_graph must be False, .* use backend='reference'"
    ):
        slope.sum().backward()
    out = selective_scan(**inputs, backend="reference")
    (slope,) = torch.autograd.grad(out.sum(), delta, create_graph=True)
    slope.sum().backward()
    assert delta.grad.abs().sum() > 0


BLOCK_CASES = [
    ({"d_model": 0}, "d_model must be a positive integer, got 0"),
    ({"d_state": 1.5}, "d_state must be a positive integer, got 1.5"),
    ({"d_conv": True}, "d_conv must be a positive integer, got True"),
    ({"dt_min": 0.0},
     "dt_min must be positive and at most dt_max, got dt_min=0.0 and dt_max=0.1"),
    ({"dt_min": 1.0},
     "dt_min must be positive and at most dt_max, got dt_min=1.0 and dt_max=0.1"),
    ({"expand": -1}, "expand must be a positive integer, got -1"),
    ({"dt_rank": "big"}, "dt_rank must be a positive integer or 'auto', got 'big'"),
    ({"interleave": "sum"}, "interleave must be one of ('product-sum', 'gated'), got 'sum'"),
]  # fmt: skip


@pytest.mark.parametrize(
    "changes, message", BLOCK_CASES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_block_options(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"CrossMambaBlock: {message}")):
        CrossMambaBlock(**{"d_model": 8} | changes)


@pytest.mark.parametrize("n_layers", [0, -1, 2.0])
def test_stack_options(n_layers):
    with pytest.raises(
        ValueError, match=f"CrossMamba: n_layers must be a positive integer, got {n_layers}"
    ):
        CrossMamba(8, n_layers)


@pytest.mark.parametrize(
    "visual, text, message",
    [
        (
            (2, 5, 7),
            (2, 5, 8),
            "visual must have shape (batch, length >= 1, d_model=8), got (2, 5, 7)",
        ),
        ((2, 5, 8), (2, 8), "text must have shape (batch, length >= 1, d_model=8), got (2, 8)"),
        (
            (2, 0, 8),
            (2, 5, 8),
            "visual must have shape (batch, length >= 1, d_model=8), got (2, 0, 8)",
        ),
        ((2, 5, 8), (3, 5, 8), "text must have the batch of visual (2), got 3"),
    ],
)
def test_block_inputs(visual, text, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"CrossMambaBlock: {message}")):
        CrossMambaBlock(8)(X(visual), X(text))


@pytest.mark.parametrize(
    "visual, text, message",
    [
        (None, X(2, 5, 8), "visual must be a tensor, got NoneType"),
        (X(2, 5, 8), [1.0], "text must be a tensor, got list"),
        (X(2, 5, 8).long(), X(2, 5, 8),
         "visual must be float32, bfloat16, float16 or float64, got int64"),
        (X(2, 5, 8), X(2, 5, 8).to_sparse(), "text must be dense, got sparse_coo"),
        (X(2, 5, 8), X(2, 5, 8, device="meta"), "text must be on cpu, got meta"),
        (X(2, 5, 8).double(), X(2, 5, 8).double(),
         "visual must be float32, as the block is, got float64"),
        (X(2, 5, 8), X(2, 5, 8).double(), "text must be float32, as the block is, got float64"),
        (X(2, 5, 8).half(), X(2, 5, 8).half(),
         "visual must be float32, as the block is, got float16"),
    ],
)  # fmt: skip
def test_block_streams(visual, text, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"CrossMambaBlock: {message}") + "$"):
        CrossMambaBlock(8)(visual, text)


@pytest.mark.parametrize("interleave", ["product-sum", "gated"])
@pytest.mark.parametrize("name", ["visual_lengths", "text_lengths"])
@pytest.mark.parametrize(
    "lengths, message",
    [
        (torch.tensor([1.0, 2.0]), "must be integers, got float32"),
        (torch.tensor([1, 2, 3]), "must have shape (batch=2,), got (3,)"),
        (torch.tensor([1, 6]), "must be in [0, 5], got 6"),
        (torch.tensor([-1, 5]), "must be in [0, 5], got -1"),
    ],
)
def test_block_lengths(interleave, name, lengths, message):
    block = CrossMambaBlock(8, interleave=interleave)
    with pytest.raises(ValueError, match="^" + re.escape(f"CrossMambaBlock: {name} {message}")):
        block(X(2, 5, 8), X(2, 5, 8), **{name: lengths})


@pytest.mark.parametrize("op", [SCAN, CROSS, CONV])
@pytest.mark.parametrize(
    "lengths",
    [
        [5, 3],
        (5, 3),
        np.array([5, 3]),
        *(torch.tensor([5, 3], dtype=getattr(torch, f"{s}int{n}"))
          for s in ("", "u") for n in (8, 16, 32)),
        torch.tensor([5, 3], dtype=torch.uint64),
    ],
    ids=lambda x: str(getattr(x, "dtype", type(x).__name__)),
)  # fmt: skip
def test_lengths_are_taken_in_any_form(op, lengths):
    first = 0 if op != CONV else slice(None)
    expected = _call(op, lengths=torch.tensor([5, 3]))[first]
    assert torch.equal(_call(op, lengths=lengths)[first], expected)


def test_block_takes_lists_of_lengths():
    block, visual, text = CrossMamba(8, 1), torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    expected = block(visual, text, torch.tensor([5, 3]), torch.tensor([1, 4]))
    for a, b in zip(block(visual, text, [5, 3], (1, 4)), expected, strict=True):
        assert torch.equal(a, b)
