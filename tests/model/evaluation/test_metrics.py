"""Scores, intervals clustered by image, and the controls."""

from pathlib import Path

import numpy as np
import pytest

from cmimtl.data import VQAExample, normalize_answer
from cmimtl.evaluation import metrics


def example(question="q", answer="yes", kind="closed", image="i", content="PRES", split="test"):
    return VQAExample(
        "0", Path("x"), image, question, answer, normalize_answer(answer), kind, content, split
    )


@pytest.mark.parametrize(
    "prediction, reference, match, f1",
    [
        ("The lung.", "lung", 1, 1),
        ("left lung", "lung left", 0, 1),
        ("left lung", "right lung", 0, 0.5),
        ("lung lung", "lung", 0, 2 / 3),
        ("large left lung mass", "lung", 0, 0.4),
        ("", "lung", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_exact_match_and_token_f1(prediction, reference, match, f1):
    assert metrics.exact_match(prediction, reference) == match
    assert metrics.token_f1(prediction, reference) == pytest.approx(f1)


def test_interval_of_independent_samples_is_the_normal_one():
    values = (np.arange(400) % 2).tolist()
    low, high = metrics.clustered_interval(values, range(400))
    half = 1.96 * 0.5 / 20
    assert low == pytest.approx(0.5 - half, abs=0.01) and high == pytest.approx(
        0.5 + half, abs=0.01
    )


def test_interval_is_wider_where_clusters_agree():
    """Ten equal answers to each of 40 images say as much as 40 answers."""
    values = [float(i % 2) for i in range(40) for _ in range(10)]
    clusters = [i for i in range(40) for _ in range(10)]
    narrow = metrics.clustered_interval(values, range(400))
    wide = metrics.clustered_interval(values, clusters)
    ratio = (wide[1] - wide[0]) / (narrow[1] - narrow[0])
    assert ratio == pytest.approx(10**0.5, rel=0.15)
    assert metrics.clustered_interval(values, clusters) == wide


def test_interval_of_one_cluster_is_its_mean():
    assert metrics.clustered_interval([0, 1], ["a", "a"]) == [0.5, 0.5]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], []), "one length of at least 1, got 0 and 0"),
        (([1.0], ["a", "b"]), "one length of at least 1, got 1 and 2"),
    ],
)
def test_interval_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.clustered_interval(*arguments)
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got 95"):
        metrics.clustered_interval([1.0], ["a"], confidence=95)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        metrics.clustered_interval([1.0], ["a"], resamples=0)


def test_score():
    examples = [
        example(answer="yes", image="a"),
        example(answer="no", image="a"),
        example(answer="left lung", image="b", kind="open", content="ORGAN"),
    ]
    result = metrics.score(examples, ["Yes", "yes", "right lung"])
    assert (result["questions"], result["images"]) == (3, 2)
    assert (result["open_questions"], result["closed_questions"]) == (1, 2)
    assert result["overall"] == pytest.approx(1 / 3)
    assert (result["open"], result["closed"]) == (0, 0.5)
    assert result["token_f1"] == pytest.approx(0.5) and result["open_token_f1"] == 0.5
    assert result["by_content_type"]["ORGAN"] == {
        "questions": 1,
        "accuracy": 0,
        "token_f1": 0.5,
        "interval": [0, 0],
    }
    assert list(result["by_content_type"]) == ["PRES", "ORGAN"]


def test_score_of_no_open_question_is_none():
    result = metrics.score([example()], ["yes"])
    assert result["open"] is None and result["intervals"]["open"] is None


@pytest.mark.parametrize("examples, predictions", [([], []), ([example()], [])])
def test_score_arguments(examples, predictions):
    with pytest.raises(ValueError, match="must have one length of at least 1"):
        metrics.score(examples, predictions)


TRAIN = [
    example("Fracture?", "no"),
    example("Fracture?", "no"),
    example("fracture?", "yes"),
    example("Mass?", "yes"),
    example("Where?", "lung", kind="open"),
]


def test_majority():
    assert metrics.majority(TRAIN, [example(), example()]) == ["no", "no"]  # of no and yes: a tie


def test_question_only():
    test = [
        example("FRACTURE?"),
        example("Mass?"),
        example("Which?", kind="open"),
        example("Bleeding?"),
    ]
    assert metrics.question_only(TRAIN, test) == ["no", "yes", "lung", "no"]
    assert metrics.question_only(TRAIN[:4], [example("Which?", kind="open")]) == ["no"]


def test_controls_need_training_rows():
    for control in (metrics.majority, metrics.question_only):
        with pytest.raises(ValueError, match="train must hold at least one example, got none"):
            control([], [example()])
