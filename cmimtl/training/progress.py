"""Show the progress of a training, with its losses."""

from __future__ import annotations

from rich.console import Console
from transformers import TrainerCallback

from cmimtl.progress import Phase


class TrainingPhase(TrainerCallback):
    """The optimizer steps of a Trainer as a `Phase`, with the losses that it logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase: Phase | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._phase = Phase(self._console, "training", state.max_steps).__enter__()
            self._phase.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self._phase is not None:
            self._phase.advance()

    def on_log(self, args, state, control, logs=None, **kwargs):
        parts = [
            f"{name.removesuffix('_loss')} {value:.2f}"
            for name, value in (logs or {}).items()
            if name.endswith("_loss") and name != "train_loss"
        ]
        if self._phase is not None and parts:
            self._phase.advance(0, f"loss: {', '.join(parts)}")

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """End the phase, also after a failure, so that the error begins on a line of its own."""
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None
