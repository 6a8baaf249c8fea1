"""One Cross-Mamba block: where its time goes, and what it keeps for the backward pass."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import fusions
from cmimtl_kernels import testing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Part -> the operators whose own time it is; the rest is "elementwise and copies".
PARTS = {
    "GEMM": ("aten::mm", "aten::addmm", "aten::bmm"),
    "scan": ("cmimtl::cross_selective_scan_fwd", "cmimtl::cross_selective_scan_bwd"),
    "convolution": ("cmimtl::causal_conv1d_fwd", "cmimtl::causal_conv1d_bwd"),
    "LayerNorm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
}
REST = "elementwise and copies"


def time_by_part(call, rounds: int = 10) -> dict[str, float]:
    """Seconds per call of each part, by the operators' own time."""
    call()
    activity = ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(rounds):
            call()
    seconds = dict.fromkeys([*PARTS, REST], 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total
        part = next((p for p, names in PARTS.items() if event.key in names), REST)
        seconds[part] += own * 1e-6 / rounds
    return seconds


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((16, 32, 32), marks=pytest.mark.quick, id="16x32+32"),
        pytest.param((4, 577, 32), id="4x577+32"),
    ],
)
def test_where_the_time_goes(record, size):
    block = fusions.cross_mamba(layers=1).layers[0].to(DEVICE)
    call = fusions.forward_backward(block, *fusions.streams(*size, DEVICE))
    seconds = time_by_part(call)
    total = sum(seconds.values())
    batch, n_visual, n_text = size
    inputs = fusions.streams(*size, DEVICE)
    kept = testing.kept_bytes(block, *inputs)
    for part, own in seconds.items():
        record.add(
            "block",
            part,
            batch=batch,
            n_visual=n_visual,
            n_text=n_text,
            which="forward+backward",
            seconds=own,
            share=own / total,
            kept_bytes=kept,
        )
