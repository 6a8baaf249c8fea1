"""The scan with softplus, bias, D and gate: each of our backends against everybody else's."""

import pytest
import torch

from benchmarks import limits, measure
from benchmarks.baselines import (
    BASELINES,
    LARGE,
    PATCHES,
    SMALL,
    Baseline,
    agreement,
    compiled,
)
from benchmarks.measure import DEVICE
from cmimtl_kernels import backends, selective_scan, testing

DSTATE = 16

WORKLOADS = [*LARGE, *SMALL]
PASSES = ("forward", "forward+backward")
QUICK = ((2, 33, 96), "forward+backward")
# How many steps the compiled baseline unrolls there. The compiler takes 24 core seconds for one, 33
# for three, and several times as long for the 16 steps and the one that is left, two shapes.
QUICK_UNROLL = 1

# A baseline is left out where its call would take more seconds, by its rate on a smaller workload.
LONGEST_CALL = 2.0


def _name(workload):
    return "x".join(map(str, workload))


def _shape(workload, which, dtype="float32") -> dict:
    batch, length, dim = workload
    return dict(batch=batch, length=length, dim=dim, dstate=DSTATE, dtype=dtype, which=which)


def _elements(workload) -> int:
    batch, length, dim = workload
    return batch * length * dim * DSTATE


@pytest.fixture(scope="module", autouse=True)
def green():
    """A backend whose result is wrong gets no row."""
    for name in _backends():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            testing.check_op(
                "selective_scan",
                testing.scan_inputs(length=70, dim=40, dtype=dtype, device=DEVICE),
                backend=name,
                delta_softplus=True,
            )


