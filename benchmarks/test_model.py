"""The whole model with each fusion, float32: what the choice of the fusion changes end to end."""

import pytest

from benchmarks import fusions, measure, models
from benchmarks.measure import DEVICE
from cmimtl.names import FUSIONS

QUICK = ("tiny", 8, "forward+backward", 3)
# preset, batch, pass, rounds. The base model is as large as the paper's; a benchmark on two cores
# has no time for its training.
CASES = [
    pytest.param(*QUICK, marks=pytest.mark.quick),
    ("tiny", 32, "forward", 10),
    ("tiny", 32, "forward+backward", 10),
    ("base", 4, "forward", 2),
]


@pytest.fixture(scope="module", autouse=True)
def green():
    """A model whose fusion is wrong gets no row."""
    fusions.check_kernels(DEVICE)
    fusions.check_attention(DEVICE)


@pytest.mark.parametrize("preset, batch, which, rounds", CASES)
def test_model(benchmark, record, preset, batch, which, rounds):
    # Both kinds of Cross-Mamba cost the same. One of them is enough for the base model.
    names = tuple(FUSIONS) if preset == "tiny" else ("cross-mamba", "transformer")
    built = {name: models.build(preset, name).to(DEVICE) for name in names}
    calls = {name: models.MAKE[which](model, batch, DEVICE) for name, model in built.items()}
    sizes = dict(preset=preset, batch=batch, which=which)
    rows = fusions.compare(benchmark, record, "model", built, calls, rounds=rounds, **sizes)
    for name, row in rows.items():
        row["parameters"] = fusions.parameters(built[name])
        row["fusion_parameters"] = fusions.parameters(built[name].fusion)
        row["samples_per_second"] = batch / row["seconds"]
        # A process that measures a peak takes seconds to load the libraries first.
        quick = (preset, batch, which, rounds) == QUICK
        if which != "forward" and (not quick or name == names[0]):
            row["peak_bytes"] = measure.peak_bytes(
                "benchmarks.models:peak_of_model", fusion=name, **sizes
            )
