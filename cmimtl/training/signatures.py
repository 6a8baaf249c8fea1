"""Signatures of a training that goes wrong, watched in every training.

They are found in what the trainer logs, the means over some steps, by these rules:

    spike       the loss is SPIKE times the median of the WINDOW entries before it, or more
    gradient    the norm of the gradient, before it is clipped, is EXPLOSION times that median
    trade       the classification loss is TRADE times its least mean over WINDOW entries, or more,
                while the generation loss is at its own least: the decoder learns at the
                classifier's cost

A signature is a warning and not an error: a training may well go through it and end well. It is
told once for a run of entries that have it, in one line, and kept in the run's folder.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from transformers import TrainerCallback

from cmimtl import runs

WINDOW = 10  # entries of the log
SPIKE = 2.0
EXPLOSION = 10.0
TRADE = 1.2


def signature(history: Sequence[Mapping[str, float]]) -> str | None:
    """What is wrong with the last entry of a training's log, in words; None where nothing is.

    Args:
        history: the entries so far, each with loss, grad_norm, classification_loss and
            generation_loss.
    """
    if len(history) <= WINDOW:
        return None
    *before, last = history
    recent = before[-WINDOW:]
    for name, factor, title in (
        ("loss", SPIKE, "the loss"),
        ("grad_norm", EXPLOSION, "the gradient's norm"),
    ):
        usual = statistics.median(entry[name] for entry in recent)
        if last[name] >= factor * usual > 0:
            return f"{title} rose to {last[name]:.3g}, from {usual:.3g}"
    classification, generation = (
        _means(name, history) for name in ("classification_loss", "generation_loss")
    )
    least = min(classification)
    if least > 0 and classification[-1] >= TRADE * least and generation[-1] == min(generation):
        return (
            f"the classification loss rose to {classification[-1]:.3g}, from {least:.3g}, while"
            f" the generation loss is at its least, {generation[-1]:.3g}"
        )
    return None


def _means(name: str, history: Sequence[Mapping[str, float]]) -> list[float]:
    """The mean of an entry and the WINDOW - 1 before it, for each entry that has so many."""
    values = [entry[name] for entry in history]
    return [statistics.fmean(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]


class Watch(TrainerCallback):
    """Warns of the signatures of one training, and keeps the warnings in its folder."""

    def __init__(self, run: Path, console: Console, circumstances: str) -> None:
        """Args: run: the run's folder; console: where to warn; circumstances: the weights of the
        losses and the batch size, in words, which belong to every warning."""
        self._run = run
        self._console = console
        self._circumstances = circumstances

    def on_log(self, args, state, control, logs=None, **kwargs):
        history = [entry for entry in state.log_history if "grad_norm" in entry]
        if not state.is_world_process_zero or not logs or "grad_norm" not in logs:
            return
        found = signature(history)
        # A resumed training has the log of before, and so warns as one that was never interrupted.
        if found is not None and signature(history[:-1]) is None:
            warning = f"step {state.global_step}: {found} ({self._circumstances})"
            self._console.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
            runs.add_warning(self._run, state.global_step, warning)
