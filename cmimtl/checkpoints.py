"""Checkpoints that a kill at any moment leaves either whole or out of sight.

``transformers.Trainer`` writes a checkpoint file by file under its final name, and takes the one
with the highest number when it resumes, whole or not. Here a checkpoint is written in a folder of
another name and gets its own by one rename, when everything is in it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

# The folder, within the run's, in which a checkpoint is written before its rename.
STAGING = ".checkpoint-being-written"

_NAME = re.compile(r"checkpoint-(\d+)")
_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps that a checkpoint's name tells."""
    return int(_NAME.fullmatch(checkpoint.name).group(1))


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run that are named like checkpoints, oldest first, whole or not."""
    found = [path for path in run.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def is_complete(checkpoint: Path) -> bool:
    """Whether everything is there that a run needs to go on; a cut deletion can leave less."""
    return all((checkpoint / name).is_file() for name in _FILES) and any(
        checkpoint.glob("rng_state*.pth")
    )


def clean(run: Path) -> Path | None:
    """Delete what a kill left unfinished; give the newest checkpoint, or None where there is
    none."""
    shutil.rmtree(run / STAGING, ignore_errors=True)
    newest = None
    for checkpoint in checkpoints(run):
        if is_complete(checkpoint):
            newest = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return newest


def publish(run: Path, keep: int) -> None:
    """Give the checkpoint in the staging folder its place and delete all but the newest ``keep``.

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
