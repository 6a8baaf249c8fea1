"""What a row of a run's predictions counts, for the measures of the studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmimtl.data import CLOSED, OPEN
from cmimtl.evaluation.metrics import exact_match
from cmimtl.experiments.statistics import calibration_error
from cmimtl.experiments.study import Measure, Score, Summary


def _classified(answer_type: str | None) -> Score:
    def score(row: Mapping[str, Any]) -> float | None:
        if answer_type is not None and row["answer_type"] != answer_type:
            return None
        return exact_match(row["classified"], row["answer"])

    return score


def _generated(row: Mapping[str, Any]) -> float | None:
    return None if row["generated"] is None else exact_match(row["generated"], row["answer"])


def _calibration(rows: Sequence[Mapping[str, Any]]) -> float:
    right = [exact_match(row["classified"], row["answer"]) for row in rows]
    return calibration_error([row["probability"] for row in rows], right)


OVERALL = Measure("classifier", "test", _classified(None))
OPEN_ONES = Measure("classifier, open", "test", _classified(OPEN))
CLOSED_ONES = Measure("classifier, closed", "test", _classified(CLOSED))
WRITTEN = Measure("decoder, open", "test", _generated)
CALIBRATION = Summary("calibration error (ECE)", "test", _calibration)
