"""The scan per backend against everybody else's, fused with softplus, bias, D and gate."""

import pytest
import torch

from benchmarks import limits, measure
from benchmarks.baselines import BASELINES, Baseline
from cmimtl_kernels import backends, selective_scan, testing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DSTATE = 16

# batch, length, dim. A block of batch 16 on text; ViT-B/16 tokens at 384, interleaved; a long scan;
# two small calls, where the fixed cost of a call counts.
WORKLOADS = [
    (16, 64, 1536),
    (4, 1154, 1536),
    (1, 16384, 1536),
    (1, 64, 1536),
    (2, 33, 96),
]
PASSES = ("forward", "forward+backward")
QUICK = ((2, 33, 96), "forward+backward")


def _name(workload):
    return "x".join(map(str, workload))


@pytest.fixture(scope="module", autouse=True)
def green():
    """No row of an op that is wrong."""
    for name in _backends():
        testing.check_op(
            "selective_scan",
            testing.scan_inputs(length=70, dim=40, device=DEVICE),
            backend=name,
            delta_softplus=True,
        )


def _backends() -> list[str]:
    reasons = backends.explain(torch.zeros(1, 1, 1, device=DEVICE), DSTATE)
    return [name for name, why in reasons.items() if not why and name != "reference"]


def _inputs(workload, dtype=torch.float32):
    batch, length, dim = workload
    return testing.scan_inputs(
        batch, length, dim, DSTATE, initial_state=False, dtype=dtype, device=DEVICE
    )


def _ours(backend: str) -> Baseline:
    def scan(u, delta, A, B, C, D, z, delta_bias):
        return selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, backend=backend
        )

    return Baseline(backend, scan, channels_last=True)


def _rounds(workload) -> int:
    batch, length, dim = workload
    return max(5, min(100, 2**27 // (batch * length * dim * DSTATE)))


@pytest.mark.parametrize(
    "workload, which",
    [
        pytest.param(
            workload,
            which,
            id=f"{which}-{_name(workload)}",
            marks=[pytest.mark.quick] if (workload, which) == QUICK else [],
        )
        for which in PASSES
        for workload in WORKLOADS
    ],
)
@pytest.mark.parametrize("backend", _backends())
def test_selective_scan(benchmark, record, backend, workload, which):
    inputs = _inputs(workload)
    backward = which != "forward"
    others, not_run = {}, {}
    for baseline in BASELINES:
        if reason := baseline.why_not(inputs, backward):
            not_run[baseline.name] = reason
        else:
            others[baseline.name] = baseline.prepare(inputs, backward)
    rate = record.fma_rate()
    ours, theirs = measure.interleave(
        benchmark, _ours(backend).prepare(inputs, backward), others, _rounds(workload)
    )
    rate = max(rate, record.fma_rate()) if rate else None

    batch, length, dim = workload
    elements = batch * length * dim * DSTATE
    shape = dict(batch=batch, length=length, dim=dim, dstate=DSTATE, dtype="float32", which=which)
    least = None
    if rate and DEVICE == "cpu":
        passes = ("forward", "backward") if backward else ("forward",)
        least = sum(limits.scan_seconds(elements, which, rate) for which in passes)
    for name, timing in {backend: ours, **theirs}.items():
        record.add(
            "ops",
            name,
            timing,
            **shape,
            ns_per_element=1e9 * timing.median / elements,
            share_of_limit=least and least / timing.median,
            ratio=timing.median / ours.median,
        )
    for name, reason in not_run.items():
        record.add("ops", name, **shape, not_run=reason)


@pytest.mark.parametrize("workload", WORKLOADS[:3], ids=_name)
@pytest.mark.parametrize("backend", _backends())
def test_backward_alone(benchmark, record, backend, workload):
    """The backward pass by itself, as a share of its own limit."""
    inputs = {name: x for name, x in _inputs(workload).items() if x is not None}
    leaves = [x.requires_grad_() for x in inputs.values()]
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    cotangent = torch.ones_like(out)
    rate = record.fma_rate()
    timing, _ = measure.interleave(
        benchmark,
        lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True),
        {},
        _rounds(workload),
    )
    rate = max(rate, record.fma_rate()) if rate else None
    batch, length, dim = workload
    elements = batch * length * dim * DSTATE
    least = limits.scan_seconds(elements, "backward", rate) if rate and DEVICE == "cpu" else None
    record.add(
        "ops",
        backend,
        timing,
        batch=batch,
        length=length,
        dim=dim,
        dstate=DSTATE,
        dtype="float32",
        which="backward",
        ns_per_element=1e9 * timing.median / elements,
        share_of_limit=least and least / timing.median,
    )


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("backend", _backends())
def test_half_precision(benchmark, record, backend, which):
    """bfloat16 and float16 beside float32, on the second workload."""
    workload = (4, 1154, 1536)
    backward = which != "forward"
    calls = {
        str(dtype).removeprefix("torch."): _ours(backend).prepare(
            _inputs(workload, dtype), backward
        )
        for dtype in (torch.bfloat16, torch.float16)
    }
    single = _ours(backend).prepare(_inputs(workload), backward)
    ours, halves = measure.interleave(benchmark, single, calls, _rounds(workload))
    batch, length, dim = workload
    for name, timing in {"float32": ours, **halves}.items():
        record.add(
            "dtypes",
            backend,
            timing,
            batch=batch,
            length=length,
            dim=dim,
            dstate=DSTATE,
            dtype=name,
            which=which,
            ratio=timing.median / ours.median,
        )


def peak_of_scan(workload: list[int], backend: str):
    """For measure.peak_bytes: forward and backward of one workload, and what it must hold at
    least."""
    call = _ours(backend).prepare(_inputs(workload), backward=True)
    return call


@pytest.mark.parametrize("length", [289, 1154, 4616])
@pytest.mark.parametrize("backend", _backends())
def test_peak_memory(record, backend, length):
    """Beyond inputs, outputs and gradients, as a share of the states that a plain scan would
    write."""
    workload = (4, length, 1536)
    batch, length, dim = workload
    peak = measure.peak_bytes(
        "benchmarks.test_ops:peak_of_scan", workload=workload, backend=backend
    )
    outputs = 4 * batch * length * (dim + 3 * dim + 2 * DSTATE)  # out; du, ddelta, dz; dB, dC
    states = 4 * batch * length * dim * DSTATE
    record.add(
        "peak",
        backend,
        batch=batch,
        length=length,
        dim=dim,
        dstate=DSTATE,
        peak_bytes=peak,
        extra_bytes=peak - outputs,
        share_of_states=(peak - outputs) / states,
    )
    assert (peak - outputs) / states < 1 / 8
