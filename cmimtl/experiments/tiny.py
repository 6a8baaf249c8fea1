"""`tiny`: what is too small to see, and what helps at what cost?

The pictures have lesions from a third of a patch to four patches wide, in three contrasts; a patch
is an eighth of the picture's side. A question asks whether there is a lesion, on which side, or at
which level, and each answer is as frequent as the others. So what the model is right in beyond
guessing it has seen. From the masks, the attention's mass on the lesion and the pointing game tell
whether it looks there, both beyond what even attention would have.

The other arms change one thing each: smaller patches; more pixels in as many patches, or in more;
more queries; or queries that attend in two stages, a second time after they have seen what they
attended to first. Overlapping patches are bounded and not run: at half a patch apart they are as
many tokens as the smaller patches, at the same places, and cost as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cmimtl.data.phantom_questions import kind_of
from cmimtl.evaluation.metrics import exact_match
from cmimtl.experiments.page import COLOURS, percent
from cmimtl.experiments.record import arm_of, comparison_of, in_words
from cmimtl.experiments.study import Arm, Comparison, Measure, Row, Score, Study

USUAL = "usual"
PATCHES_A_SIDE = 8
# Widths of the lesions, in patches, and how they are called.
WIDTHS = {1 / 3: "1/3", 2 / 3: "2/3", 1.0: "1", 2.0: "2", 4.0: "4"}
CONTRASTS = (1.0, 0.5, 0.25)
SMALL = 1.0  # patches: a lesion is small that is narrower
CELLS = list(itertools.product(WIDTHS, CONTRASTS))
GUESSED = {"Is": 1 / 2, "On": 1 / 3, "At": 1 / 3}  # first word of a question -> share of guesses


def _cell(width: float, contrast: float) -> str:
    return f"{WIDTHS[width]} patches, contrast {contrast:g}"


_TYPES = {kind_of(w / PATCHES_A_SIDE, c): (w, c) for w, c in CELLS}


def _seen(row: Row) -> float:
    """1 for a right answer, less the share that guessing is right in."""
    return exact_match(row["classified"], row["answer"]) - GUESSED[row["question"].split()[0]]


def _on_lesion(row: Row) -> float | None:
    found = row["attention"]
    return None if found["lesion"] is None else found["lesion"] - found["lesion_area"]


def _points(row: Row) -> float | None:
    found = row["attention"]
    return None if found["pointed"] is None else found["pointed"] - found["pointed_by_chance"]


WHAT: dict[str, tuple[str, Score]] = {
    "seen": ("right beyond guessing", _seen),
    "lesion": ("attention to the lesion, beyond even", _on_lesion),
    "points": ("pointing game, beyond chance", _points),
}


def _of_cell(score: Score, width: float, contrast: float) -> Score:
    def of(row: Row) -> float | None:
        return score(row) if _TYPES[row["content_type"]] == (width, contrast) else None

    return of


def _of_small(row: Row) -> float | None:
    return _seen(row) if _TYPES[row["content_type"]][0] < SMALL else None


def _conclude(record: Mapping[str, Any]) -> str:
    said = []
    for contrast in CONTRASTS:
        found = None
        for width in sorted(WIDTHS, reverse=True):
            beyond = comparison_of(record, USUAL, None, f"seen {_cell(width, contrast)}")
            if not (beyond["significant"] and beyond["value"] > 0):
                break
            found = WIDTHS[width]
        seen = "at no width" if found is None else f"from {found} of a patch on"
        said.append(f"{seen} at contrast {contrast:g}")
    helped = []
    for arm in STUDY.arms[1:]:
        gain = comparison_of(record, arm.name, USUAL, "small")
        if gain["significant"] and gain["value"] > 0:
            helped.append(f"{arm.title} ({in_words(gain)}; {_cost(record, arm.name)})")
    helps = (
        f"What helps with those below a patch: {', '.join(helped)}."
        if helped
        else "Of nothing that was tried it is shown that it helps with those below a patch."
    )
    return f"Lesions are shown to be seen {', '.join(said)}. {helps}"


def _cost(record: Mapping[str, Any], arm: str) -> str:
    usual, other = (arm_of(record, name)["costs"] for name in (USUAL, arm))
    time, memory = (other[name] / max(usual[name], 1) for name in ("step_ms", "memory_mb"))
    return f"{time:.1f} times the time of a step and {memory:.1f} times its memory"


def _tables(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    for what, (title, _) in WHAT.items():
        rows = [["", *(arm["title"] for arm in record["arms"])]]
        for cell in CELLS:
            name = f"{what} {_cell(*cell)}"
            found = [arm["measures"].get(name) for arm in record["arms"]]
            rows.append([_cell(*cell), *(percent(f) if f else "-" for f in found)])
        yield f"{title}, in percentage points, with 95 % intervals", rows


def _pictures(record: Mapping[str, Any]) -> Iterator[Figure]:
    for what, (title, _) in WHAT.items():
        figure, panels = plt.subplots(
            1, len(CONTRASTS), figsize=(9, 3), sharey=True, layout="constrained"
        )
        for axes, contrast in zip(panels, CONTRASTS, strict=True):
            for arm, colour in zip(record["arms"], COLOURS, strict=False):
                found = [
                    (width, 100 * arm["measures"][name]["value"])
                    for width in WIDTHS
                    if (name := f"{what} {_cell(width, contrast)}") in arm["measures"]
                ]
                if found:
                    axes.plot(*zip(*found, strict=True), "o-", color=colour, label=arm["title"])
            axes.set(xscale="log", xlabel="width, patches", title=f"contrast {contrast:g}")
            axes.set_xticks(list(WIDTHS), list(WIDTHS.values()))
            axes.minorticks_off()
            axes.axhline(0, color="#888", lw=0.8)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(title, fontsize=8)
        panels[0].legend(fontsize=7)
        yield figure


def _sized(image: int, patch: int, **changes: Any) -> dict[str, Any]:
    return {"changes": {"image_size": image, "patch_size": patch, **changes}}


STUDY = Study(
    name="tiny",
    question="What is too small to see, and what helps at what cost?",
    arms=(
        Arm(USUAL, "64 pixels, patches of 8", _sized(64, 8)),
        Arm("patches", "smaller patches, of 4", _sized(64, 4)),
        Arm("pixels", "128 pixels, patches of 16", _sized(128, 16)),
        Arm("pixels-patches", "128 pixels, patches of 8", _sized(128, 8)),
        Arm("queries", "32 queries in place of 8", _sized(64, 8, num_queries=32)),
        Arm(
            "two-stages",
            "queries that attend in two stages",
            _sized(64, 8, **{"qformer_config.num_hidden_layers": 2}),
        ),
    ),
    measures={
        "seen": Measure("right beyond guessing", "test", _seen),
        "small": Measure("the same, below a patch", "test", _of_small),
        "lesion": Measure("attention to the lesion, beyond even", "test", _on_lesion),
        "points": Measure("pointing game, beyond chance", "test", _points),
        **{
            f"{what} {_cell(*cell)}": Measure(
                f"{title}, {_cell(*cell)}", "test", _of_cell(score, *cell), shown=False
            )
            for (what, (title, score)), cell in itertools.product(WHAT.items(), CELLS)
        },
    },
    comparisons=(
        *(Comparison(USUAL, None, f"seen {_cell(*cell)}") for cell in CELLS),
        *(
            Comparison(arm, USUAL, measure)
            for measure in ("small", "seen")
            for arm in ("patches", "pixels", "pixels-patches", "queries", "two-stages")
        ),
    ),
    train={"epochs": 10, "min_answer_count": 1},
    phantom={
        "n_images": 4000,
        "n_train": 2400,
        "image_size": 128,
        "diameters": [width / PATCHES_A_SIDE for width in WIDTHS],
        "contrasts": list(CONTRASTS),
    },
    phantom_because="whose lesions have the sizes and contrasts that are asked for",
    bounds="Overlapping patches are not run: at half a patch apart they are as many tokens as the"
    " smaller patches, at the same places, and cost as much.",
    costs=True,
    conclude=_conclude,
    tables=_tables,
    pictures=_pictures,
)
