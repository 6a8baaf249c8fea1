"""The raw ops take nothing that they would go wrong with, and what autograd saved is checked when
it comes back: see raw_calls.py. CMIMTL_RAW_CALLS=N makes N random calls of each op, and
CMIMTL_RAW_CALLS_SEED draws others."""

import os
import re

import pytest
import torch

from cmimtl_kernels import _library, causal_conv1d, cross_selective_scan, selective_scan, testing
from tests.kernels import raw_calls, sanitized

NOT_BUILT = _library.load_libraries()["cpu"]
pytestmark = pytest.mark.skipif(NOT_BUILT is not None, reason=f"the CPU library: {NOT_BUILT}")

COUNT = int(os.environ.get("CMIMTL_RAW_CALLS", 0))
SEED = int(os.environ.get("CMIMTL_RAW_CALLS_SEED", 0))
OPS = {
    "selective_scan": selective_scan,
    "cross_selective_scan": cross_selective_scan,
    "causal_conv1d": causal_conv1d,
}


def test_random_calls():
    outcomes = raw_calls.run_all("cmimtl", COUNT or 100, SEED)
    assert min(outcomes.values()) > sum(outcomes.values()) / 4, outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[int, str]]:
    folder = tmp_path_factory.mktemp("sanitized")
    sources = sanitized.planted_sources(folder)
    sanitized.package(folder, sources, sanitized.ADDRESS, sanitized.level())
    return sanitized.outcomes(folder, COUNT or 40, SEED)


def test_no_call_leaves_a_tensor(outcomes):
    status, said = outcomes[sanitized.CLEAN]
    assert status == 0 and "'computed'" in said, said


@pytest.mark.parametrize("fault", sanitized.FAULTS)
def test_fault_is_seen(fault, outcomes):
    status, said = outcomes[fault]
    assert status != 0, said
    assert re.search("AddressSanitizer: |it breaks a convention of the schema", said), said


def call_of(name: str) -> raw_calls.Call:
    """A call of a raw op in float32 with every tensor given: 2 samples, 5 steps, 4 channels, 3
    states, 2 groups, width 3."""
    if name.startswith("causal"):
        call = testing.conv_inputs(2, 5, 4, 3, lengths=torch.tensor([5, 2]))
        call |= {"silu": True, "reverse": False}
    else:
        cross = name.startswith("cross")
        lengths = torch.tensor([5, 2])
        call = testing.scan_inputs(2, 5, 4, 3, cross=cross, ngroups=2, lengths=lengths)
        call |= {"delta_softplus": True, "reverse": False, "checkpoint_every": 4}
    if name.endswith("bwd"):
        outputs = raw_calls.run("cmimtl", name.replace("bwd", "fwd"), call)
        gradients = ("dout_v", "dout_t") if "v" in call else ("dout",)
        call |= dict(zip((*gradients, "dlast_state", "checkpoints"), outputs, strict=False))
    return call


