"""From the scores of the runs to the record of a study, which is all that is kept of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmimtl.experiments import statistics
from cmimtl.experiments.costs import measured
from cmimtl.experiments.runner import folder, read_scores
from cmimtl.experiments.study import Asked, Measure, Run, Study, Summary
from cmimtl.runs import read_warnings

LEVEL = 0.05  # of a corrected p-value


def make_record(
    study: Study,
    all_runs: Sequence[Run],
    output: Path,
    shared: Mapping[str, Any],
    *,
    quick: bool,
    bench: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of a study whose runs are done.

    Returns:
        a dict ready for JSON, without any path:

            study, question, found      name, question, and the answer in words
            quick                       whether the trainings were shortened to test the study
            seeds                       list
            arguments                   what all runs share
            arms                        a dict an arm: name, title, arguments; measures: name ->
                                        value, low, high, by_seed, questions, without those that
                                        count no question of the arm; summaries: name ->
                                        value, by_seed; warnings: a list a seed, see
                                        `cmimtl.training.signatures`; costs, where the study has
                                        them: step_ms, memory_mb, parameters
            comparisons                 a dict a comparison: better, than, measure, value, low,
                                        high, p, p_corrected, significant; without those that count
                                        no question
            bench                       what the study's own measurement gives
            derived                     what the study's own analysis gives
            machine, versions, commit, created
    """
    seeds = sorted({run.arguments["seed"] for run in all_runs})
    rows = {
        (run.arm, run.arguments["seed"], asked): read_scores(output, run, asked)["predictions"]
        for run in all_runs
        for asked in study.asked
    }

    def rows_of(arm: str, seed: int, what: Measure | Summary) -> list[Mapping[str, Any]]:
        as_it_is = rows[arm, seed, Asked(what.split)]
        if what.probe is None:
            return as_it_is
        probed = rows[arm, seed, Asked(what.split, what.probe)]
        return [row | {"unprobed": other} for row, other in zip(probed, as_it_is, strict=True)]

    def scores(arm: str, name: str) -> tuple[np.ndarray, list[str]]:
        measure = study.measures[name]
        asked = [rows_of(arm, seed, measure) for seed in seeds]
        values = [[measure.score(row) for row in of_seed] for of_seed in asked]
        return np.array(values, float), [row["image"] for row in asked[0]]

    record: dict[str, Any] = {
        "study": study.name,
        "question": study.question,
        "quick": quick,
        "seeds": seeds,
        "arguments": {
            name: value
            for name, value in {**study.train, **shared}.items()
            if name not in ("root", "weights")
        },
        "arms": [],
        "comparisons": [],
        "bench": bench or {},
    }
    for arm in study.arms:
        measures = {}
        for name in study.measures:
            values, images = scores(arm.name, name)
            if np.isnan(values).all():
                continue
            estimate = statistics.mean(values, images)
            measures[name] = {
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "by_seed": np.nanmean(values, axis=1).tolist(),
                "questions": int((~np.isnan(values[0])).sum()),
            }
        summaries = {}
        for name, summary in study.summaries.items():
            by_seed = [summary.of(rows_of(arm.name, seed, summary)) for seed in seeds]
            summaries[name] = {"value": float(np.mean(by_seed)), "by_seed": by_seed}
        record["arms"].append(
            {
                "name": arm.name,
                "title": arm.title,
                "arguments": dict(arm.train),
                "measures": measures,
                "summaries": summaries,
                "warnings": [
                    read_warnings(folder(output, run)) for run in all_runs if run.arm == arm.name
                ],
            }
        )
    if study.costs:
        folders = {run.arm: folder(output, run) for run in all_runs[: len(study.arms)]}
        costs = measured(folders, output / study.name / "costs.json", quick)
        for arm in record["arms"]:
            arm["costs"] = costs[arm["name"]]
    found = []
    made = []
    for comparison in study.comparisons:
        a, images = scores(comparison.better, comparison.measure)
        b = np.zeros_like(a)
        if comparison.than is not None:
            b, _ = scores(comparison.than, comparison.measure)
        if not np.isnan(a).all():
            made.append(comparison)
            found.append(statistics.difference(a, b, images))
    corrected = statistics.holm([estimate.p for estimate in found])
    for comparison, estimate, p in zip(made, found, corrected, strict=True):
        record["comparisons"].append(
            {
                "better": comparison.better,
                "than": comparison.than,
                "measure": comparison.measure,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "p": estimate.p,
                "p_corrected": p,
                "significant": p < LEVEL,
            }
        )
    record["derived"] = study.derive(scores)
    record["found"] = study.conclude(record)
    return record | provenance()


def provenance() -> dict[str, Any]:
    """Where and with what a record was made."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            name: importlib.metadata.version(name) for name in ("cmimtl", "torch", "transformers")
        },
        "commit": _commit(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str | None:
    """The commit of the checkout that this package is installed from; None where it is from none.

    It ends in "-changed" where files differ from the commit.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--dirty=-changed", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def arm_of(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An arm of a record by its name."""
    return next(arm for arm in record["arms"] if arm["name"] == name)


def comparison_of(
    record: Mapping[str, Any], better: str, than: str | None, measure: str
) -> Mapping[str, Any]:
    """A comparison of a record by what it compares."""
    return next(
        c
        for c in record["comparisons"]
        if (c["better"], c["than"], c["measure"]) == (better, than, measure)
    )


def in_words(comparison: Mapping[str, Any]) -> str:
    """A difference in percentage points: "+1.2 points (95 % interval -0.3 to 2.8, not …)"."""
    value, low, high = (100 * comparison[name] for name in ("value", "low", "high"))
    verdict = (
        f"p = {comparison['p_corrected']:.2g}" if comparison["significant"] else "not significant"
    )
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}; {verdict})"
