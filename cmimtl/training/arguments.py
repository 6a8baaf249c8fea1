"""What a training is started with, or resumed with: every argument, completed and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cmimtl import runs
from cmimtl.files import reading
from cmimtl.modelling.presets import PRESETS, changed
from cmimtl.names import DATASETS, DECODER_ANSWERS, FUSIONS

# The arguments of a run where neither the caller nor the preset says otherwise.
_DEFAULTS: dict[str, Any] = {
    "preset": "tiny",
    "fusion": "cross-mamba",
    "seed": 0,
    "max_steps": None,
    "accumulate": 1,
    "bf16": False,
    "save_every": None,
    "keep": 2,
    "log_every": 10,
    "workers": 0,
    "weights": None,
    "min_answer_count": 1,
    "decoder_answers": "own",
    "changes": {},
}
_SMALLEST = {
    "seed": 0, "max_steps": 1, "epochs": 1, "batch_size": 1, "accumulate": 1, "save_every": 1,
    "keep": 1, "log_every": 1, "workers": 0,
    "min_answer_count": 1,
}  # fmt: skip
_LARGEST = 2**32 - 1  # the largest seed that NumPy takes; no other argument comes near it


def new_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Complete the arguments of a new run, and check them as far as that needs nothing else.

    Args:
        given: name -> value, as `cmimtl.training.train.train` takes them.
    Raises:
        ValueError: an argument is unknown, missing or out of range.
    """
    for name in ("data", "root"):
        if name not in given:
            raise ValueError(f"train: {name} must be given for a new run, got none.")
    _check_names(given)
    preset = given.get("preset", _DEFAULTS["preset"])
    training = PRESETS[preset].training
    arguments = {
        **_DEFAULTS,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "augmentation": training.augmentation,
    }
    if unknown := set(given) - set(arguments) - {"data", "root"}:
        raise ValueError(f"train: arguments must be known, got {', '.join(sorted(unknown))}.")
    arguments |= _absolute(given)
    _check_numbers(arguments)
    changed(PRESETS[preset], arguments["changes"])
    if arguments["weights"] is not None:
        _check_weights(preset, Path(arguments["weights"]))
    return arguments


def _check_names(arguments: dict[str, Any]) -> None:
    known: dict[str, Iterable[str]] = {
        "data": DATASETS,
        "preset": PRESETS,
        "fusion": FUSIONS,
        "decoder_answers": DECODER_ANSWERS,
    }
    for name, names in known.items():
        if name in arguments and arguments[name] not in tuple(names):
            raise ValueError(
                f"train: {name} must be one of {', '.join(names)}, got {arguments[name]!r}."
            )


def _absolute(given: dict[str, Any]) -> dict[str, Any]:
    """Make the paths of folders absolute, so that a run can be resumed from elsewhere."""
    folders = {name: given[name] for name in ("root", "weights") if given.get(name) is not None}
    return given | {name: str(Path(str(path)).absolute()) for name, path in folders.items()}


def _check_numbers(arguments: dict[str, Any]) -> None:
    for name, smallest in _SMALLEST.items():
        value = arguments[name]
        if value is None and _DEFAULTS.get(name, smallest) is None:
            continue
        if not isinstance(value, int) or not smallest <= value <= _LARGEST:
            raise ValueError(
                f"train: {name} must be a whole number from {smallest} to {_LARGEST}, got"
                f" {value!r}."
            )
    for name, allowed, least in (
        ("learning_rate", "greater than 0", math.ulp(0.0)),
        ("weight_decay", "of at least 0", 0.0),
    ):
        value = arguments[name]
        if not isinstance(value, (int, float)) or not least <= value < math.inf:
            raise ValueError(f"train: {name} must be a number {allowed}, got {value!r}.")


def _check_weights(preset: str, weights: Path) -> None:
    parts = PRESETS[preset].pretrained
    if not parts:
        raise ValueError(
            f"train: weights must be left out with the preset {preset}, which starts from random"
            f" numbers, got {weights}."
        )
    missing = [part for part in parts if not (weights / part).is_dir()]
    if missing:
        raise ValueError(
            f"train: weights must be a folder with the folders {', '.join(parts)}, got {weights}"
            f" without {', '.join(missing)}."
        )


def resumed_arguments(
    run: Path, given: dict[str, Any], processes: int
) -> tuple[dict[str, Any], bool]:
    """The arguments of the run in a folder, and whether those that are given make it longer.

    Args:
        run: folder of the run.
        given: arguments that are given again. They must be the same as before. Only the number of
            epochs may be greater, or the number of steps where the run counts steps.
        processes: number of processes that are about to train the run.
    Raises:
        ValueError: there is no run, or it was started with other arguments.
    """
    record = runs.read_record(run)
    arguments = _recorded(run, record["arguments"])
    started = record.get("processes", 1)  # older versions had one process and no such key
    if processes != started:
        raise ValueError(
            f"train: processes must be as many as the run in {run} was started with ({started}),"
            f" got {processes}; start it with `torchrun --nproc-per-node {started} -m cmimtl`."
        )
    counted = "epochs" if arguments.get("max_steps") is None else "max_steps"
    longer = {}
    for name, value in _absolute(given).items():
        was = arguments.get(name)
        if value == was:
            continue
        if name not in ("epochs", "max_steps"):
            raise ValueError(
                f"train: {name} must be what the run in {run} was started with"
                f" ({was!r}) or be left out, got {value!r}."
            )
        if name != counted or value < was:
            raise ValueError(
                f"train: {name} must be left out for the run in {run}, which has {counted}"
                f" {arguments[counted]}, got {value!r}; a greater {counted} makes it longer."
            )
        longer[name] = value
    _check_numbers(arguments | longer)
    return arguments | longer, bool(longer)


def _recorded(run: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that run.json has, checked as those of a new run are.

    Older versions had fewer arguments, which then had the value that is now the default.
    """
    arguments = _DEFAULTS | arguments
    with reading("train", "run.json must have arguments of `cmimtl train`", run / runs.RUN_FILE):
        _check_names(arguments)
        _check_numbers(arguments)
        for name, kind in (("augmentation", bool), ("bf16", bool), ("changes", dict)):
            if not isinstance(arguments[name], kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {arguments[name]!r}")
        changed(PRESETS[arguments["preset"]], arguments["changes"])
    return arguments
