"""`drift`: does attention scatter on bad images, and does that warn of wrong answers?

A trained model is asked the test questions again with pictures that have an artefact, each in three
strengths. What the Q-Former's attention over the picture does is told by its entropy (1 where it is
even) and by its mass in the body, beyond that of even attention, which a crop changes too. What the
answers do is told by accuracy and confidence.

In use there is no better picture of the same patient to compare with, so a warning must come from
the one picture: the entropy itself. Its AUROC is the chance that a wrong answer has more of it than
a right one, over the pictures as they are and with every artefact. The confidence of the classifier
is there for nothing, so it is what a warning has to beat.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cmimtl.evaluation.metrics import exact_match
from cmimtl.experiments import statistics
from cmimtl.experiments.page import COLOURS, percent
from cmimtl.experiments.record import comparison_of
from cmimtl.experiments.study import Arm, Comparison, Measure, Row, Score, ScoresOf, Study
from cmimtl.names import ARTEFACTS, STRENGTHS

OURS = "cross-mamba"
AS_IS = "as-is"
STRONGEST = STRENGTHS[-1]
PROBES = [f"{kind}-{strength}" for kind in ARTEFACTS for strength in STRENGTHS]


def _right(row: Row) -> float:
    return exact_match(row["classified"], row["answer"])


def _confidence(row: Row) -> float:
    return row["probability"]


def _entropy(row: Row) -> float:
    return row["attention"]["entropy"]


def _on_body(row: Row) -> float | None:
    """The mass in the body beyond that of even attention; None without a mask."""
    found = row["attention"]
    return None if found["body"] is None else found["body"] - found["body_area"]


def _change(of: Callable[[Row], float | None]) -> Score:
    def score(row: Row) -> float | None:
        now, before = of(row), of(row["unprobed"])
        return None if now is None or before is None else now - before

    return score


WHAT: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "right": ("classifier", _right),
    "confidence": ("confidence", _confidence),
    "entropy": ("entropy of the attention", _entropy),
    "body": ("attention to the body, beyond even", _on_body),
}
# A warning -> the measure that it is made of, and its sign.
WARNINGS = {"entropy": ("entropy", 1), "body": ("body", -1), "confidence": ("confidence", -1)}


def _derive(scores_of: ScoresOf) -> dict[str, Any]:
    """The measures under each condition, and how well each warning warns; None where it cannot."""
    conditions: dict[str, Any] = {}
    for condition in (AS_IS, *PROBES):
        conditions[condition] = {}
        for what in WHAT:
            values, images = scores_of(OURS, f"{what} {condition}")
            if not np.isnan(values).all():
                found = statistics.mean(values, images)
                numbers = {"value": found.value, "low": found.low, "high": found.high}
                conditions[condition][what] = numbers
    return {"conditions": conditions, "warnings": _warnings(scores_of)}


def _warnings(scores_of: ScoresOf) -> dict[str, Any]:
    """Warning -> AUROC with its interval, and of the entropy less that of the confidence."""

    def of_all(what: str) -> tuple[np.ndarray, list[str]]:
        asked = [scores_of(OURS, f"{what} {condition}") for condition in (AS_IS, *PROBES)]
        images = [image for _, of_condition in asked for image in of_condition]
        return np.concatenate([values for values, _ in asked], axis=1), images

    right, images = of_all("right")
    if right.all(1).any() or not right.any(1).all():
        return {}  # a training after which every answer is wrong, or right
    found, samples = {}, {}
    for warning, (what, sign) in WARNINGS.items():
        values, _ = of_all(what)
        if not np.isnan(values).any():
            samples[warning] = statistics.auroc_samples(sign * values, right == 0, images)
            found[warning] = _estimate(*samples[warning])
    pair = [samples[warning] for warning in ("entropy", "confidence")]
    found["entropy - confidence"] = _estimate(*(a - b for a, b in zip(*pair, strict=True)))
    return found


def _estimate(of_seed: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    low, high = statistics.interval(statistics.with_seeds(drawn, of_seed))
    return {"value": float(of_seed.mean()), "low": low, "high": high}


def _conclude(record: Mapping[str, Any]) -> str:
    said: dict[str, list[str]] = {"scatters": [], "narrows": []}
    for kind in ARTEFACTS:
        change = comparison_of(record, OURS, None, f"entropy change {kind}")
        if change["significant"]:
            points = f"{kind} ({100 * change['value']:+.2f} points of entropy)"
            said["scatters" if change["value"] > 0 else "narrows"].append(points)
    parts = [f"{verb} under {', '.join(kinds)}" for verb, kinds in said.items() if kinds]
    if parts:
        found = f"At strength {STRONGEST}, attention {' and '.join(parts)}"
        if silent := len(ARTEFACTS) - sum(map(len, said.values())):
            found += f"; under {silent} other artefacts no change is shown"
    else:
        found = "It is not shown that attention scatters, or narrows, on bad images"
    return f"{found}. {_warns(record['derived']['warnings'])}"


def _warns(warnings: Mapping[str, Any]) -> str:
    if not warnings:
        return "Whether that warns cannot be told: all answers of a training were wrong, or right."
    entropy, confidence = warnings["entropy"], warnings["confidence"]
    beyond = warnings["entropy - confidence"]
    if entropy["low"] <= 0.5:
        verdict = "is not shown to warn of wrong answers"
    elif beyond["low"] > 0:
        verdict = "is a usable warning of wrong answers, and better than the confidence"
    elif beyond["high"] < 0:
        verdict = "warns of wrong answers, and worse than the confidence does"
    else:
        verdict = "warns of wrong answers, not shown to be better or worse than the confidence"
    return (
        f"The entropy {verdict}: AUROC {_interval(entropy)}, of the confidence"
        f" {_interval(confidence)}."
    )


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} (95 % interval {found['low']:.2f} to {found['high']:.2f})"


def _tables(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    if warnings := record["derived"]["warnings"]:
        rows = [[name, _interval(found)] for name, found in warnings.items()]
        yield (
            "AUROC of a wrong answer, over all conditions; of a difference 0 is none",
            [["warning", ""], *rows],
        )
    rows = [["", *(title for title, _ in WHAT.values())]]
    for condition, found in record["derived"]["conditions"].items():
        cells = [percent(found[what]) if what in found else "-" for what in WHAT]
        rows.append([condition, *cells])
    yield "in % under each artefact and strength, with 95 % intervals", rows


def _pictures(record: Mapping[str, Any]) -> Iterator[Figure]:
    conditions = record["derived"]["conditions"]
    counted = [what for what in WHAT if what in conditions[AS_IS]]
    figure, panels = plt.subplots(
        1, len(counted), figsize=(3.2 * len(counted), 3), layout="constrained"
    )
    for axes, what in zip(panels, counted, strict=True):
        for kind, colour in zip(ARTEFACTS, COLOURS, strict=False):
            names = (AS_IS, *(f"{kind}-{strength}" for strength in STRENGTHS))
            values = [100 * conditions[name][what]["value"] for name in names]
            axes.plot((0, *STRENGTHS), values, "o-", color=colour, label=kind)
        axes.set(title=WHAT[what][0], xlabel="strength", xticks=(0, *STRENGTHS))
        axes.title.set_size(10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("%")
    panels[0].legend(fontsize=8)
    yield figure


STUDY = Study(
    name="drift",
    question="Does attention scatter on bad images, and does that warn of wrong answers?",
    arms=(Arm(OURS, "Cross-Mamba"),),
    measures={
        **{
            f"{what} {AS_IS}": Measure(title, "test", score)
            for what, (title, score) in WHAT.items()
        },
        **{
            f"{what} {probe}": Measure(f"{title}, {probe}", "test", score, probe, shown=False)
            for probe, (what, (title, score)) in itertools.product(PROBES, WHAT.items())
        },
        **{
            f"{what} change {kind}": Measure(
                f"{WHAT[what][0]}, {kind}-{STRONGEST} - as it is",
                "test",
                _change(WHAT[what][1]),
                f"{kind}-{STRONGEST}",
                shown=False,
            )
            for what, kind in itertools.product(("entropy", "body", "right"), ARTEFACTS)
        },
    },
    comparisons=tuple(
        Comparison(OURS, None, f"{what} change {kind}")
        for what, kind in itertools.product(("entropy", "body", "right"), ARTEFACTS)
    ),
    conclude=_conclude,
    derive=_derive,
    tables=_tables,
    pictures=_pictures,
)
