"""`drift` from rows that were made up: what it says of attention, and of a warning."""

import numpy as np
import pytest

from cmimtl.experiments import drift
from cmimtl.experiments.page import page
from cmimtl.experiments.record import comparison_of, make_record
from cmimtl.experiments.statistics import auroc, auroc_samples, with_seeds
from cmimtl.experiments.study import runs_of

IMAGES = 12


def rows(entropy, *, right=lambda i: i % 3 > 0, body=0.5, confidence=0.5):
    """A question about each image; the wrong answers' attention has 0.05 more entropy."""
    return [
        {
            "image": f"image {i}",
            "answer": "yes",
            "classified": "yes" if right(i) else "no",
            "probability": confidence,
            "attention": {
                "entropy": entropy + (0 if right(i) else 0.05),
                "body": body,
                "body_area": None if body is None else 0.4,
            },
        }
        for i in range(IMAGES)
    ]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    def record(said):
        monkeypatch.setattr(
            "cmimtl.experiments.record.read_scores",
            lambda output, one, asked: {"predictions": said(asked.probe)},
        )
        runs = runs_of(drift.STUDY, {}, 1)
        return make_record(drift.STUDY, runs, tmp_path, {}, quick=False) | {"arguments": {}}

    return record


def test_what_is_found(recorded):
    """Blur scatters attention by a tenth in each strength, and a crop narrows it by a fifth and
    moves it off the body; nothing else changes anything."""

    def said(probe):
        kind, _, strength = (probe or "").partition("-")
        if kind == "blur":
            return rows(0.5 + 0.1 * int(strength))
        return rows(0.3, body=0.2) if kind == "crop" else rows(0.5)

    record = recorded(said)
    found = record["derived"]["conditions"]
    assert found["as-is"]["entropy"]["value"] == pytest.approx(0.5 + 0.05 / 3)
    assert found["blur-2"]["entropy"]["value"] == pytest.approx(0.7 + 0.05 / 3)
    assert found["crop-1"]["body"]["value"] == pytest.approx(-0.2)
    assert found["noise-3"]["right"]["value"] == pytest.approx(2 / 3)
    for what, kind, expected in (
        ("entropy", "blur", 0.3),
        ("entropy", "crop", -0.2),
        ("body", "crop", -0.3),
        ("right", "crop", 0),
    ):
        change = comparison_of(record, "cross-mamba", None, f"{what} change {kind}")
        assert change["value"] == pytest.approx(expected)
        assert change["significant"] == bool(expected)
    assert "scatters under blur (+30.00 points of entropy)" in record["found"]
    assert "narrows under crop (-20.00 points of entropy)" in record["found"]
    assert "under 4 other artefacts no change is shown" in record["found"]
    # The levels of entropy, with how many of the 19 conditions have each: 0.3 (3), 0.5 (13), 0.6,
    # 0.7 and 0.8 (1 each). A wrong answer has more than the right ones of its own level and of
    # those below, since 0.05 is less than any step.
    number = np.array([3, 13, 1, 1, 1])
    expected = (number * np.cumsum(number)).sum() / number.sum() ** 2
    warnings = record["derived"]["warnings"]
    assert warnings["entropy"]["value"] == pytest.approx(expected)
    assert warnings["confidence"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert warnings["entropy - confidence"]["value"] == pytest.approx(expected - 0.5)
    assert "a usable warning of wrong answers, and better than the confidence" in record["found"]
    assert "blur-3" in page(drift.STUDY, record)


def test_a_data_set_without_masks(recorded):
    record = recorded(lambda probe: rows(0.5, body=None))
    assert set(record["derived"]["conditions"]["as-is"]) == {"right", "confidence", "entropy"}
    assert set(record["derived"]["warnings"]) == {"entropy", "confidence", "entropy - confidence"}
    assert len(record["comparisons"]) == 12  # of 18; those of the body count no question
    assert "body as-is" not in record["arms"][0]["measures"]
    assert record["found"].startswith("It is not shown that attention scatters, or narrows, on bad")
    assert "attention to the body" not in page(drift.STUDY, record).split("strength, with")[0]


def test_nothing_warns_where_all_is_wrong(recorded):
    record = recorded(lambda probe: rows(0.5, right=lambda i: False))
    assert record["derived"]["warnings"] == {}
    assert "cannot be told" in record["found"]


def test_the_samples_of_an_auroc():
    """Of images "a", with a wrong answer at 2 and a right one at 1, and "b", with the same at 0 and
    3: of four pairs one is right at both, (2, 1), so 1/4. Of a alone it is 1, of b alone 0."""
    scores, wrong = np.array([[2.0, 1, 0, 3]]), np.array([[True, False, True, False]])
    of_seed, drawn = auroc_samples(scores, wrong, list("aabb"))
    assert of_seed == pytest.approx([0.25])
    assert [np.isclose(drawn, value).mean() for value in (0, 0.25, 1)] == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.05
    )
    # Without the last answer, b has a wrong one alone: its sample says nothing, and gets the value.
    of_seed, drawn = auroc_samples(scores[:, :3], wrong[:, :3], list("aab"))
    assert set(np.round(drawn, 6)) == {0.5, 1.0} and of_seed == pytest.approx([0.5])
    # Two seeds: the mean, with the spread of as few as two.
    both = np.concatenate([scores, -scores])
    of_seed, drawn = auroc_samples(both, np.concatenate([wrong, wrong]), list("aabb"))
    assert of_seed == pytest.approx([0.25, 0.75]) and drawn == pytest.approx(0.5)
    # Quartiles of Student's t with one degree of freedom are -1 and 1; the error is 0.25.
    assert np.quantile(with_seeds(drawn, of_seed), [0.25, 0.75]) == pytest.approx(
        [0.25, 0.75], abs=0.06
    )


def test_samples_are_aurocs_of_what_is_drawn():
    """Against `auroc` of the answers written out as often as they are drawn."""
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 5, (1, 30)) / 4, rng.random((1, 30)) < 0.4
    images = [str(i // 3) for i in range(30)]
    _, drawn = auroc_samples(scores, wrong, images)
    weights = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=len(drawn))
    for sample in (0, 7, 999):
        often = np.repeat(weights[sample], 3)
        expected = auroc(np.repeat(scores[0], often), np.repeat(wrong[0], often))
        assert drawn[sample] == pytest.approx(expected)
