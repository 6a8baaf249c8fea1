"""What a study is: arms that are trained alike but for one thing, and comparisons between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# A row of a run's predictions, as `cmimtl.evaluation.evaluate.predictions` makes them.
Row = Mapping[str, Any]
# A row -> its score, or None where the question is not counted.
Score = Callable[[Row], float | None]
# An arm and a measure -> scores (seeds, questions), NaN where not counted; the questions' images.
ScoresOf = Callable[[str, str], tuple[np.ndarray, list[str]]]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: its key in the record.
        title: its name in tables and pictures.
        train: arguments of `cmimtl.training.train.train` beside those that all arms share.
        phantom: arguments of `cmimtl.data.write_phantom` beside those that all arms share.
    """

    name: str
    title: str
    train: Mapping[str, Any] = field(default_factory=dict)
    phantom: Mapping[str, Any] = field(default_factory=dict)


class Asked(NamedTuple):
    """The questions of a split, as they are or under a probe."""

    split: str
    probe: str | None = None


@dataclass(frozen=True)
class Measure:
    """A score that every model of a study gets.

    Attributes:
        title: its name in tables and pictures.
        split: the split of the data set that is asked.
        score: what a row of the predictions counts.
        probe: the condition under which it is asked, one of `cmimtl.names.PROBES`. A row then has
            another one, "unprobed": the same question asked as it is.
        shown: whether it stands among the scores of the page, or serves comparisons and the
            study's own analysis alone.
    """

    title: str
    split: str
    score: Score
    probe: str | None = None
    shown: bool = True


@dataclass(frozen=True)
class Summary:
    """A number of a whole run that is no mean over its questions.

    Attributes:
        title: its name in tables.
        split: the split of the data set that is asked.
        of: from the rows of the predictions to the number.
        probe: as in `Measure`.
    """

    title: str
    split: str
    of: Callable[[Sequence[Mapping[str, Any]]], float]
    probe: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two arms by one measure; the difference is `better` minus `than`.

    Without `than`, the measure is a difference itself, as between a question under a probe and as
    it is, and `better`'s mean is compared with 0.
    """

    better: str
    than: str | None
    measure: str


def _none(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


def _nothing(scores: ScoresOf, record: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Study:
    """A question to the model, and the runs that answer it.

    Attributes:
        name: of the command and of the record.
        question: what is asked, in one sentence.
        arms: the ways to train; each is trained with every seed.
        measures: name -> score.
        summaries: name -> number of a whole run.
        quick_without: arms that a test of the study itself does without, in no comparison.
        comparisons: pairs that were planned before anything was run; their p-values are corrected
            together.
        train: arguments of the training that all arms share.
        phantom: arguments of `cmimtl.data.write_phantom` that all arms share.
        phantom_because: why no other data set will do; empty where others do.
        costs: whether the time and memory of a training step belong beside the scores.
        bench: measures what no training tells, such as the cost of lengths that none has. It is
            called once, with whether the study is only tested.
        derive: from the scores of the arms to what else belongs into the record, by name. It is
            given a function (arm, measure) -> scores (seeds, questions), images (questions,), and
            the record so far.
        bounds: what is bounded and not run, for the page.
        conclude: from the record to what was found, in one or two sentences.
        tables, pictures: from the record to what its page shows beside the scores and comparisons:
            pairs of a caption and a table, whose first row is its head; and figures.
    """

    name: str
    question: str
    arms: Sequence[Arm]
    measures: Mapping[str, Measure]
    comparisons: Sequence[Comparison]
    conclude: Callable[[Mapping[str, Any]], str]
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    quick_without: Sequence[str] = ()
    phantom: Mapping[str, Any] = field(default_factory=dict)
    phantom_because: str = ""
    bounds: str = ""
    costs: bool = False
    bench: Callable[[bool], Mapping[str, Any]] | None = None
    derive: Callable[[ScoresOf, Mapping[str, Any]], Mapping[str, Any]] = _nothing
    tables: Callable[[Mapping[str, Any]], Iterable[tuple[str, Any]]] = _none
    pictures: Callable[[Mapping[str, Any]], Iterable[Any]] = _none

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"Study: arms must have distinct names, got {', '.join(names)}.")
        for comparison in self.comparisons:
            for name in (comparison.better, comparison.than):
                if name is not None and name not in names:
                    raise ValueError(
                        f"Study: comparisons must be of arms ({', '.join(names)}), got {name!r}."
                    )
            if comparison.measure not in self.measures:
                raise ValueError(
                    "Study: comparisons must be by one of the measures"
                    f" ({', '.join(self.measures)}), got {comparison.measure!r}."
                )

    @property
    def asked(self) -> list[Asked]:
        """All that a model is asked, each once: what a probe is compared with comes before it."""
        every: list[Measure | Summary] = [*self.measures.values(), *self.summaries.values()]
        return list(
            dict.fromkeys(
                [Asked(one.split) for one in every] + [Asked(one.split, one.probe) for one in every]
            )
        )


@dataclass(frozen=True)
class Run:
    """A training with its evaluation: an arm with a seed.

    Attributes:
        arm: the arm's name.
        arguments: all arguments of `cmimtl.training.train.train`, the seed included.
    """

    arm: str
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The name of the run's folder: runs with the same arguments are one run."""
        text = json.dumps(self.arguments, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def runs_of(
    study: Study,
    shared: Mapping[str, Any],
    seeds: int,
    of_arm: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Run]:
    """Every run of a study, seed by seed, so that a study that is cut short has whole seeds.

    Args:
        study: the study.
        shared: arguments that all runs get beside the study's own, data and root among them.
        seeds: number of seeds, counted from 0.
        of_arm: arm -> arguments that win over all others.
    """
    of_arm = of_arm or {}
    return [
        Run(
            arm.name,
            _merged(study.train, shared, arm.train, of_arm.get(arm.name, {}), {"seed": seed}),
        )
        for seed in range(seeds)
        for arm in study.arms
    ]


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; what they set of the configuration is joined."""
    merged: dict[str, Any] = {}
    for layer in layers:
        both = {**merged.get("changes", {}), **layer.get("changes", {})}
        merged |= layer
        if both:
            merged["changes"] = both
    return merged
