"""`long`: what does a scan forget?

A question is a report of several organs, of 16 to 256 tokens, and asks for the sentence of the one
that the picture shows, which stands next to the question (near), in the middle, or at the beginning
(far). The other sentences distract: they are alike. One answer of three is guessed. What a fusion
forgets is how much less it is right far than near.

Cross-Mamba reads the text at as many places as there are queries, between which it lies resampled,
and scans those; the concatenated scan reads every token; co-attention has every token in reach of
every other. Without a fusion, only the text encoder and the Q-Former, which attend, carry the
sentence to the heads, so what they do is no merit of a fusion.

Reports of 1,024 tokens are bounded and not trained with: they are those of 256 with four times the
sentences, so that accuracy at 256 bounds accuracy there from above. Their cost is measured, and so
is that of streams of up to 4,096 visual tokens. The fusions of this model never read so many: they
read the queries, and the Q-Former reads the picture. One arm has four times the patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cmimtl.data.phantom_reports import DISTANCES
from cmimtl.evaluation.metrics import exact_match
from cmimtl.experiments import lengths, statistics
from cmimtl.experiments.page import COLOURS, percent
from cmimtl.experiments.record import comparison_of, in_words
from cmimtl.experiments.study import Arm, Comparison, Measure, Row, Score, ScoresOf, Study

LENGTHS = (16, 64, 256)  # tokens, of the trainings
FUSIONS = {
    "cross-mamba": "Cross-Mamba",
    "scan-concatenated": "scan, concatenated",
    "transformer": "co-attention",
    "none": "no fusion",
}
OURS = "cross-mamba"
GUESSED = 1 / 3
# Tokens of the two streams whose cost is measured: of the text, and of the visual stream.
BY_TEXT = [(8, n) for n in (16, 64, 256, 1024)]
BY_PICTURE = [(n, 16) for n in (16, 64, 256, 1024, 4096)]


def _name(fusion: str, tokens: int) -> str:
    return f"{fusion} {tokens}"


def _seen(distance: str | None) -> Score:
    """1 for a right answer, less the share that guessing is right in."""

    def score(row: Row) -> float | None:
        if distance is not None and not row["content_type"].endswith(f", {distance}"):
            return None
        return exact_match(row["classified"], row["answer"]) - GUESSED

    return score


def _arm(fusion: str, tokens: int, **changes: Any) -> dict[str, Any]:
    """What is trained otherwise: the fusion, and room for so many tokens."""
    # The positions of RoBERTa begin at 2.
    room = {
        "max_question_length": tokens,
        "text_config.max_position_embeddings": tokens + 2,
        "qformer_config.max_position_embeddings": tokens,
    }
    return {"fusion": fusion, "changes": room | changes}


def _bench(quick: bool) -> dict[str, Any]:
    """The cost of the fusions, by the length of either stream."""
    last = 1 if quick else None
    rounds = 2 if quick else lengths.ROUNDS
    return {
        name: lengths.measure(list(FUSIONS), sizes[:last], rounds=rounds)
        for name, sizes in (("text", BY_TEXT), ("picture", BY_PICTURE))
    }


def _derive(scores_of: ScoresOf, record: Mapping[str, Any]) -> dict[str, Any]:
    """Arm -> how much less it is right far than near, with its interval."""
    found = {}
    for number, arm in enumerate(STUDY.arms):
        near, far = (scores_of(arm.name, distance) for distance in ("near", "far"))
        # The questions are others, and the pictures the same.
        drawn = [
            statistics.resampled(*of_distance, arm=2 * number + i)
            for i, of_distance in enumerate((near, far))
        ]
        low, high = statistics.interval(drawn[0] - drawn[1])
        value = statistics.mean(*near).value - statistics.mean(*far).value
        found[arm.name] = {"value": value, "low": low, "high": high}
    return found


def _conclude(record: Mapping[str, Any]) -> str:
    said = []
    for distance, words in zip(
        DISTANCES, ("near the question", "in the middle", "far"), strict=True
    ):
        found = [
            str(tokens)
            for tokens in LENGTHS
            if (c := comparison_of(record, _name(OURS, tokens), None, distance))["significant"]
            and c["value"] > 0
        ]
        said.append(f"{words} in reports of {' and '.join(found) or 'no'} tokens")
    longest = LENGTHS[-1]
    forgets = {fusion: record["derived"][_name(fusion, longest)] for fusion in FUSIONS}
    parts = [
        f"{FUSIONS[fusion]} {100 * f['value']:+.1f} (95 % interval {100 * f['low']:+.1f} to"
        f" {100 * f['high']:+.1f})"
        for fusion, f in forgets.items()
    ]
    against = comparison_of(record, _name(OURS, longest), _name("transformer", longest), "far")
    return (
        f"Beyond guessing Cross-Mamba is shown to recall {', '.join(said)}. From near to far in"
        f" {longest} tokens is forgotten, in points of accuracy:"
        f" {', '.join(parts)}. Far from the question Cross-Mamba is right {in_words(against)} more"
        " often than co-attention there."
    )


def _tables(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    rows = [["", "near - far"]]
    rows += [[arm["title"], percent(record["derived"][arm["name"]])] for arm in record["arms"]]
    yield "what is forgotten, in percentage points, with 95 % intervals", rows
    for name, title in (("text", "text"), ("picture", "visual stream")):
        yield (
            f"a step of the fusion alone, of one sample, by the length of the {title}",
            lengths.table(record["bench"][name]),
        )


def _pictures(record: Mapping[str, Any]) -> Iterator[Figure]:
    arms = {arm["name"]: arm["measures"] for arm in record["arms"]}
    figure, panels = plt.subplots(
        1, len(LENGTHS), figsize=(9, 3), sharey=True, layout="constrained"
    )
    for axes, tokens in zip(panels, LENGTHS, strict=True):
        for (fusion, title), colour in zip(FUSIONS.items(), COLOURS, strict=False):
            found = [arms[_name(fusion, tokens)][distance] for distance in DISTANCES]
            value, low, high = ([100 * f[k] for f in found] for k in ("value", "low", "high"))
            axes.plot(DISTANCES, value, "o-", color=colour, label=title)
            axes.fill_between(DISTANCES, low, high, color=colour, alpha=0.12, lw=0)
        axes.axhline(0, color="#888", lw=0.8)
        axes.set_title(f"{tokens} tokens", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right beyond guessing, %")
    panels[0].legend(fontsize=8)
    yield figure


STUDY = Study(
    name="long",
    question="What does a scan forget?",
    arms=(
        *(
            Arm(
                _name(fusion, tokens),
                f"{title}, {tokens} tokens",
                _arm(fusion, tokens),
                {"report_tokens": [tokens]},
            )
            for tokens in LENGTHS
            for fusion, title in FUSIONS.items()
        ),
        Arm(
            "patches",
            "Cross-Mamba, 16 tokens, 64 patches in place of 16",
            _arm(OURS, 16, patch_size=8),
            {"report_tokens": [16]},
        ),
    ),
    measures={
        "overall": Measure("right beyond guessing", "test", _seen(None)),
        **{
            distance: Measure(f"the same, {distance}", "test", _seen(distance))
            for distance in DISTANCES
        },
    },
    comparisons=(
        *(
            Comparison(_name(OURS, tokens), None, distance)
            for tokens, distance in itertools.product(LENGTHS, DISTANCES)
        ),
        *(
            Comparison(_name(OURS, tokens), _name(other, tokens), measure)
            for measure in ("far", "overall")
            for tokens in LENGTHS
            for other in FUSIONS
            if other != OURS
        ),
        Comparison("patches", _name(OURS, 16), "overall"),
    ),
    train={"epochs": 8, "min_answer_count": 1},
    phantom={"n_images": 2400, "n_train": 2400},
    phantom_because="whose questions are as long as is asked for",
    bounds="Reports of 1,024 tokens are not trained with: they are those of 256 with four times the"
    " sentences, so that accuracy at 256 bounds accuracy there from above. Their cost is measured,"
    " and so is that of up to 4,096 visual tokens, which no training has.",
    costs=True,
    bench=_bench,
    conclude=_conclude,
    derive=_derive,
    tables=_tables,
    pictures=_pictures,
)
