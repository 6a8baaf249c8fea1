"""`reliance`: does the model look, or does it answer from the question?

A trained model is asked the test questions again with the pictures of other patients, with black
pictures, and in other words. Three numbers are those of arXiv 2603.03437, as its abstract has them:

- Visual Reliance Score: accuracy with the right pictures minus accuracy with other patients';
- Image Sensitivity: the share of answers that change with the picture;
- Hallucinated Visual Reasoning Rate: of the answers that state what is seen, the share that stays
  the same without a picture. Here these are what the decoder writes to the open questions.

A fourth is consistency: the share of answers that stay the same when the question is asked in other
words. Without fusion, question and picture meet in the Q-Former alone; that arm shows whether the
fusion is where the looking happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmimtl.evaluation.metrics import exact_match
from cmimtl.experiments import scores
from cmimtl.experiments.record import arm_of, comparison_of, in_words
from cmimtl.experiments.study import Arm, Comparison, Measure, Row, Study

OURS = "cross-mamba"


def _relies(row: Row) -> float:
    other, own = row, row["unprobed"]
    return exact_match(own["classified"], own["answer"]) - exact_match(
        other["classified"], other["answer"]
    )


def _changes(row: Row) -> float:
    return float(row["classified"] != row["unprobed"]["classified"])


def _hallucinates(row: Row) -> float | None:
    written = row["unprobed"]["generated"]
    return None if written is None else float(row["generated"] == written)


def _keeps(row: Row) -> float:
    return 1 - _changes(row)


def _conclude(record: Mapping[str, Any]) -> str:
    ours = arm_of(record, OURS)["measures"]
    relies = ours["reliance"]
    if relies["low"] > 0:
        found = "The model looks"
    else:
        found = "It is not shown that the model looks"
    values = {name: 100 * ours[name]["value"] for name in ours}
    against = comparison_of(record, OURS, "none", "reliance")
    return (
        f"{found}: with the pictures of other patients its classifier is right"
        f" {values['reliance']:.1f} points less often (95 % interval {100 * relies['low']:.1f} to"
        f" {100 * relies['high']:.1f}), and {values['sensitivity']:.0f} % of its answers change."
        f" Without a picture the decoder still writes the same answer to"
        f" {values['hallucination']:.0f} % of the open questions. Asked in other words,"
        f" {values['in-haste']:.0f} % (in haste) and {values['at-length']:.0f} % (at length) of the"
        f" answers stay. It relies {in_words(against)} more on the picture than without fusion."
    )


STUDY = Study(
    name="reliance",
    question="Does the model look at the picture, or does it answer from the question?",
    arms=(Arm(OURS, "Cross-Mamba"), Arm("none", "no fusion", {"fusion": "none"})),
    measures={
        "overall": scores.OVERALL,
        "reliance": Measure("Visual Reliance Score", "test", _relies, "shuffled"),
        "sensitivity": Measure("Image Sensitivity", "test", _changes, "shuffled"),
        "hallucination": Measure(
            "Hallucinated Visual Reasoning Rate", "test", _hallucinates, "blank"
        ),
        "in-haste": Measure("same answer, asked in haste", "test", _keeps, "in-haste"),
        "at-length": Measure("same answer, asked at length", "test", _keeps, "at-length"),
    },
    comparisons=tuple(
        Comparison(OURS, "none", measure) for measure in ("overall", "reliance", "hallucination")
    ),
    conclude=_conclude,
)
