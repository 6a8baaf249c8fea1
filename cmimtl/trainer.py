"""transformers' Trainer with this model's three losses, groups of learning rates, and checkpoints
that survive a kill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_parameter_names

from cmimtl.batches import EpochOrder
from cmimtl.checkpoints import STAGING, publish

LOSSES = ("classification_loss", "contrastive_loss", "generation_loss")


class CMIMTLTrainer(Trainer):
    """Trains on a :class:`~cmimtl.batches.VQADataset`.

    Differs from its base in four things: parts of the model have learning rates of their own; the
    order of the data comes from :class:`~cmimtl.batches.EpochOrder`; each loss is logged under its
    name, and one that is not finite ends the training; a checkpoint gets its name when it is whole.
    """

    # The model's loss is a mean over the batch, so it is divided by the accumulation steps here.
    def __init__(self, *, rate_factors: Mapping[str, float], keep_checkpoints: int, **arguments):
        """Args: rate_factors: prefix of parameter names -> factor on the learning rate;
        keep_checkpoints: how many stay on disk; arguments of Trainer."""
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = False
        self._rate_factors = dict(rate_factors)
        self._keep_checkpoints = keep_checkpoints
        self._staging = False
        self._order = EpochOrder(len(self.train_dataset), self.args.seed)
        self.add_callback(_SetEpoch(self._order))
        self._loss_sums = torch.zeros(len(LOSSES))
        self._loss_count = 0

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        return self._order

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW; one group per learning rate, with and without weight decay."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, self._rate_factors
            )
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; its three parts are added up for the log."""
        outputs = model(**inputs)
        parts = torch.stack([getattr(outputs, name).detach().float() for name in LOSSES])
        self._loss_sums = self._loss_sums.to(parts.device) + parts
        self._loss_count += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean of each loss since the last time.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if "loss" in logs and self._loss_count:
            sums = self.accelerator.gather(self._loss_sums[None]).mean(0)
            means = (sums / self._loss_count).tolist()
            logs.update(zip(LOSSES, means, strict=True))
            self._loss_sums.zero_()
            self._loss_count = 0
            wrong = [f"{name} {logs[name]}" for name in LOSSES if not math.isfinite(logs[name])]
            if wrong:
                raise FloatingPointError(
                    f"train: every loss must be finite, got {', '.join(wrong)} by step"
                    f" {self.state.global_step}; use a lower learning rate."
                )
        super().log(logs, start_time)

    def _get_output_dir(self, trial=None) -> str:
        run = Path(super()._get_output_dir(trial))
        return str(run / STAGING if self._staging else run)

    def _save_checkpoint(self, model, trial=None) -> None:
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.args.should_save:
            publish(Path(self.args.output_dir), self._keep_checkpoints)
        self.accelerator.wait_for_everyone()


class _SetEpoch(TrainerCallback):
    """Tells the order which epoch begins. accelerate does so for some of its wrappers of a sampler
    and not for others (those of a resumed, distributed run)."""

    def __init__(self, order: EpochOrder):
        self._order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._order.set_epoch(int(state.epoch or 0))


def parameter_groups(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    rate_factors: Mapping[str, float],
) -> list[dict[str, object]]:
    """The model's parameters by learning rate and weight decay, as an optimizer takes them.

    Biases, the parameters of LayerNorm, and what says so itself (``_no_weight_decay``, as Mamba's
    ``A_log`` and ``D`` do) are not decayed.

    Args:
        model: whose trainable parameters are grouped.
        learning_rate: of every parameter that no prefix names.
        weight_decay: of what is decayed.
        rate_factors: prefix of parameter names ("classifier") -> factor on learning_rate.
    Raises:
        ValueError: a prefix names no parameter.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for prefix in rate_factors:
        if not any(_under(name, prefix) for name in names):
            raise ValueError(
                "parameter_groups: rate_factors must name parts of the model, got"
                f" {prefix!r}, which no parameter is under."
            )
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], [r"bias"]))
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = next((f for prefix, f in rate_factors.items() if _under(name, prefix)), 1.0)
        decay = name in decayed and not getattr(parameter, "_no_weight_decay", False)
        key = (learning_rate * factor, weight_decay if decay else 0.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
