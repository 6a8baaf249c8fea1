"""How the time and memory of one fusion layer grow with length and with batch."""

import pytest

from benchmarks import fusions, measure
from benchmarks.measure import DEVICE

LENGTHS = (32, 128, 512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 2, 4, 8, 16, 32)
TEXT = 32

LAYERS = {
    fusions.OURS: lambda: fusions.cross_mamba(layers=1),
    fusions.BIDIRECTIONAL: lambda: fusions.cross_mamba(layers=1, bidirectional=True),
    fusions.CO_ATTENTION: lambda: fusions.transformer(layers=1),
}

# With more tokens the forward and backward pass of attention take up to a minute on two cores; the
# slope is clear before.
LONGEST_WITH_BACKWARD = {fusions.CO_ATTENTION: 4096} if DEVICE == "cpu" else {}


@pytest.fixture(scope="module", autouse=True)
def green():
    """A layer whose result is wrong gets no row."""
    fusions.check_kernels(DEVICE)
    fusions.check_attention(DEVICE)


@pytest.fixture(scope="module", autouse=True)
def kept():
    """An allocator that keeps its memory, for all layers. Otherwise the lines have a bend where a
    tensor becomes larger than 32 MiB."""
    measure.keep_memory()
    yield
    measure.keep_memory(False)


def _measure(benchmark, record, suite, batch, length, which, rounds):
    layers, not_run = {}, {}
    for name, layer in LAYERS.items():
        if which != "forward" and length > LONGEST_WITH_BACKWARD.get(name, length):
            not_run[name] = "left out: up to a minute a call, quadratic in length"
        else:
            layers[name] = layer().to(DEVICE)
    calls = {
        name: fusions.MAKE[which](layer, *fusions.streams(batch, length, TEXT, DEVICE))
        for name, layer in layers.items()
    }
    shape = dict(batch=batch, length=length, which=which)
    rows = fusions.compare(benchmark, record, suite, layers, calls, rounds=rounds, **shape)
    for row in rows.values():
        # Tokens of both streams: most of the time is in projections, which see all of them.
        row["seconds_per_token"] = row["seconds"] / (batch * (length + TEXT))
    for name, reason in not_run.items():
        record.add(suite, name, **shape, not_run=reason)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("which", ["forward", "forward+backward"])
def test_length(benchmark, record, length, which):
    rounds = 15 if length <= 2048 else 5 if length <= 8192 else 3
    _measure(benchmark, record, "length", 1, length, which, rounds)


@pytest.mark.parametrize("batch", BATCHES)
def test_batch(benchmark, record, batch):
    _measure(benchmark, record, "batch", batch, 32, "forward+backward", rounds=5)


def peak_of_layer(name: str, length: int):
    """For measure.peak_bytes: the call of one layer, forward and backward."""
    module = LAYERS[name]().to(DEVICE)
    return fusions.forward_backward(module, *fusions.streams(1, length, TEXT, DEVICE))


@pytest.mark.parametrize("length", [512, 2048, 8192])
@pytest.mark.parametrize("name", LAYERS)
def test_peak(record, name, length):
    row = dict(batch=1, length=length, which="forward+backward")
    if length > 2 * LONGEST_WITH_BACKWARD.get(name, length):
        record.add("length memory", name, **row, not_run="left out: minutes, quadratic in length")
        return
    peak = measure.peak_bytes("benchmarks.test_scaling:peak_of_layer", name=name, length=length)
    record.add("length memory", name, **row, peak_bytes=peak)
