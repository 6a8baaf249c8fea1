"""`scale` from rows and costs that were made up: lines, and what is said of them."""

import numpy as np
import pytest

from cmimtl.experiments import scale
from cmimtl.experiments.page import page
from cmimtl.experiments.record import make_record
from cmimtl.experiments.study import runs_of

QUESTIONS = 100


def rows(right):
    """A question about each image, of which so many are answered right."""
    return [
        {
            "image": f"image {number}",
            "answer": "yes",
            "answer_type": ("open", "closed")[number % 2],
            "classified": "yes" if number < right else "no",
        }
        for number in range(QUESTIONS)
    ]


def test_a_line():
    accuracies = np.array([[0.1, 0.3, 0.5], [0.5, 0.5, 0.5]])
    a, b = scale.line([1, 10, 100], accuracies)
    assert a == pytest.approx([0.1, 0.5]) and b == pytest.approx([0.2, 0])


def test_what_is_found(tmp_path, monkeypatch):
    """Right answers of 100, by pictures and by layers. Cross-Mamba's steps take 1, 2 and 4 ms and
    its accuracy rises by 10 for twice the compute; co-attention's take twice as long, and are as
    accurate. So at equal compute Cross-Mamba is 10 points ahead."""
    by_pictures = {250: 20, 1000: 32, 4000: 50, 20_000: 56}
    by_layers = {1: 50, 2: 60, 4: 70}
    right = {
        scale._name(fusion, pictures): number
        for fusion in scale.FUSIONS
        for pictures, number in by_pictures.items()
    } | {
        scale._name(fusion, layers=layers): number
        for fusion in scale.FUSIONS
        for layers, number in by_layers.items()
    }
    costs = {
        arm.name: {
            "step_ms": arm.train["changes"]["fusion_layers"] * (1 + arm.name.startswith("tr")),
            "memory_mb": 1.0,
            "parameters": 1,
        }
        for arm in scale.STUDY.arms
    }
    bench = {
        fusion: [
            {"visual": n // 2, "text": n // 2, "ms": [ms, ms], "memory_mb": 1.0}
            for n in (64, 256, 1024, 4096)
            for ms in [{"cross-mamba": n / 64, "transformer": (n / 256) ** 2}[fusion]]
        ]
        for fusion in scale.FUSIONS
    }
    monkeypatch.setattr(
        "cmimtl.experiments.record.read_scores",
        lambda output, one, asked: {"predictions": rows(right[one.arm])},
    )
    monkeypatch.setattr("cmimtl.experiments.record.measured", lambda *arguments: costs)
    runs = runs_of(scale.STUDY, {}, 1)
    record = make_record(scale.STUDY, runs, tmp_path, {}, quick=False, bench=bench)
    found = record["derived"]
    # Least squares by hand of the accuracies at log10 of 250, 1000, 4000 and 20,000.
    x = np.array([2.39794, 3, 3.60206, 4.30103])
    slope = ((x - x.mean()) * [0.2, 0.32, 0.5, 0.56]).sum() / ((x - x.mean()) ** 2).sum()
    assert found["pictures"]["cross-mamba"]["value"] == pytest.approx(slope, rel=1e-4)
    assert found["pictures difference"] == pytest.approx({"value": 0, "low": 0, "high": 0})
    ten_times = 0.1 * np.log2(10)
    assert found["compute"]["transformer"]["value"] == pytest.approx(ten_times)
    # 600 steps take 0.6, 1.2 and 2.4 s, or twice that: both have from 1.2 to 2.4 s.
    assert found["at"] == pytest.approx(np.sqrt(1.2 * 2.4))
    assert found["equal"]["value"] == pytest.approx(0.1) and found["equal"]["low"] > 0
    assert found["exponents"]["cross-mamba"]["value"] == pytest.approx(1)
    assert found["exponents"]["transformer"]["value"] == pytest.approx(2)
    # Equal at n / 64 = (n / 256) ** 2, n = 1024; of what is measured 4096 is the first beyond.
    assert found["crossing"] == 4096
    assert record["found"].startswith(
        "The linear cost pays in this model: at equal compute Cross-Mamba is right 10.0 (95 %"
    )
    assert "Its step is quicker from 4,096 tokens on" in record["found"]
    text = page(scale.STUDY, record | {"arguments": {"max_steps": 600}})
    assert "2,048 + 2,048" in text and "at 2 s of steps" in text
