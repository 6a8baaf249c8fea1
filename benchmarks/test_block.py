"""One Cross-Mamba block: the time of its parts, and what it keeps for the backward pass."""

import statistics

import pytest
from torch.profiler import ProfilerActivity, profile

from benchmarks import fusions, limits, measure
from benchmarks.measure import DEVICE
from cmimtl_kernels import testing

# Part -> how the names of its operators begin. All other operators are in the part REST.
PARTS = {
    "GEMM": ("aten::mm", "aten::addmm", "aten::bmm"),
    "scan": ("cmimtl::cross_selective_scan", "cmimtl::selective_scan"),
    "convolution": ("cmimtl::causal_conv1d",),
    "LayerNorm": ("aten::native_layer_norm",),
}
REST = "elementwise and copies"
WHOLE = "whole block"
QUICK = (2, 32, 32)


def time_by_part(call, rounds: int = 9) -> dict[str, float]:
    """Seconds of a call in each part: the operators' own time, its median over the rounds."""
    for _ in range(3):  # after these the allocator has all the memory that it needs
        call()
    activity = ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU
    found: dict[str, list[float]] = {part: [] for part in (*PARTS, REST)}
    for _ in range(rounds):
        with profile(activities=[activity]) as profiler:
            call()
        own = dict.fromkeys(found, 0.0)
        for event in profiler.key_averages():
            time = event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total
            own[part_of(event.key)] += 1e-6 * time
        for part, seconds in own.items():
            found[part].append(seconds)
    return {part: statistics.median(seconds) for part, seconds in found.items()}


def block_alone(batch: int, n_visual: int, n_text: int) -> dict:
    """For measure.value_alone: seconds of the forward and backward pass of one block, of the whole
    in each round and of each part."""
    block = fusions.cross_mamba(layers=1).layers[0].to(DEVICE)
    call = fusions.forward_backward(block, *fusions.streams(batch, n_visual, n_text, DEVICE))
    return {"rounds": measure.rounds_of(call, 9), "parts": time_by_part(call)}


def part_of(operator: str) -> str:
    """The part that an operator belongs to."""
    return next((part for part, begins in PARTS.items() if operator.startswith(begins)), REST)


@pytest.mark.quick
def test_part_of():
    assert part_of("cmimtl::cross_selective_scan_bwd") == "scan"
    assert part_of("aten::native_layer_norm_backward") == "LayerNorm"
    assert part_of("aten::mul") == REST


@pytest.mark.parametrize("size", [pytest.param(QUICK, marks=pytest.mark.quick), *fusions.SIZES])
def test_where_the_time_goes(record, size):
    fusions.check_kernels(DEVICE)
    batch, n_visual, n_text = size
    shape = dict(batch=batch, n_visual=n_visual, n_text=n_text)
    block = fusions.cross_mamba(layers=1).layers[0].to(DEVICE)
    call = fusions.forward_backward(block, *fusions.streams(*size, DEVICE))
    parameters = sum(p.numel() for p in block.parameters())
    work, gemms = limits.module_work(call, parameters, "forward+backward", DEVICE)
    with record.rates() as machine:
        # Another process loads the libraries for longer than the quick row takes in this one.
        if size == QUICK:
            alone = block_alone(**shape)
        else:
            alone = measure.value_alone("benchmarks.test_block:block_alone", **shape)
    whole, parts = measure.Timing(tuple(alone["rounds"])), alone["parts"]
    shape["which"] = "forward+backward"
    record.add(
        "block",
        WHOLE,
        whole,
        **shape,
        kept_bytes=testing.kept_bytes(block, *fusions.streams(*size, DEVICE)),
        **machine.limit(work, whole),
    )
    scans = limits.Work(work.fma - gemms.fma, work.bytes - gemms.bytes, work.ex2)
    total = sum(parts.values())
    for part, seconds in parts.items():
        row = record.add("block", part, **shape, seconds=seconds, share=seconds / total)
        if part in ("GEMM", "scan"):
            least = gemms if part == "GEMM" else scans
            row |= machine.limit(least, measure.Timing((seconds,)))
