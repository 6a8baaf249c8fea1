"""The command ``cmimtl experiment``: run a study, keep its record, and show what was found."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cmimtl import names
from cmimtl.data import write_phantom
from cmimtl.experiments import runner
from cmimtl.experiments.page import page
from cmimtl.experiments.record import make_record
from cmimtl.experiments.study import Study, runs_of
from cmimtl.files import check_folder, check_writable, write_json, write_text
from cmimtl.progress import Phase

# Pictures of the phantom set, and how often an answer occurs among them to be a class: as in the
# demo, short answers are classes and descriptions are not.
IMAGES, MIN_ANSWER_COUNT = 2400, 25
# What makes a training so short that only the study itself is tested by it.
QUICK_IMAGES = 200
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
    if data != "phantom" and root is None:
        raise ValueError(f"experiment: root must be given for the data set {data}, got none.")
    n_images = QUICK_IMAGES if quick else IMAGES
    place = Path(root) if root is not None else output / f"phantom-{n_images}"
    shared: dict[str, Any] = {"data": data, "root": str(place.absolute()), "preset": preset}
    if data == "phantom":
        shared["min_answer_count"] = max(1, MIN_ANSWER_COUNT * n_images // IMAGES)
    if weights is not None:
        shared["weights"] = str(Path(weights).absolute())
    if quick:
        shared |= QUICK
        seeds = 1
    all_runs = runs_of(study, shared, seeds)
    if script is not None:
        options = {"output-dir": output.absolute(), "data": data, "root": root and place.absolute()}
        options |= {"weights": shared.get("weights"), "preset": preset, "seeds": seeds}
        path = check_writable("experiment", "script", script)
        write_text(path, _slurm(name, len(all_runs), options, quick))
        console.print(f"{path}: {len(all_runs)} jobs; `sbatch {path}` starts them", soft_wrap=True)
        return None
    if task is not None and task >= len(all_runs):
        raise ValueError(
            f"experiment: task must be less than the number of runs ({len(all_runs)}), got {task}."
        )
    if data == "phantom" and root is None:
        with Phase(console, "drawing the pictures", n_images) as phase:
            write_phantom(place, n_images, progress=phase.advance)
    chosen = all_runs if task is None else [all_runs[task]]
    runner.run_all(output, chosen, study.asked, jobs=jobs, console=console)
    if task is not None:
        return None
    (output / name).mkdir(parents=True, exist_ok=True)
    record = make_record(study, all_runs, output, shared, quick=quick)
    leave(study, record, output / name)
    console.print(f"{record['found']}\n{output / name / 'page.html'}", highlight=False)
    return record


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