STREAM, STATE, CHUNKS = (f"have shape {shape}" for shape in ((2, 5, 4), (2, 4, 3), (2, 2, 4, 3)))
# op, argument -> what it is given instead, what it must be, what it is said to be.
REFUSED = [
    ("selective_scan_fwd", "u", torch.zeros(2, 5), "have shape (batch, length, dim)", "(2, 5)"),
    (
        "selective_scan_fwd",
        "u",
        torch.zeros(2, 5, 4).int(),
        "be float32, bfloat16, float16 or float64",
        "int32",
    ),
    ("selective_scan_fwd", "delta", torch.zeros(2, 5, 4).half(), "be float32", "float16"),
    ("selective_scan_fwd", "A", torch.zeros(4, 3).double(), "be float32", "float64"),
    ("selective_scan_fwd", "A", torch.zeros(4, 0), "have shape (dim=4, dstate >= 1)", "(4, 0)"),
    ("selective_scan_fwd", "A", torch.zeros(4, 3, device="meta"), "be on cpu", "meta"),
    (
        "selective_scan_fwd",
        "B",
        torch.zeros(2, 5, 3, 3),
        "have shape (batch, steps, dstate) or (batch, steps, ngroups, dstate) with ngroups a"
        " divisor of dim=4",
        "(2, 5, 3, 3)",
    ),
    ("selective_scan_fwd", "C", torch.zeros(2, 5, 3), "have shape (2, 5, 2, 3)", "(2, 5, 3)"),
    ("selective_scan_fwd", "D", torch.zeros(4).bfloat16(), "be float32", "bfloat16"),
    ("selective_scan_fwd", "initial_state", torch.zeros(2, 3, 4), STATE, "(2, 3, 4)"),
    ("selective_scan_fwd", "lengths", torch.tensor([5, 2]).int(), "be int64", "int32"),
    ("selective_scan_fwd", "checkpoint_every", 17, "be a multiple of 1 up to 16", "17"),
    ("selective_scan_bwd", "checkpoint_every", 0, "be positive in the backward pass", "0"),
    ("selective_scan_bwd", "checkpoints", torch.zeros(2, 1, 4, 3), CHUNKS, "(2, 1, 4, 3)"),
    ("selective_scan_bwd", "dlast_state", torch.zeros(2, 4), STATE, "(2, 4)"),
    ("selective_scan_bwd", "dout", torch.zeros(2, 5, 4).bfloat16(), "be float32", "bfloat16"),
    ("cross_selective_scan_fwd", "t", None, "be a tensor", "None"),
    ("cross_selective_scan_fwd", "z_t", None, "be given together with z_v", "None"),
    ("cross_selective_scan_fwd", "checkpoint_every", 3, "be a multiple of 2 up to 16", "3"),
    ("cross_selective_scan_bwd", "dout_t", torch.zeros(2, 9, 4), STREAM, "(2, 9, 4)"),
    ("causal_conv1d_fwd", "weight", torch.zeros(4, 0), "have shape (dim=4, width >= 1)", "(4, 0)"),
    ("causal_conv1d_fwd", "bias", torch.zeros(4, 1), "have shape (4,)", "(4, 1)"),
    ("causal_conv1d_bwd", "dout", torch.zeros(2, 4, 5), STREAM, "(2, 4, 5)"),
]


@pytest.mark.parametrize(
    ("name", "argument", "value", "must", "got"), REFUSED, ids=lambda x: x if type(x) is str else ""
)
def test_refused(name, argument, value, must, got):
    call = call_of(name)
    raw_calls.run("cmimtl", name, call)
    with pytest.raises(RuntimeError) as error:
        raw_calls.run("cmimtl", name, call | {argument: value})
    assert str(error.value).splitlines()[0] == f"{name}: {argument} must {must}, got {got}"


def inputs_of(op: str) -> dict:
    if op == "causal_conv1d":
        inputs = testing.conv_inputs(2, 5, 4, 3)
    else:
        inputs = testing.scan_inputs(2, 5, 4, 3, cross=op.startswith("cross"), ngroups=2)
    return {name: x if x is None else x.requires_grad_() for name, x in inputs.items()}


def halve(x):
    x.data = x.data.half()


def shrink(x):
    x.data = x.data.flatten()[:1]


def free(x):
    x.untyped_storage().resize_(0)


@pytest.mark.parametrize("change", [halve, shrink, free], ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("op", "argument"),
    [("selective_scan", n) for n in ("u", "delta", "A", "B", "D", "z", "initial_state")]
    + [("cross_selective_scan", n) for n in ("t", "C", "z_t", "delta_bias")]
    + [("causal_conv1d", n) for n in ("x", "weight", "bias")],
)
def test_what_was_saved_may_change_between_the_passes(op, argument, change):
    """By its `data`, or by its memory, as FSDP frees it. Autograd's own check sees neither."""
    inputs = inputs_of(op)
    out = OPS[op](**inputs, backend="cpu")
    loss = sum(x.sum() for x in out) if isinstance(out, tuple) else out.sum()
    change(inputs[argument])
    with pytest.raises(RuntimeError, match=rf"{op}_bwd: \w+ must .*, got "):
        loss.backward()


@pytest.mark.parametrize("op", OPS)
def test_hooks_may_change_what_is_saved(op):
    inputs = inputs_of(op)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.bfloat16()):
        out = OPS[op](**inputs, backend="cpu")
        loss = sum(x.sum() for x in out) if isinstance(out, tuple) else out.sum()
        with pytest.raises(RuntimeError, match=rf"{op}_bwd: \w+ must be \w+, got \w+"):
            loss.backward()
