"""The whole model with each fusion: what the choice of the fusion changes end to end, float32."""

import pytest

from benchmarks import fusions, measure, models
from benchmarks.measure import DEVICE
from cmimtl.names import FUSIONS

QUICK = ("tiny", 8, "forward+backward", 3)
# preset, batch, pass, rounds. The base model is as large as the paper's; its training does not fit
# the time of a benchmark on two cores.
CASES = [
    pytest.param(*QUICK, marks=pytest.mark.quick),
    ("tiny", 32, "forward", 10),
    ("tiny", 32, "forward+backward", 10),
    ("base", 4, "forward", 2),
]


@pytest.fixture(scope="module", autouse=True)
def green():
    """No row of a fusion that is wrong."""
    fusions.check_kernels(DEVICE)
    fusions.check_attention(DEVICE)


@pytest.mark.parametrize("preset, batch, which, rounds", CASES)
def test_model(benchmark, record, preset, batch, which, rounds):
    # Both interleave kinds of Cross-Mamba cost the same; of the base model one is enough.
    names = tuple(FUSIONS) if preset == "tiny" else ("cross-mamba", "transformer")
    built = {name: models.build(preset, name).to(DEVICE) for name in names}
    calls = {name: models.MAKE[which](model, batch, DEVICE) for name, model in built.items()}
    work, first = fusions.noted_work(built, which)
    with record.rates() as machine:
        timings, _ = measure.interleave(benchmark, calls, rounds, first)
    sizes = dict(preset=preset, batch=batch, which=which)
    for name, timing in timings.items():
        row = record.add(
            "model",
            name,
            timing,
            **sizes,
            parameters=fusions.parameters(built[name]),
            fusion_parameters=fusions.parameters(built[name].fusion),
            samples_per_second=batch / timing.median,
            ratio=timing.median / timings[names[0]].median,
            **machine.limit(work[name], timing),
        )
        # A process that measures a peak first takes seconds to load the libraries.
        quick = (preset, batch, which, rounds) == QUICK
        if which != "forward" and (not quick or name == names[0]):
            row["peak_bytes"] = measure.peak_bytes(
                "benchmarks.models:peak_of_model", fusion=name, **sizes
            )
