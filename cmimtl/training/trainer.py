"""transformers' Trainer with this model's three losses, groups of learning rates, and checkpoints
that are whole whenever they can be seen."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer_pt_utils import get_parameter_names

from cmimtl import runs
from cmimtl.data.batches import EpochOrder, VQADataset
from cmimtl.files import writing
from cmimtl.modelling import losses
from cmimtl.training.progress import TrainingPhase
from cmimtl.training.steps import StepBatches

LOSSES = ("classification_loss", "contrastive_loss", "generation_loss")


class CMIMTLTrainer(Trainer):
    """Trains on a `cmimtl.data.batches.VQADataset`.

    It differs from its base class in five things:

    - parts of the model have learning rates of their own;
    - the order of the data comes from `cmimtl.data.batches.EpochOrder`, and its batches from
      `cmimtl.training.steps.StepBatches`;
    - the loss of a step is that of one large batch;
    - each loss is logged under its name, and a loss that is not finite ends the training;
    - a checkpoint gets its name when it is whole.
    """

    # The base class can do without these.
    model: PreTrainedModel
    train_dataset: VQADataset
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR

    def __init__(
        self,
        *,
        rate_factors: Mapping[str, float],
        keep_checkpoints: int,
        console: Console,
        **arguments,
    ):
        """Args: rate_factors: prefix of parameter names -> factor on the learning rate;
        keep_checkpoints: how many stay on disk; console: where the progress is shown; arguments of
        Trainer."""
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)  # it prints the log's dicts
        self._progress = TrainingPhase(console)
        self.add_callback(self._progress)
        self.model_accepts_loss_kwargs = False
        self._rate_factors = dict(rate_factors)
        self._keep_checkpoints = keep_checkpoints
        self._staging = False
        self._order = EpochOrder(len(self.train_dataset), self.args.seed)
        self._batches = StepBatches(
            self._order,
            batch_size=self.args.per_device_train_batch_size,
            accumulate=self.args.gradient_accumulation_steps,
            processes=self.args.world_size,
            process=self.args.process_index,
        )
        self.add_callback(_SetEpoch(self._order))
        self._loss_sums = torch.zeros(len(LOSSES))
        self._loss_count = 0
        # Dropout differs between processes. The first process keeps the seed that it was given.
        set_seed((self.args.seed + self.args.process_index) % 2**32)

    def planned_steps(self) -> int:
        """The number of optimizer steps after which the training is over."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        per_epoch = len(self._batches) // self.args.gradient_accumulation_steps
        return math.ceil(self.args.num_train_epochs * per_epoch)

    def train(self, *arguments, **options):
        """Train as the base class does. After a failure, its error begins on a line of its own."""
        try:
            return super().train(*arguments, **options)
        finally:
            self._progress.close()

    def load_weights(self, checkpoint: Path) -> None:
        """Give the model the weights of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))

    def _issue_warnings_after_load(self, load_result) -> None:
        """Of weights that are one, a checkpoint has one, which the base would warn of.

        `cmimtl.training.resuming.check_checkpoint` has seen to all others.
        """
        self.model.tie_weights()

    def get_train_dataloader(self) -> DataLoader:
        """Load this process's batches. accelerate's loader would repeat examples of an epoch."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=torch.cuda.is_available(),
            # The loader draws its workers' seeds from this generator, and so leaves the one of the
            # model's dropout alone. The workers draw nothing.
            generator=torch.Generator(),
        )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW; one group per learning rate, with and without weight decay."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, self._rate_factors
            )
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take the learning rates of the next step from a schedule of this run's length.

        The run may have become longer since the checkpoint was written.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            schedule = self.lr_scheduler
            factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
            rates = [rate * f for rate, f in zip(schedule.base_lrs, factors, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule._last_lr = rates  # the log shows these

    def get_batch_samples(self, *arguments):
        """The batches of a step, each with ``loss_scales``, see `loss_scales`."""
        batches, count = super().get_batch_samples(*arguments)
        mine = torch.tensor(
            [[len(batch["labels"]), int((batch["labels"] != -100).sum())] for batch in batches]
        )
        everyone = self.accelerator.gather(mine[None].to(self.args.device))
        for batch, scales in zip(
            batches, loss_scales(everyone, self.args.process_index), strict=True
        ):
            batch["loss_scales"] = scales
        return batches, count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective of the three scaled losses, which are also added up for the log."""
        scales = inputs.pop("loss_scales")
        outputs = model(**inputs)
        parts = scales * torch.stack([getattr(outputs, name).float() for name in LOSSES])
        self._loss_sums = self._loss_sums.to(parts.device) + parts.detach()
        self._loss_count += 1
        loss = losses.total_loss(self.model.config, *parts)
        return (loss, outputs) if return_outputs else loss

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
        return str(run / runs.STAGING if self._staging else run)

    def _save_checkpoint(self, model, trial=None) -> None:
        self._staging = True
        try:
            with writing("train", Path(self._get_output_dir())):
                super()._save_checkpoint(model, trial)
        except OSError:
            # What was written of the checkpoint would fill the space that is left.
            shutil.rmtree(self._get_output_dir(), ignore_errors=True)
            raise
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.args.should_save:
            runs.publish(Path(self._get_output_dir()), self._keep_checkpoints)
        self.accelerator.wait_for_everyone()


def loss_scales(counts: torch.Tensor, process: int) -> torch.Tensor:
    """Factors that make the mean over a step's batches and processes the loss of one large batch.

    Each loss of a batch is a mean: the classification loss over the batch's samples, the generation
    loss over its answers' tokens, the contrastive loss over the samples of all processes' batches,
    which are compared with one another. The mean of the scaled losses over the batches of a step
    and over the processes is the mean over all samples, or tokens, of the step.

    Args:
        counts: (processes, batches, 2) integers, samples and wanted tokens of each batch.
        process: the process whose factors are wanted.
    Returns:
        (batches, losses) float32, in the order of LOSSES. A factor is 1 where a step is one batch.
    """
    processes, batches, _ = counts.shape
    mine = counts[process]
    samples, tokens = counts.sum((0, 1)).clamp(min=1)
    share = processes * mine[:, 0] / samples
    contrast = counts[:, :, 0].sum(0) / samples
    return batches * torch.stack((share, contrast, processes * mine[:, 1] / tokens), dim=1)


class _SetEpoch(TrainerCallback):
    """Tells the order which epoch begins."""

    def __init__(self, order: EpochOrder):
        self._order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._order.set_epoch(int(state.epoch or 0))


def parameter_groups(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    rate_factors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The model's parameters by learning rate and weight decay, as an optimizer takes them.

    Biases and the parameters of LayerNorm are not decayed, nor are parameters that are marked with
    ``_no_weight_decay``, as Mamba's ``A_log`` and ``D`` are.

    Args:
        model: the model whose trainable parameters are grouped.
        learning_rate: the learning rate of every parameter that no prefix names.
        weight_decay: the weight decay of the parameters that are decayed.
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
