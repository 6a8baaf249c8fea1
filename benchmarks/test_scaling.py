"""The slope of one fusion layer in length and in batch."""

import pytest
import torch

from benchmarks import fusions, measure

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (32, 128, 512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 2, 4, 8, 16, 32)
TEXT = 32

LAYERS = {
    "Cross-Mamba": lambda: fusions.cross_mamba(layers=1),
    "Cross-Mamba, bidirectional": lambda: fusions.cross_mamba(layers=1, bidirectional=True),
    "Transformer co-attention": lambda: fusions.transformer(layers=1),
}

# Attention over more tokens takes up to a minute forward and backward on two cores; its slope is
# clear before.
LONGEST_WITH_BACKWARD = {"Transformer co-attention": 4096}


def _measure(benchmark, record, suite, batch, length, which, rounds):
    make = fusions.forward if which == "forward" else fusions.forward_backward
    calls = {}
    for name, layer in LAYERS.items():
        if which != "forward" and length > LONGEST_WITH_BACKWARD.get(name, length):
            reason = "takes minutes"
            record.add(suite, name, batch=batch, length=length, which=which, not_run=reason)
            continue
        calls[name] = make(layer().to(DEVICE), *fusions.streams(batch, length, TEXT, DEVICE))
    ours, others = measure.interleave(benchmark, calls.pop("Cross-Mamba"), calls, rounds)
    for name, timing in {"Cross-Mamba": ours, **others}.items():
        record.add(
            suite,
            name,
            timing,
            batch=batch,
            length=length,
            which=which,
            seconds_per_token=timing.median / (batch * length),
            ratio=timing.median / ours.median,
        )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("which", ["forward", "forward+backward"])
def test_length(benchmark, record, length, which):
    _measure(benchmark, record, "length", 1, length, which, rounds=3 if length > 2048 else 5)


@pytest.mark.parametrize("batch", BATCHES)
def test_batch(benchmark, record, batch):
    _measure(benchmark, record, "batch", batch, 32, "forward+backward", rounds=5)


def peak_of_layer(name: str, length: int):
    """For measure.peak_bytes."""
    module = LAYERS[name]().to(DEVICE)
    return fusions.forward_backward(module, *fusions.streams(1, length, TEXT, DEVICE))


@pytest.mark.parametrize("length", [512, 2048, 8192])
@pytest.mark.parametrize("name", LAYERS)
def test_peak(record, name, length):
    peak = measure.peak_bytes("benchmarks.test_scaling:peak_of_layer", name=name, length=length)
    record.add("length memory", name, batch=1, length=length, peak_bytes=peak)
