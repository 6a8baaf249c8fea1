"""The folder of a run, whose only owner this package is: who reads or writes there asks it.

A run's folder holds:

    run.json            what the run was started with; written when everything has been checked
    reader_report.json  what the reader repaired and dropped
    warnings.json       what went wrong in its training, see `cmimtl.training.signatures`
    checkpoint-N/       what --resume needs, after N steps
    runs/               tensorboard
    .lock               locked, and naming its process, while one trains
    config.json, …      the processor and the model; model.safetensors comes last of all, so a
                        folder that has it holds a finished run
"""

from cmimtl.runs.checkpoints import STAGING, clean, publish, step_of
from cmimtl.runs.folder import (
    EVENTS,
    RUN_FILE,
    add_warning,
    check_finished,
    check_new,
    describe,
    discard,
    finish,
    has_run,
    how_to_go_on,
    is_finished,
    lengthen,
    new_folder,
    read_record,
    read_run,
    read_warnings,
)
from cmimtl.runs.locking import check_unlocked, lock

__all__ = [
    "EVENTS",
    "RUN_FILE",
    "STAGING",
    "add_warning",
    "check_finished",
    "check_new",
    "check_unlocked",
    "clean",
    "describe",
    "discard",
    "finish",
    "has_run",
    "how_to_go_on",
    "is_finished",
    "lengthen",
    "lock",
    "new_folder",
    "publish",
    "read_record",
    "read_run",
    "read_warnings",
    "step_of",
]
