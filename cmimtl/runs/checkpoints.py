"""Checkpoints of a run, which are whole whenever they can be seen, even if the run is killed.

``transformers.Trainer`` writes a checkpoint file by file under its final name, and resumes from the
one with the highest number, whole or not. Here a checkpoint is written to a folder of another name.
It gets its own name by one rename, when everything is in it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

# A checkpoint is written to this folder, within the run's, before it is renamed.
STAGING = ".checkpoint-being-written"

_NAME = re.compile(r"checkpoint-\d+")
_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps that a checkpoint's name tells."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run that are named like checkpoints, oldest first, whole or not."""
    found = [path for path in run.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def is_complete(checkpoint: Path, processes: int) -> bool:
    """Whether a checkpoint has everything that a run of so many processes needs to go on.

    A deletion that was interrupted can leave less.
    """
    if processes == 1:
        random_states = ["rng_state.pth"]
    else:
        random_states = [f"rng_state_{process}.pth" for process in range(processes)]
    return all((checkpoint / name).is_file() for name in (*_FILES, *random_states))


def clean(run: Path, processes: int) -> Path | None:
    """Delete what a killed run left unfinished, and give its newest checkpoint, or None.

    Args:
        run: folder of the run.
        processes: number of processes that train it.
    """
    shutil.rmtree(run / STAGING, ignore_errors=True)
    newest = None
    for checkpoint in checkpoints(run):
        if is_complete(checkpoint, processes):
            newest = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return newest


def publish(run: Path, keep: int) -> None:
    """Move the checkpoint out of the staging folder, and delete all but the newest ``keep``.

    Args:
        run: folder of the run, with one whole checkpoint in its staging folder.
        keep: number of checkpoints that stay, >= 1.
    """
    staging = run / STAGING
    for checkpoint in checkpoints(staging):
        os.replace(checkpoint, run / checkpoint.name)
    staging.rmdir()
    for checkpoint in checkpoints(run)[:-keep]:
        shutil.rmtree(checkpoint)
