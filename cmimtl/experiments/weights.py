"""`weights`: where do the weights of the contrastive and the generation loss turn harmful?

The objective is cls + alpha * contrastive + beta * generation. The arms are a grid over both. Along
each axis, with the other weight at its usual value, a broken stick is fitted to the classifier's
accuracy against the logarithm of the weight: flat up to a knee, then falling. The knee is where the
weight turns harmful. Trainings in which something went wrong, by the rules of
`cmimtl.training.signatures`, are marked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cmimtl.experiments import scores, statistics
from cmimtl.experiments.record import arm_of
from cmimtl.experiments.study import Arm, Comparison, ScoresOf, Study

ALPHAS = (0.0, 0.2, 1.0, 5.0)  # contrastive
BETAS = (0.0, 0.3, 1.0, 3.0, 10.0)  # generation
USUAL = (0.2, 1.0)  # of the preset
KNEES = 60  # places of the knee that are tried
AXES = {"alpha": "contrastive weight (alpha)", "beta": "generation weight (beta)"}


def _name(alpha: float, beta: float) -> str:
    return f"alpha {alpha:g}, beta {beta:g}"


def _axis(which: str) -> dict[float, str]:
    """Weight -> arm, along one axis, for the weights that are not 0."""
    if which == "alpha":
        return {alpha: _name(alpha, USUAL[1]) for alpha in ALPHAS if alpha}
    return {beta: _name(USUAL[0], beta) for beta in BETAS if beta}


def knee(weights: Sequence[float], accuracies: np.ndarray) -> np.ndarray:
    """Where a broken stick, flat and then falling, bends that is fitted to accuracies.

        accuracy = a - s * max(0, log(weight) - log(knee))      with s > 0, by least squares

    Args:
        weights: (n,) positive, rising.
        accuracies: (samples, n).
    Returns:
        (samples,) weights; infinite where the accuracy falls nowhere.
    """
    x = np.log(weights)
    places = np.linspace(x[0], x[-1], KNEES, endpoint=False)
    beyond = np.maximum(0, x - places[:, None])  # (places, n)
    centred = beyond - beyond.mean(1, keepdims=True)
    y = accuracies - accuracies.mean(1, keepdims=True)  # (samples, n)
    slopes = (y @ centred.T) / (centred**2).sum(1)  # (samples, places)
    falling = np.minimum(slopes, 0)
    # What is left of the squares after the fit, without what no place changes.
    left = falling * (falling * (centred**2).sum(1) - 2 * (y @ centred.T))
    best = left.argmin(1)
    rows = np.arange(len(y))
    return np.where(falling[rows, best] < 0, np.exp(places[best]), np.inf)


def _derive(scores_of: ScoresOf, record: Mapping[str, Any]) -> dict[str, Any]:
    """The knee of each axis with its interval; None stands for nowhere."""
    found = {}
    for which in AXES:
        arms = _axis(which)
        asked = [scores_of(arm, "overall") for arm in arms.values()]
        drawn = np.stack(
            [statistics.resampled(*of_arm, arm=arm) for arm, of_arm in enumerate(asked)], axis=1
        )
        means = np.array([[values.mean() for values, _ in asked]])
        (value,) = knee(list(arms), means)
        low, high = statistics.interval(knee(list(arms), drawn))
        numbers = {"value": value, "low": low, "high": high}
        found[which] = {k: float(v) if math.isfinite(v) else None for k, v in numbers.items()}
    return found


def _says(which: str, found: Mapping[str, Any], largest: float) -> str:
    def weight(number: float | None) -> str:
        return f"beyond {largest:g}" if number is None else f"{number:.2g}"

    title = AXES[which]
    if found["value"] is None:
        return f"no {title} up to {largest:g} is shown to be harmful"
    return (
        f"the {title} turns harmful at {weight(found['value'])} (95 % interval"
        f" {weight(found['low'])} to {weight(found['high'])})"
    )


def _conclude(record: Mapping[str, Any]) -> str:
    said = [
        _says(which, record["derived"][which], largest)
        for which, largest in (("alpha", ALPHAS[-1]), ("beta", BETAS[-1]))
    ]
    runs = [warnings for arm in record["arms"] for warnings in arm["warnings"]]
    wrong = sum(map(bool, runs))
    text = f"{said[0]}, and {said[1]}; {wrong} of {len(runs)} trainings showed a failure signature."
    return text[0].upper() + text[1:]


def _warned(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    rows = [
        [arm["title"], str(seed), warnings[0]["warning"], str(len(warnings))]
        for arm in record["arms"]
        for seed, warnings in zip(record["seeds"], arm["warnings"], strict=True)
        if warnings
    ]
    if rows:
        yield "trainings with a failure signature", [["", "seed", "the first", "number"], *rows]


def _curves(record: Mapping[str, Any]) -> Iterator[Figure]:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axes, (which, title) in zip(panels, AXES.items(), strict=True):
        weights = list(_axis(which))
        of_arms = [arm_of(record, arm)["measures"]["overall"] for arm in _axis(which).values()]
        value, low, high = (
            [100 * measure[name] for measure in of_arms] for name in ("value", "low", "high")
        )
        axes.fill_between(weights, low, high, color="#0072B2", alpha=0.2, lw=0)
        axes.plot(weights, value, "o-", color="#0072B2")
        if (found := record["derived"][which])["value"] is not None:
            axes.axvline(found["value"], color="#D55E00")
            ends = (found[name] or weights[-1] for name in ("low", "high"))
            axes.axvspan(*ends, color="#D55E00", alpha=0.1)
        axes.set(xscale="log", xlabel=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("classifier, %")
    yield figure


STUDY = Study(
    name="weights",
    question="Where do the weights of the contrastive and the generation loss turn harmful?",
    arms=tuple(
        Arm(
            _name(alpha, beta),
            _name(alpha, beta),
            {"changes": {"contrastive_weight": alpha, "generation_weight": beta}},
        )
        for alpha in ALPHAS
        for beta in BETAS
    ),
    measures={
        "overall": scores.OVERALL,
        "open": scores.OPEN_ONES,
        "closed": scores.CLOSED_ONES,
        "generated": scores.WRITTEN,
    },
    comparisons=tuple(
        Comparison(arm, _name(*USUAL), "overall")
        for arm in (
            *(_name(alpha, USUAL[1]) for alpha in ALPHAS if alpha != USUAL[0]),
            *(_name(USUAL[0], beta) for beta in BETAS if beta != USUAL[1]),
        )
    ),
    quick_without=[
        _name(alpha, beta)
        for alpha in ALPHAS
        for beta in BETAS
        if alpha != USUAL[0] and beta != USUAL[1]
    ],
    conclude=_conclude,
    derive=_derive,
    tables=_warned,
    pictures=_curves,
)
