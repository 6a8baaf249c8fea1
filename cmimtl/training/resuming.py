"""What is checked of a checkpoint before a training goes on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_pt_utils import safe_globals

from cmimtl import runs
from cmimtl.files import read_json, reading
from cmimtl.modelling import loading

_WHOLE = "a checkpoint must be whole (--resume takes the one before where its folder is deleted)"


def check_checkpoint(checkpoint: Path, model: PreTrainedModel) -> None:
    """Make sure that every file of a checkpoint can be read, and that its weights fit the model.

    Raises:
        ValueError: one cannot, or they do not; the message names the file.
    """
    loading.check_weights(type(model), model.config, checkpoint)
    for path in loading.weight_files(checkpoint):
        loading.check_finite(load_file(path), path)
    path = checkpoint / "trainer_state.json"
    with reading("train", _WHOLE, path):
        state = TrainerState(**read_json("train", _WHOLE, path))
        if state.global_step != runs.step_of(checkpoint):
            raise ValueError(f"it is of step {state.global_step!r}")
    for name, keys in (
        ("optimizer.pt", {"state", "param_groups"}),
        ("scheduler.pt", {"last_epoch"}),
        ("rng_state*.pth", {"python", "numpy", "cpu"}),
    ):
        for path in checkpoint.glob(name):
            with reading("train", _WHOLE, path), safe_globals():
                content = torch.load(path, map_location="cpu", weights_only=True)
                if not isinstance(content, dict) or not keys <= set(content):
                    raise ValueError(f"it lacks one of {', '.join(sorted(keys))}")
