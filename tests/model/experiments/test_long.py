"""`long` from rows that were made up: what is recalled, and what is forgotten."""

import pytest

from cmimtl.data.phantom_reports import DISTANCES, kind_of
from cmimtl.experiments import long
from cmimtl.experiments.page import page
from cmimtl.experiments.record import comparison_of, make_record
from cmimtl.experiments.study import runs_of

IMAGES = 60
COSTS = {"step_ms": 10.0, "memory_mb": 20.0, "parameters": 5}
BENCH = {
    name: {
        fusion: [{"visual": v, "text": t, "ms": [1.0, 3.0], "memory_mb": 2.0} for v, t in sizes]
        for fusion in long.FUSIONS
    }
    for name, sizes in (("text", long.BY_TEXT), ("picture", long.BY_PICTURE))
}


def rows(tokens, recalls):
    """A question at each distance about each image; what is not recalled is guessed: small."""
    return [
        {
            "image": f"image {number}",
            "answer": answer,
            "classified": answer if recalls(distance) else "small",
            "content_type": kind_of(tokens, distance),
        }
        for number in range(IMAGES)
        for distance in DISTANCES
        for answer in [("small", "medium", "large")[number % 3]]
    ]


def test_what_is_found(tmp_path, monkeypatch):
    """Cross-Mamba recalls all of 16 tokens, what is near of 64, and nothing of 256, of which
    co-attention recalls all."""
    recalls = {
        "cross-mamba 16": lambda distance: True,
        "cross-mamba 64": lambda distance: distance == "near",
        "transformer 256": lambda distance: True,
    }

    def said(output, one, asked):
        recall = recalls.get(one.arm, lambda distance: False)
        return {"predictions": rows(int(one.arguments["changes"]["max_question_length"]), recall)}

    monkeypatch.setattr("cmimtl.experiments.record.read_scores", said)
    costs = {arm.name: COSTS for arm in long.STUDY.arms}
    monkeypatch.setattr("cmimtl.experiments.record.measured", lambda *arguments: costs)
    runs = runs_of(long.STUDY, {}, 1)
    record = make_record(long.STUDY, runs, tmp_path, {}, quick=False, bench=BENCH)
    measures = {arm["name"]: arm["measures"] for arm in record["arms"]}
    # All right, beyond the third that is guessed; at one distance of three; and all guessed.
    assert measures["cross-mamba 16"]["overall"]["value"] == pytest.approx(2 / 3)
    assert measures["cross-mamba 64"]["overall"]["value"] == pytest.approx(2 / 9)
    assert measures["cross-mamba 64"]["near"]["value"] == pytest.approx(2 / 3)
    assert measures["none 16"]["far"]["value"] == pytest.approx(0)
    forgets = record["derived"]
    assert forgets["cross-mamba 64"]["value"] == pytest.approx(2 / 3)
    assert 0.5 < forgets["cross-mamba 64"]["low"] < 2 / 3 < forgets["cross-mamba 64"]["high"] < 0.85
    assert forgets["cross-mamba 16"] == pytest.approx({"value": 0, "low": 0, "high": 0})
    against = comparison_of(record, "cross-mamba 256", "transformer 256", "far")
    assert against["value"] == pytest.approx(-2 / 3) and against["significant"]
    assert record["found"].startswith(
        "Beyond guessing Cross-Mamba is shown to recall near the question in reports of 16 and 64"
        " tokens, in the middle in reports of 16 tokens, far in reports of 16 tokens. From near to"
        " far in 256 tokens is forgotten, in points of accuracy: Cross-Mamba +0.0"
    )
    text = page(long.STUDY, record | {"arguments": {}})
    assert (
        "accuracy at 256 bounds accuracy there" in text
        and "8 + 1,024" in text
        and "4,096 + 16" in text
        and "2.0, 2.0" in text
    )


def test_what_is_read_is_as_long_as_the_reports():
    """The positions of the text encoder begin after two others."""
    for arm in long.STUDY.arms:
        changes, (tokens,) = arm.train["changes"], arm.phantom["report_tokens"]
        assert changes["max_question_length"] == tokens
        assert changes["text_config.max_position_embeddings"] == tokens + 2
        assert changes["qformer_config.max_position_embeddings"] >= tokens
