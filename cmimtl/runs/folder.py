"""The folder of a run from its first file to its last: begun, described, finished, longer, gone."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from cmimtl.files import check_folder, read_json, reading, write_json, writing
from cmimtl.runs.checkpoints import STAGING, checkpoints, step_of
from cmimtl.runs.locking import LOCK_FILE

RUN_FILE = "run.json"  # a folder with this file holds a run
MODEL_FILE = "model.safetensors"  # a folder with this file too holds a finished run
REPORT_FILE = "reader_report.json"
WARNINGS_FILE = "warnings.json"
EVENTS = "runs"


def has_run(run: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (run / RUN_FILE).is_file()


def is_finished(run: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    return (run / MODEL_FILE).is_file()


def check_finished(operation: str, run: Path) -> None:
    """Make sure that a folder holds a model that can be asked.

    The folder need not be a run's: a model and a processor that were saved by hand will do.

    Args:
        operation: what is being done; the error names it.
        run: the folder.
    Raises:
        ValueError: it holds no finished model.
    """
    for name in ("config.json", MODEL_FILE):
        if not (run / name).is_file():
            advice = "; finish its training with `cmimtl train --resume`" if has_run(run) else ""
            raise ValueError(
                f"{operation}: run must be a folder with a trained model, got {run} without"
                f" {name}{advice}."
            )


def read_run(run: str | PathLike[str]) -> dict[str, Any]:
    """The arguments that a run was started with, or last made longer with.

    Raises:
        ValueError: the folder holds no run.
    """
    return read_record(run)["arguments"]


def read_record(run: str | PathLike[str]) -> dict[str, Any]:
    """What ``run.json`` says: ``arguments``, ``processes``, ``versions`` and ``lengthened``.

    Raises:
        ValueError: the folder holds no run.
    """
    run = Path(run)
    try:
        record = read_json("read_run", "run.json must describe a run", run / RUN_FILE)
        arguments = record["arguments"]
        whole = isinstance(arguments, dict) and all(
            isinstance(arguments.get(name), str) for name in ("data", "root")
        )
        lengthened = record.get("lengthened", [])
        if not whole or not isinstance(lengthened, list):
            raise ValueError("it lacks arguments, or they are none")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"read_run: run must be a folder that `cmimtl train` made, got {run}, whose {RUN_FILE}"
            f" is missing or unreadable ({' '.join(str(error).split())[:300]})."
        ) from error
    return record


def check_new(run: Path) -> None:
    """Make sure that a new run can have this folder; nothing is made or deleted.

    The folder may hold a run that was killed before it saved anything.

    Raises:
        ValueError: the folder holds something else, or cannot be written to.
    """
    check_folder("train", "output_dir", run)
    if not run.is_dir():
        return
    left = {path.name for path in run.iterdir()} - {LOCK_FILE}
    unsaved = RUN_FILE in left and left <= {RUN_FILE, REPORT_FILE, WARNINGS_FILE, EVENTS, STAGING}
    if left and not unsaved:
        advice = "; --resume goes on with it" if RUN_FILE in left else ""
        raise ValueError(
            f"train: output_dir must be new or empty, got {run}, which holds something{advice}."
        )


def describe(run: Path, arguments: dict[str, Any], processes: int, report: dict[str, Any]) -> None:
    """Write to a new run's folder what it is started with, and what its reader reports."""
    for name in (STAGING, EVENTS):  # left by a run that was killed before it saved anything
        shutil.rmtree(run / name, ignore_errors=True)
    (run / WARNINGS_FILE).unlink(missing_ok=True)
    versions = {n: importlib.metadata.version(n) for n in ("cmimtl", "torch", "transformers")}
    write_json(run / REPORT_FILE, report)
    write_json(
        run / RUN_FILE, {"arguments": arguments, "processes": processes, "versions": versions}
    )


def add_warning(run: Path, step: int, warning: str) -> None:
    """Keep a warning of a training that has come to a step.

    Warnings of this step and later ones are replaced: the run was killed after them, and now takes
    these steps again.
    """
    kept = [entry for entry in read_warnings(run) if entry["step"] < step]
    write_json(run / WARNINGS_FILE, [*kept, {"step": step, "warning": warning}])


def read_warnings(run: Path) -> list[dict[str, Any]]:
    """The warnings of a run's training: a list of dicts of ``step`` and ``warning``.

    Raises:
        ValueError: the file holds something else.
    """
    path, requirement = run / WARNINGS_FILE, "warnings.json must hold steps and warnings"
    if not path.is_file():
        return []
    with reading("read_warnings", requirement, path):
        entries = read_json("read_warnings", requirement, path, list)
        return [{"step": int(e["step"]), "warning": str(e["warning"])} for e in entries]


def lengthen(run: Path, arguments: dict[str, Any], step: int) -> None:
    """Record that a run goes on for longer than it was started for.

    The model of a finished run is deleted: a folder with a model would be taken for that of a
    finished run, and the newest checkpoint has the same weights.

    Args:
        run: folder of the run.
        arguments: the run's arguments, with the new number of epochs or steps.
        step: the step after which the run becomes longer.
    """
    record = read_record(run)
    changed = {
        name: [record["arguments"].get(name), value]
        for name, value in arguments.items()
        if record["arguments"].get(name) != value
    }
    record["arguments"] = arguments
    record.setdefault("lengthened", []).append({"after_step": step, **changed})
    (run / MODEL_FILE).unlink(missing_ok=True)
    write_json(run / RUN_FILE, record)


@contextlib.contextmanager
def new_folder(run: Path) -> Iterator[None]:
    """Make a folder, and the folders above it, for the time of the body.

    Those of them that were made here and are empty in the end are deleted.
    """
    above = (run.absolute(), *run.absolute().parents)
    made = [path for path in above if not path.exists()]
    with writing("train", run):
        run.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays, with those above it
            for path in made:
                path.rmdir()


def discard(run: Path) -> None:
    """Delete what a run that took no step left in its folder."""
    for name in (STAGING, EVENTS):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in (RUN_FILE, REPORT_FILE, WARNINGS_FILE, LOCK_FILE):
        (run / name).unlink(missing_ok=True)


class Savable(Protocol):
    """A model or a processor of transformers."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write everything to a folder."""


def finish(run: Path, model: Savable, processor: Savable) -> None:
    """Save the processor, then the model, its weights last."""
    processor.save_pretrained(run)
    staging = run / STAGING
    model.save_pretrained(staging)
    # A finished run is known by the file of its weights, so everything else is moved before it.
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MODEL_FILE):
        path.replace(run / path.name)
    staging.rmdir()


def how_to_go_on(run: Path) -> str | None:
    """One sentence on how to go on with the run in a folder.

    It is None where the folder holds no run, or a finished one.
    """
    if not has_run(run) or is_finished(run):
        return None
    saved = checkpoints(run)
    where = f"after step {step_of(saved[-1])}" if saved else "from the first step; none was saved"
    return f"`cmimtl train --output-dir {run} --resume` goes on {where}."
