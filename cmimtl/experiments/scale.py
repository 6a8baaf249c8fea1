"""`scale`: does the linear cost pay?

Cross-Mamba takes time and memory in proportion to the tokens, and co-attention to their square.
That pays where streams are long, or where what is saved buys accuracy. So both are trained on 250
to 20,000 pictures, and in three sizes, with as many steps of as many questions each: a run's
compute is its steps times the time of a step, which is measured side by side. A line is fitted to
accuracy against the logarithm of the pictures, and of the compute; the two fusions are compared
where their lines have the same compute.

The model's fusion reads few tokens, so that its own lengths do not show what is linear and what is
not. The time and memory of both fusions alone are measured up to 65,536 tokens. A size that would
take too long is left out with all longer ones, and the fitted power bounds it.

With a fixed number of steps, 20,000 pictures are seen less than once, and 250 many times: what is
compared is what pictures bring at equal compute, not what a training to the end would bring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cmimtl.experiments import lengths, scores, statistics
from cmimtl.experiments.experiment import IMAGES, MIN_ANSWER_COUNT
from cmimtl.experiments.page import COLOURS
from cmimtl.experiments.record import arm_of
from cmimtl.experiments.study import Arm, Comparison, ScoresOf, Study

FUSIONS = {"cross-mamba": "Cross-Mamba", "transformer": "co-attention"}
OURS, OTHER = FUSIONS
PICTURES = (250, 1000, 4000, 20_000)  # of the trainings with one layer
LAYERS = (1, 2, 4)  # of the fusion, of the trainings on USUAL pictures
USUAL = 4000
STEPS = 600
# Tokens of both streams together, half each, whose cost is measured.
TOKENS = (64, 256, 1024, 4096, 16_384, 65_536)


def _name(fusion: str, pictures: int = USUAL, layers: int = 1) -> str:
    return f"{fusion}, {pictures} pictures, {layers} layers"


def _arm(fusion: str, pictures: int, layers: int) -> Arm:
    often = max(1, MIN_ANSWER_COUNT * pictures // IMAGES)  # to be a class, as in the usual set
    return Arm(
        _name(fusion, pictures, layers),
        f"{FUSIONS[fusion]}, {pictures:,} pictures" + (f", {layers} layers" if layers > 1 else ""),
        {"fusion": fusion, "min_answer_count": often, "changes": {"fusion_layers": layers}},
        {"n_train": pictures},
    )


def _bench(quick: bool) -> dict[str, Any]:
    """The cost of both fusions by the number of tokens."""
    sizes = [(n // 2, n // 2) for n in TOKENS]
    if quick:
        return lengths.measure(list(FUSIONS), sizes[:2], rounds=2)
    return lengths.measure(list(FUSIONS), sizes)


def line(x: Sequence[float], accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """accuracy = a + b log10(x), by least squares.

    Args:
        x: (n,) positive.
        accuracies: (samples, n).
    Returns:
        a, b: (samples,).
    """
    b, a = np.polyfit(np.log10(x), accuracies.T, 1)
    return a, b


def _compute(record: Mapping[str, Any], arm: str) -> float:
    """Seconds that the steps of a run take, on this machine."""
    return arm_of(record, arm)["costs"]["step_ms"] / 1e3 * record["arguments"]["max_steps"]


def _derive(scores_of: ScoresOf, record: Mapping[str, Any]) -> dict[str, Any]:
    """Slopes and differences, as (value, low, high).

    "pictures": fusion -> accuracy by ten times the pictures; "compute": by ten times the compute;
    "equal": Cross-Mamba less co-attention at equal compute, and "at" which, in seconds; "exponents"
    of the time by tokens; "crossing": tokens from which on Cross-Mamba is the quicker.
    """
    numbers = {arm.name: number for number, arm in enumerate(STUDY.arms)}

    def of_arms(arms: Sequence[str]) -> np.ndarray:
        """The accuracies, and then samples of them, (1 + samples, arms)."""
        asked = [scores_of(arm, "overall") for arm in arms]
        means = [[values.mean() for values, _ in asked]]
        drawn = [
            statistics.resampled(*of_arm, arm=numbers[arm])
            for arm, of_arm in zip(arms, asked, strict=True)
        ]
        return np.concatenate([means, np.stack(drawn, axis=1)])

    def found(values: np.ndarray) -> dict[str, float]:
        low, high = statistics.interval(values[1:])
        return {"value": float(values[0]), "low": low, "high": high}

    by_pictures = {
        fusion: line(PICTURES, of_arms([_name(fusion, n) for n in PICTURES]))[1]
        for fusion in FUSIONS
    }
    sizes = {fusion: [_name(fusion, layers=n) for n in LAYERS] for fusion in FUSIONS}
    compute = {fusion: [_compute(record, arm) for arm in sizes[fusion]] for fusion in FUSIONS}
    lines = {fusion: line(compute[fusion], of_arms(sizes[fusion])) for fusion in FUSIONS}
    # In the middle of what both have, so that no line is read far from where it was fitted.
    at = float(np.sqrt(max(map(min, compute.values())) * min(map(max, compute.values()))))
    heights = {fusion: a + b * np.log10(at) for fusion, (a, b) in lines.items()}
    bench = record["bench"]
    return {
        "pictures": {fusion: found(slopes) for fusion, slopes in by_pictures.items()},
        "pictures difference": found(by_pictures[OURS] - by_pictures[OTHER]),
        "compute": {fusion: found(b) for fusion, (_, b) in lines.items()},
        "equal": found(heights[OURS] - heights[OTHER]),
        "at": at,
        # The shortest says more of what every call costs than of its tokens.
        "exponents": {
            fusion: lengths.exponent(bench[fusion][1:] if len(bench[fusion]) > 2 else bench[fusion])
            for fusion in FUSIONS
        },
        "crossing": lengths.crossing(bench[OURS], bench[OTHER]),
    }


def _interval(found: Mapping[str, float], scale: float = 100, digits: int = 1) -> str:
    value, low, high = (scale * found[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} (95 % interval {low:.{digits}f} to {high:.{digits}f})"


def _conclude(record: Mapping[str, Any]) -> str:
    derived = record["derived"]
    equal, exponents = derived["equal"], derived["exponents"]
    if equal["low"] > 0:
        verdict = "The linear cost pays in this model"
    elif equal["high"] < 0:
        verdict = "The linear cost does not pay in this model"
    else:
        verdict = "It is not shown that the linear cost pays in this model"
    crossing = derived["crossing"]
    quicker = (
        f"from {crossing:,} tokens on" if crossing else "at no number of tokens that was measured"
    )
    of_pictures = [
        f"{FUSIONS[fusion]} {_interval(derived['pictures'][fusion])}" for fusion in FUSIONS
    ]
    return (
        f"{verdict}: at equal compute Cross-Mamba is right {_interval(equal)} points more often"
        f" than co-attention. Its step is quicker {quicker}: its time grows with the tokens to the"
        f" power of {_interval(exponents[OURS], 1, 2)}, and co-attention's of"
        f" {_interval(exponents[OTHER], 1, 2)}. Ten times the pictures, at equal steps, bring"
        f" points of accuracy: {', '.join(of_pictures)}."
    )


def _tables(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    derived = record["derived"]
    rows = [["", *FUSIONS.values()]]
    for title, key in (("the pictures", "pictures"), ("the compute", "compute")):
        rows.append([title, *(_interval(derived[key][fusion]) for fusion in FUSIONS)])
    yield "points of accuracy that ten times as much brings", rows
    rows = [["", "Cross-Mamba - co-attention"]]
    rows.append([f"at {derived['at']:.0f} s of steps", _interval(derived["equal"])])
    rows.append(["by ten times the pictures", _interval(derived["pictures difference"])])
    yield "differences in percentage points", rows
    yield "a step of the fusion alone, of one sample", lengths.table(record["bench"])


def _pictures(record: Mapping[str, Any]) -> Iterator[Figure]:
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for (fusion, title), colour in zip(FUSIONS.items(), COLOURS, strict=False):
        by_layers = [_name(fusion, layers=n) for n in LAYERS]
        for axes, arms, x in (
            (panels[0], [_name(fusion, n) for n in PICTURES], PICTURES),
            (panels[1], by_layers, [_compute(record, arm) for arm in by_layers]),
        ):
            of_arms = [arm_of(record, arm)["measures"]["overall"] for arm in arms]
            value, low, high = (
                [100 * m[name] for m in of_arms] for name in ("value", "low", "high")
            )
            axes.plot(x, value, "o-", color=colour, label=title)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        found = record["bench"][fusion]
        tokens = [one["visual"] + one["text"] for one in found]
        panels[2].plot(tokens, [np.median(one["ms"]) for one in found], "o-", color=colour)
        panels[2].plot(tokens, [one["memory_mb"] for one in found], "s--", color=colour)
    panels[0].set(xscale="log", xlabel="training pictures", ylabel="classifier, %")
    panels[1].set(xscale="log", xlabel="compute, seconds of steps")
    panels[2].set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms (line), MB (dashed)")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8)
    yield figure


_SIZES = [(n, 1) for n in PICTURES] + [(USUAL, n) for n in LAYERS if n > 1]

STUDY = Study(
    name="scale",
    question="Does the linear cost pay?",
    arms=tuple(_arm(fusion, *size) for fusion in FUSIONS for size in _SIZES),
    measures={"overall": scores.OVERALL, "open": scores.OPEN_ONES, "closed": scores.CLOSED_ONES},
    comparisons=tuple(
        Comparison(_name(OURS, *size), _name(OTHER, *size), "overall") for size in _SIZES
    ),
    train={"max_steps": STEPS, "min_answer_count": 1},
    phantom_because="of as many pictures as are asked for",
    bounds=f"Every training has {STEPS} steps, with which the largest set is seen less than once:"
    " compared is what pictures bring at equal compute, not after a training to the end. A length"
    " whose step would take too long is not measured, nor are longer ones; the fitted power bounds"
    " them.",
    costs=True,
    bench=_bench,
    conclude=_conclude,
    derive=_derive,
    tables=_tables,
    pictures=_pictures,
)
