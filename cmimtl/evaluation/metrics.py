"""Scores of answers, their confidence intervals, and the controls to read beside them.

Everything takes `cmimtl.data.VQAExample` and predicted answers as text, so a classifier, a
decoder and a look-up table are scored by the same code:

    score(test, predictions)                       a model, either head
    score(test, question_only(train, test))        what the questions alone give away

Accuracies, F1 and intervals are fractions in [0, 1].
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from cmimtl.data.answers import normalize_answer
from cmimtl.data.example import CLOSED, OPEN, VQAExample

CONFIDENCE = 0.95


def exact_match(prediction: str, reference: str) -> float:
    """1.0 where both answers are the same after `cmimtl.data.normalize_answer`, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words of two normalised answers.

    Words count as often as they occur; order does not matter. Two empty answers give 1.0, and one
    empty answer gives 0.0. Source: Rajpurkar et al. 2016, section 6.1.
    """
    predicted = Counter(normalize_answer(prediction).split())
    expected = Counter(normalize_answer(reference).split())
    if not predicted or not expected:
        return float(predicted == expected)
    common = (predicted & expected).total()
    # 2 P R / (P + R) with P = common / |predicted|, R = common / |expected|
    return 2 * common / (predicted.total() + expected.total())


def clustered_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> list[float]:
    """Percentile bootstrap interval of a mean whose samples come in clusters.

    Whole clusters (here the questions of one image) are drawn with replacement, because questions
    about one image are not independent; drawing single questions would give intervals that are too
    narrow.

    Args:
        values: (n,) numbers, n >= 1.
        clusters: (n,) keys; equal keys belong together.
        confidence: in (0, 1).
        resamples: number of bootstrap samples, >= 1.
        seed: the same seed gives the same interval.
    Returns:
        [low, high]. With one cluster both are the mean: one image says nothing about spread.
    Raises:
        ValueError: lengths differ or are 0, or confidence or resamples is out of range.
    """
    if len(values) != len(clusters) or not values:
        raise ValueError(
            "clustered_interval: values and clusters must have one length of at least 1, "
            f"got {len(values)} and {len(clusters)}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"clustered_interval: confidence must lie in (0, 1), got {confidence}.")
    if resamples < 1:
        raise ValueError(f"clustered_interval: resamples must be at least 1, got {resamples}.")
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value
    sizes = Counter(clusters)
    cluster_sums = np.array([sums[cluster] for cluster in sums])  # (k,)
    cluster_sizes = np.array([sizes[cluster] for cluster in sums])  # (k,)
    k = len(cluster_sums)
    draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=resamples)
    means = (draws @ cluster_sums) / (draws @ cluster_sizes)  # (resamples,)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return [float(low), float(high)]


def score(
    examples: Sequence[VQAExample],
    predictions: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predicted answers against the examples' answers.

    Both are normalised first, so raw text of a decoder will do. "overall" is the accuracy of a
    classifier, or the exact match of a decoder.

    Args:
        examples: the questions, at least one.
        predictions: one answer per example, in the same order; "" counts as wrong.
        resamples, seed: those of the bootstrap, see `clustered_interval`.
    Returns:
        a dict ready for JSON:

            {"questions": 451, "images": 203,
             "open_questions": 179, "closed_questions": 272,
             "overall": 0.61, "open": 0.4, "closed": 0.75,
             "token_f1": 0.65, "open_token_f1": 0.5,
             "intervals": {"overall": [0.56, 0.66], "open": ..., "closed": ...,
                           "token_f1": ..., "open_token_f1": ...},
             "by_content_type": {"PRES": {"questions": 163,
                                          "accuracy": 0.7, "token_f1": 0.7,
                                          "interval": [0.6, 0.8]}, ...}}

        Scores are fractions. Intervals are 95 % and clustered by image. A score of no question is
        None. Content types are ordered by their number of questions.
    Raises:
        ValueError: there are no examples, or another number of predictions.
        TypeError: a prediction is not a string.
    """
    if not examples or len(examples) != len(predictions):
        raise ValueError(
            "score: examples and predictions must have one length of at least 1, "
            f"got {len(examples)} and {len(predictions)}."
        )
    references = [example.answer_normalized for example in examples]
    images = [example.image_id for example in examples]
    matches = [exact_match(p, r) for p, r in zip(predictions, references, strict=True)]
    f1s = [token_f1(p, r) for p, r in zip(predictions, references, strict=True)]

    def mean_and_interval(values: list[float], chosen: list[int]) -> tuple[float | None, object]:
        if not chosen:
            return None, None
        picked = [values[i] for i in chosen]
        interval = clustered_interval(
            picked, [images[i] for i in chosen], resamples=resamples, seed=seed
        )
        return sum(picked) / len(picked), interval

    everything = list(range(len(examples)))
    of_type = {
        kind: [i for i in everything if examples[i].answer_type == kind] for kind in (OPEN, CLOSED)
    }
    result: dict[str, Any] = {
        "questions": len(examples),
        "images": len(set(images)),
        "open_questions": len(of_type[OPEN]),
        "closed_questions": len(of_type[CLOSED]),
    }
    intervals: dict[str, Any] = {}
    for name, values, chosen in (
        ("overall", matches, everything),
        ("open", matches, of_type[OPEN]),
        ("closed", matches, of_type[CLOSED]),
        ("token_f1", f1s, everything),
        ("open_token_f1", f1s, of_type[OPEN]),
    ):
        result[name], intervals[name] = mean_and_interval(values, chosen)
    result["intervals"] = intervals

    by_content_type = {}
    for content_type, count in Counter(e.content_type for e in examples).most_common():
        chosen = [i for i in everything if examples[i].content_type == content_type]
        accuracy, interval = mean_and_interval(matches, chosen)
        by_content_type[content_type] = {
            "questions": count,
            "accuracy": accuracy,
            "token_f1": sum(f1s[i] for i in chosen) / count,
            "interval": interval,
        }
    result["by_content_type"] = by_content_type
    return result


def majority(train: Sequence[VQAExample], test: Sequence[VQAExample]) -> list[str]:
    """Answer every test question with the most frequent training answer.

    Raises:
        ValueError: train is empty.
    """
    _require_training("majority", train)
    answer = _most_frequent(Counter(example.answer_normalized for example in train))
    return [answer] * len(test)


def question_only(train: Sequence[VQAExample], test: Sequence[VQAExample]) -> list[str]:
    """Answer each question with the most frequent training answer to the same question string.

    Question strings are compared in lower case. A question that training does not have gets the
    most frequent training answer of its type (open or closed), or of all types where training does
    not have that type. Of equally frequent answers, the alphabetically first is taken. A model that
    does not beat these answers has learned nothing from images.

    Raises:
        ValueError: train is empty.
    """
    _require_training("question_only", train)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for example in train:
        by_question[example.question.lower()][example.answer_normalized] += 1
        by_type[example.answer_type][example.answer_normalized] += 1
        overall[example.answer_normalized] += 1
    return [
        _most_frequent(
            by_question.get(example.question.lower()) or by_type.get(example.answer_type) or overall
        )
        for example in test
    ]


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _require_training(operation: str, train: Sequence[VQAExample]) -> None:
    if not train:
        raise ValueError(f"{operation}: train must hold at least one example, got none.")