def _backends() -> list[str]:
    reasons = backends.explain(backends.Call("selective_scan", DEVICE, torch.float32, DSTATE))
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
    return max(15, min(30, 2**27 // _elements(workload)))


def _calls_of_round(workload) -> int:
    return max(1, min(100, 2**25 // _elements(workload)))


def _work(workload, which) -> limits.Work:
    return limits.scan_work(*workload, DSTATE, which, DEVICE)


class Rates:
    """Seconds per state of each baseline on the workloads so far, which tell how long a larger
    workload would take."""

    def __init__(self):
        self.known: dict[tuple[str, bool], tuple[float, tuple[int, int, int]]] = {}

    def note(self, baseline: str, backward: bool, workload, seconds: float) -> None:
        if workload in LARGE:
            self.known[baseline, backward] = seconds / _elements(workload), workload

    def expected(self, baseline: Baseline, backward: bool, workload) -> tuple[float, str] | None:
        """The seconds that a call would take, and from which workload this follows."""
        if (baseline.name, backward) not in self.known:
            return None
        rate, source = self.known[baseline.name, backward]
        seconds, why = rate * _elements(workload), f"by its rate at {_name(source)}"
        if baseline.quadratic and backward:
            seconds *= workload[1] / source[1]
            why += "; its backward pass is quadratic in length"
        return seconds, why


@pytest.fixture(scope="module")
def rates():
    return Rates()


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
def test_selective_scan(benchmark, record, rates, backend, workload, which):
    inputs, backward = _inputs(workload), which != "forward"
    candidates, not_run = {backend: _ours(backend)}, {}
    quick = (workload, which) == QUICK
    for baseline in (compiled(QUICK_UNROLL), *BASELINES[1:]) if quick else BASELINES:
        reason = baseline.why_not(workload, DSTATE, backward)
        expected = rates.expected(baseline, backward, workload)
        if not reason and expected and expected[0] > LONGEST_CALL:
            reason = "takes too long"
        if reason:
            not_run[baseline.name] = reason, expected
        else:
            candidates[baseline.name] = baseline
    calls = {name: each.prepare(inputs, backward) for name, each in candidates.items()}
    with record.rates() as machine:
        timings, refused = measure.interleave(
            benchmark,
            calls,
            _rounds(workload),
            agreement(backend, candidates),
            _calls_of_round(workload),
        )

    shape, ours = _shape(workload, which), timings[backend].median
    for name, timing in timings.items():
        rates.note(name, backward, workload, timing.median)
        record.add(
            "ops",
            name,
            timing,
            **shape,
            ns_per_element=1e9 * timing.median / _elements(workload),
            ratio=timing.median / ours,
            **machine.limit(_work(workload, which), timing),
        )
    for name, (reason, expected) in not_run.items():
        fields = {"not_run": reason}
        if expected:
            seconds, why = expected
            fields["not_run"] += f": {seconds:.0f} s a call, {why}"
            fields["expected_ratio"] = seconds / ours
        record.add("ops", name, **shape, **fields)
    for name, reason in refused.items():
        record.add("ops", name, **shape, not_run=reason)


def pass_alone(workload: list[int], backend: str, which: str) -> list[float]:
    """For measure.value_alone: the rounds of one pass of one workload."""
    inputs = _inputs(workload)
    if which == "forward":
        call = _ours(backend).prepare(inputs, backward=False)
    else:
        given = {name: x for name, x in inputs.items() if x is not None}
        leaves = [x.requires_grad_() for x in given.values()]
        out = selective_scan(**given, delta_softplus=True, backend=backend)
        ones = torch.ones_like(out)
        call = lambda: torch.autograd.grad(out, leaves, ones, retain_graph=True)  # noqa: E731
    return measure.rounds_of(call, _rounds(workload))


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("workload", LARGE, ids=_name)
@pytest.mark.parametrize("backend", _backends())
def test_kernel(record, backend, workload, which):
    """The time of each pass by itself, as a share of its limit."""
    with record.rates() as machine:
        place = dict(workload=workload, backend=backend, which=which)
        found = measure.value_alone("benchmarks.test_ops:pass_alone", **place)
    timing = measure.Timing(tuple(found))
    record.add(
        "kernel",
        backend,
        timing,
        **_shape(workload, which),
        ns_per_element=1e9 * timing.median / _elements(workload),
        **machine.limit(_work(workload, which), timing),
    )


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("backend", _backends())
def test_half_precision(benchmark, record, backend, which):
    """The scan in bfloat16 and float16 beside float32."""
    calls = {
        str(dtype).removeprefix("torch."): _ours(backend).prepare(
            _inputs(PATCHES, dtype), which != "forward"
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    with record.rates() as machine:
        timings, _ = measure.interleave(benchmark, calls, rounds=15)
    for dtype, timing in timings.items():
        record.add(
            "dtypes",
            backend,
            timing,
            **_shape(PATCHES, which, dtype),
            ratio=timing.median / timings["float32"].median,
            # The limit of float32: the FMA pipes, which limit a scan, do the same in every dtype.
            **machine.limit(_work(PATCHES, which), timing),
        )


def peak_of_scan(workload: list[int], backend: str):
    """For measure.peak_bytes: the call of one workload, forward and backward."""
    return _ours(backend).prepare(_inputs(workload), backward=True)


@pytest.mark.parametrize("length", [289, 1154, 4616])
@pytest.mark.parametrize("backend", _backends())
def test_peak_memory(record, backend, length):
    """The peak beyond inputs, outputs and gradients, as a share of the states that a plain scan
    would write."""
    workload = (4, length, 1536)
    batch, length, dim = workload
    peak = measure.peak_bytes(
        "benchmarks.test_ops:peak_of_scan", workload=workload, backend=backend
    )
    outputs = 4 * batch * length * (dim + 3 * dim + 2 * DSTATE)  # out; du, ddelta, dz; dB, dC
    states = 4 * _elements(workload)
    record.add(
        "peak",
        backend,
        **_shape(workload, "forward+backward"),
        peak_bytes=peak,
        least_bytes=outputs,
        extra_bytes=peak - outputs,
        share_of_states=(peak - outputs) / states,
    )
    assert (peak - outputs) / states < 1 / 8
