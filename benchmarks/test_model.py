"""The whole model with each fusion: what the choice of the fusion changes end to end, float32."""

import pytest
import torch

from benchmarks import measure, models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# preset, batch, pass, rounds. The base model is as large as the paper's; its training does not fit
# the time of a benchmark on two cores.
CASES = [
    pytest.param("tiny", 8, "forward+backward", 3, marks=pytest.mark.quick),
    ("tiny", 32, "forward", 10),
    ("tiny", 32, "forward+backward", 10),
    ("base", 4, "forward", 2),
]


@pytest.mark.parametrize("preset, batch, which, rounds", CASES)
def test_model(benchmark, record, preset, batch, which, rounds):
    # Both interleave kinds of Cross-Mamba cost the same; of the base model one is enough.
    fusions = models.FUSIONS if preset == "tiny" else ("cross-mamba", "transformer")
    built = {fusion: models.build(preset, fusion).to(DEVICE) for fusion in fusions}
    calls = {name: models.MAKE[which](model, batch, DEVICE) for name, model in built.items()}
    ours, others = measure.interleave(benchmark, calls.pop(fusions[0]), calls, rounds)
    for name, timing in {fusions[0]: ours, **others}.items():
        sizes = dict(preset=preset, batch=batch, which=which)
        row = record.add(
            "model",
            name,
            timing,
            **sizes,
            parameters=sum(p.numel() for p in built[name].parameters()),
            fusion_parameters=sum(p.numel() for p in built[name].fusion.parameters()),
            samples_per_second=batch / timing.median,
            ratio=timing.median / ours.median,
        )
        if which != "forward":
            row["peak_bytes"] = measure.peak_bytes(
                "benchmarks.models:peak_of_model", fusion=name, **sizes
            )
