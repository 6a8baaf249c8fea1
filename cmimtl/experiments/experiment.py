"""The command ``cmimtl experiment``: run a study, keep its record, and show what was found."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cmimtl import names
from cmimtl.data import write_phantom
from cmimtl.experiments import runner
from cmimtl.experiments.costs import benched
from cmimtl.experiments.page import page
from cmimtl.experiments.record import make_record
from cmimtl.experiments.study import Arm, Study, runs_of
from cmimtl.files import check_folder, check_writable, write_json, write_text
from cmimtl.progress import Phase

# Pictures of the phantom set, and how often an answer occurs among them to be a class: as in the
# demo, short answers are classes and descriptions are not.
IMAGES, MIN_ANSWER_COUNT = 2400, 25
# What makes a training so short that only the study itself is tested by it.
QUICK_IMAGES, QUICK_TRAIN = 200, 156
QUICK = {"max_steps": 3, "batch_size": 16, "log_every": 1}


def run_experiment(
    name: str,
    *,
    output_dir: str | os.PathLike[str] = "cmimtl-experiments",
    data: str = "phantom",
    root: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preset: str = "tiny",
    seeds: int = 3,
    jobs: int = 1,
    quick: bool = False,
    task: int | None = None,
    script: str | os.PathLike[str] | None = None,
) -> dict[str, Any] | None:
    """Run a study, or go on with it, and leave its record and its page.

    Args:
        name: one of `cmimtl.names.STUDIES`.
        output_dir: folder of the studies: NAME/record.json, NAME/page.html, the runs, which studies
            share, and the phantom set.
        data, root: the data set and its folder; the phantom set is drawn where none is given.
        weights: folder of pretrained weights, for presets that need them.
        preset: the model that all arms change.
        seeds: number of seeds of the training, counted from 0; of the phantom set there is one.
        jobs: number of runs at a time.
        quick: shorten all trainings to seconds, with one seed, to test the study itself.
        task: run only the run of this number, counted from 0, and leave no record: for schedulers.
        script: run nothing, and write a script here that runs the study as an array of SLURM jobs.
    Returns:
        the record, see `cmimtl.experiments.record.make_record`; None with task or script.
    Raises:
        ValueError: an argument is out of range.
        DataError: the data set cannot be used.
        RunFailed: a run failed; the others are kept.
    """
    study: Study = names.load(names.STUDIES[name])
    output = check_folder("experiment", "output_dir", output_dir)
    console = Console(stderr=True)
    if study.phantom_because and (data != "phantom" or root is not None):
        raise ValueError(
            f"experiment: data must be a phantom set that is drawn for the study {name},"
            f" {study.phantom_because}, got {data if root is None else f'{data} in {root}'}."
        )
    if data != "phantom" and root is None:
        raise ValueError(f"experiment: root must be given for the data set {data}, got none.")
    shared: dict[str, Any] = {"data": data, "preset": preset}
    if data == "phantom" and "min_answer_count" not in study.train:
        n_images = QUICK_IMAGES if quick else IMAGES
        shared["min_answer_count"] = max(1, MIN_ANSWER_COUNT * n_images // IMAGES)
    if weights is not None:
        shared["weights"] = str(Path(weights).absolute())
    if quick:
        shared |= QUICK
        seeds = 1
    sets = {arm.name: _set_of(study, arm, quick) for arm in study.arms}
    places = {
        arm: Path(root) if root is not None else output / _folder(options)
        for arm, options in sets.items()
    }
    of_arm = {
        arm: {"root": str(place.absolute()), **(QUICK if quick else {})}
        for arm, place in places.items()
    }
    all_runs = runs_of(study, shared, seeds, of_arm)
    if script is not None:
        options = {
            "output-dir": output.absolute(),
            "data": data,
            "root": root and Path(root).absolute(),
        }
        options |= {"weights": shared.get("weights"), "preset": preset, "seeds": seeds}
        path = check_writable("experiment", "script", script)
        write_text(path, _slurm(name, len(all_runs), options, quick))
        console.print(f"{path}: {len(all_runs)} jobs; `sbatch {path}` starts them", soft_wrap=True)
        return None
    if task is not None and task >= len(all_runs):
        raise ValueError(
            f"experiment: task must be less than the number of runs ({len(all_runs)}), got {task}."
        )
    chosen = all_runs if task is None else [all_runs[task]]
    if data == "phantom" and root is None:
        for place, arm in {places[run.arm]: run.arm for run in chosen}.items():
            with Phase(console, "drawing pictures", 1) as phase:
                write_phantom(place, **sets[arm])
                phase.advance()
    runner.run_all(output, chosen, study.asked, jobs=jobs, console=console)
    if task is not None:
        return None
    (output / name).mkdir(parents=True, exist_ok=True)
    bench = benched(study, output / name / "bench.json", quick) if study.bench else {}
    record = make_record(study, all_runs, output, shared, quick=quick, bench=bench)
    leave(study, record, output / name)
    console.print(f"{record['found']}\n{output / name / 'page.html'}", highlight=False)
    return record


def _set_of(study: Study, arm: Arm, quick: bool) -> dict[str, Any]:
    """The arguments of `write_phantom` for an arm."""
    options = {"n_images": IMAGES, **study.phantom, **arm.phantom}
    if quick:
        options["n_images"] = min(options["n_images"], QUICK_IMAGES)
        if "n_train" in options:
            options["n_train"] = min(options["n_train"], QUICK_TRAIN)
    return options


def _folder(options: Mapping[str, Any]) -> str:
    """The name of a phantom set's folder: sets with the same options are one set."""
    if set(options) == {"n_images"}:
        return f"phantom-{options['n_images']}"
    text = json.dumps(options, sort_keys=True)
    return f"phantom-{options['n_images']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def leave(study: Study, record: Mapping[str, Any], place: Path) -> None:
    """Write a record and its page to a folder."""
    write_json(place / "record.json", record)
    write_text(place / "page.html", page(study, record))


def _slurm(name: str, count: int, options: Mapping[str, Any], quick: bool) -> str:
    """A script for `sbatch`, each of whose jobs runs one run."""
    words = ["cmimtl", "experiment", name]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", str(value)]
    command = shlex.join([*words, *(["--quick"] if quick else [])])
    return (
        "#!/usr/bin/env bash\n"
        f"#SBATCH --job-name=cmimtl-{name}\n"
        f"#SBATCH --array=0-{count - 1}\n"
        f"# When all jobs are done, this makes the record and the page:\n"
        f"# {command}\n"
        f'exec {command} --task "$SLURM_ARRAY_TASK_ID"\n'
    )
