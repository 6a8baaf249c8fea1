"""Training, from files on disk to a folder with a model that answers.

`cmimtl.runs` describes the folder.

Everything that can be wrong with arguments, data and weights is found before anything is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainingArguments, set_seed

from cmimtl import runs
from cmimtl.data import (
    AnswerVocabulary,
    DataError,
    ReaderReport,
    VQAExample,
    draw_missing,
    read_split,
)
from cmimtl.data.batches import ImageCache, VQACollator, VQADataset, shuffled_answers
from cmimtl.files import WriteError, writing
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.modelling.presets import PRESETS, build_model, build_processor, changed
from cmimtl.modelling.processor import CMIMTLProcessor
from cmimtl.progress import without_bars
from cmimtl.training.arguments import new_arguments, resumed_arguments
from cmimtl.training.processes import FailedElsewhere, join, together
from cmimtl.training.resuming import check_checkpoint
from cmimtl.training.signatures import Watch
from cmimtl.training.trainer import CMIMTLTrainer


@dataclass(frozen=True)
class _Job:
    """All that a training needs, made and checked."""

    arguments: dict[str, Any]
    examples: list[VQAExample]
    report: ReaderReport
    images: ImageCache
    vocabulary: AnswerVocabulary
    processor: CMIMTLProcessor
    model: CMIMTLForVisualQuestionAnswering


def train(output_dir: str | os.PathLike[str], *, resume: bool = False, **given: object) -> None:
    """Train a model and leave it in a folder.

    Where torchrun has started several processes, they train one model: a step takes ``batch_size *
    accumulate`` examples of each, and its loss is that of one batch with all of them, but for the
    contrastive loss, which compares the examples of all processes' batches at one time and is
    averaged over the batches that are accumulated.

    Args:
        output_dir: folder of the run; new or empty, or that of the run to resume.
        resume: go on with the run in output_dir, with its own arguments, from its newest whole
            checkpoint. The result is that of a run that was never interrupted. With more epochs, or
            more max_steps where the run has them, it becomes longer, also when it was finished;
            from then on the learning rate is that of a run of the new length.
        given: data (name of a data set) and root (its folder; a phantom set is drawn where none
            is), which a new run needs; preset, fusion, weights (folder of pretrained weights),
            seed, max_steps, epochs, batch_size, accumulate, learning_rate, weight_decay,
            augmentation, bf16, save_every, keep, log_every, workers, min_answer_count (how often an
            answer occurs in training to be a class), changes (name -> value that is not to
            be the preset's own, see `cmimtl.modelling.presets.changed`), decoder_answers ("own", or
            "shuffled" among the open questions of each content type). None stands for the preset's
            value.
    Raises:
        ValueError: an argument is out of range or missing, or output_dir holds something else or
            is in use. Nothing was written then, unless a run is resumed.
        DataError: the data set cannot be used.
        OSError: pretrained weights cannot be loaded.
        WriteError: something cannot be written; where the run can go on, the message says how.
        FailedElsewhere: another process has raised one of these.
    """
    run = Path(output_dir)
    console = Console(stderr=True, quiet=not join().is_main_process)
    given = {name: value for name, value in given.items() if value is not None}
    try:
        if resume:
            _resume(run, given, console)
        else:
            _start(run, given, console)
    except WriteError as error:
        if (advice := runs.how_to_go_on(run)) is None:
            raise
        raise WriteError(f"{error} When that is mended, {advice}") from error
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError):
            raise ValueError(
                f"train: batch_size must fit into the GPU's memory, got this: {reason}; lower it,"
                " and raise accumulate for steps of as many examples."
            ) from error
        if "DataLoader worker" in reason:
            raise ValueError(
                f"train: workers must be as many as can run, got this: {reason}; use fewer, or 0."
            ) from error
        if join().num_processes > 1 and "by peer" in reason:
            raise FailedElsewhere from error
        raise


def _start(run: Path, given: dict[str, Any], console: Console) -> None:
    """Train a new run."""

    def check() -> dict[str, Any]:
        arguments = new_arguments(given)
        _check_device(arguments)
        return arguments

    def check_folder() -> None:
        runs.check_unlocked(run)
        runs.check_new(run)

    arguments = together(check)
    together(check_folder, main_only=True)
    job = _prepare(arguments, console)

    processes = join().num_processes
    with contextlib.ExitStack() as stack:
        described = False

        def begin() -> None:
            nonlocal described
            stack.enter_context(runs.new_folder(run))
            stack.enter_context(runs.lock(run))
            runs.check_new(run)  # checked again, as another process may have been faster
            described = True
            runs.describe(run, arguments, processes, job.report.to_dict())

        trainer = None
        try:
            together(begin, main_only=True)
            trainer = _trainer(run, job, console)
            _run(run, job, trainer, None, console)
        except BaseException:
            if described and (trainer is None or trainer.state.global_step == 0):
                runs.discard(run)
            raise


def _resume(run: Path, given: dict[str, Any], console: Console) -> None:
    """Go on with a run."""
    processes = join().num_processes

    def begin() -> tuple[dict[str, Any], bool, Path | None, bool]:
        runs.read_run(run)  # read first, so that no lock is left in a folder without a run
        stack.enter_context(runs.lock(run))
        arguments, longer = resumed_arguments(run, given, processes)
        _check_device(arguments)
        newest = runs.clean(run, processes)
        finished = runs.is_finished(run)
        if finished and longer and newest is None:
            raise ValueError(
                f"train: output_dir must hold a checkpoint for a finished run to become longer, got"
                f" {run} with none."
            )
        return arguments, longer, newest, finished

    with contextlib.ExitStack() as stack:
        arguments, longer, newest, finished = together(begin, main_only=True)
        if finished and not longer:
            console.print(f"{run} holds a finished run; nothing to do.", soft_wrap=True)
            return
        job = _prepare(arguments, console)
        trainer = _trainer(run, job, console)
        if longer:
            step = 0 if newest is None else runs.step_of(newest)
            together(lambda: runs.lengthen(run, arguments, step), main_only=True)
        _run(run, job, trainer, newest, console)


def _check_device(arguments: dict[str, Any]) -> None:
    """Check that this machine can train with these arguments.

    Raises:
        ValueError: it cannot.
    """
    if arguments["bf16"] and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"train: bf16 must be off on a GPU without bfloat16, got {torch.cuda.get_device_name()}"
            " with it on; leave out --bf16."
        )


def _prepare(arguments: dict[str, Any], console: Console) -> _Job:
    """Read data and weights, in every process; writes nothing but a phantom set."""
    # A run of an older version has no changes.
    preset = changed(PRESETS[arguments["preset"]], arguments.get("changes", {}))
    weights = None if arguments["weights"] is None else Path(arguments["weights"])

    def draw() -> None:
        draw_missing(arguments["data"], arguments["root"])

    def make() -> _Job:
        # The seed is set before the model is made, because it also decides the first weights.
        set_seed(arguments["seed"])
        examples, vocabulary, report = _read(arguments, console)
        images = ImageCache([example.image for example in examples], preset.config["image_size"])
        processor = build_processor(
            preset,
            [example.question for example in examples],
            [example.answer_normalized for example in examples],
            weights=weights,
        )
        model = build_model(
            preset,
            vocabulary=vocabulary,
            processor=processor,
            fusion=arguments["fusion"],
            weights=weights,
        )
        _tell_what_is_cut(processor, examples, console)
        return _Job(arguments, examples, report, images, vocabulary, processor, model)

    together(draw, main_only=True)
    job = together(make)
    count = sum(parameter.numel() for parameter in job.model.parameters())
    console.print(f"{arguments['preset']}, {arguments['fusion']}: {count / 1e6:.2f} M parameters")
    return job


def _run(
    run: Path, job: _Job, trainer: CMIMTLTrainer, newest: Path | None, console: Console
) -> None:
    """Train from a checkpoint, or from the beginning, to the end, and save the model."""
    threads = PRESETS[job.arguments["preset"]].training.cpu_threads
    with writing("train", run), without_bars(), _at_most(threads):
        if newest is not None:
            check_checkpoint(newest, job.model)
            console.print(f"resuming after step {runs.step_of(newest)}")
        if newest is None or runs.step_of(newest) < trainer.planned_steps():
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        else:
            # The run was killed between its last checkpoint and its end. The base class's loop
            # would take one more step before it looks at the number of steps.
            trainer.load_weights(newest)
        if trainer.is_world_process_zero():
            runs.finish(run, job.model, job.processor)
            console.print(f"the model is in {run}", soft_wrap=True)


@contextlib.contextmanager
def _at_most(threads: int | None) -> Iterator[None]:
    """Limit the body to so many threads of the CPU; None is no limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(
    arguments: dict[str, Any], console: Console
) -> tuple[list[VQAExample], AnswerVocabulary, ReaderReport]:
    """Read the training split and its answers; tell which test answers are not among them."""
    report = ReaderReport()
    examples = read_split(arguments["data"], arguments["root"], "train", report)
    for line in report.lines():
        console.print(line, highlight=False)
    least = arguments["min_answer_count"]
    vocabulary = AnswerVocabulary.from_examples(examples, min_count=least)
    often = f" that occur {least} times or more" if least > 1 else ""
    console.print(f"{len(vocabulary)} answers{often}, from the training split alone")
    try:
        test = read_split(arguments["data"], arguments["root"], "test")
    except DataError as error:
        console.print(f"no test split to compare with: {error}")
    else:
        share = vocabulary.coverage(test)["out_of_vocabulary_share"]
        console.print(f"{share:.1%} of the {len(test)} test answers are not among them")
    return examples, vocabulary, report


def _tell_what_is_cut(
    processor: CMIMTLProcessor, examples: list[VQAExample], console: Console
) -> None:
    """Tell which training questions are longer than what the model reads of a question."""
    limit = processor.max_question_length
    lengths = {q: processor.tokens_of(q) for q in {example.question for example in examples}}
    longest = max(lengths, key=lambda question: lengths[question])
    if lengths[longest] > limit:
        count = sum(lengths[example.question] > limit for example in examples)
        console.print(
            f"{count} questions have more than the {limit} tokens that are read of one; the longest"
            f" has {lengths[longest]}: {longest}",
            highlight=False,
            soft_wrap=True,
        )


def _trainer(run: Path, job: _Job, console: Console) -> CMIMTLTrainer:
    arguments = job.arguments
    training = PRESETS[arguments["preset"]].training
    every = arguments["save_every"]
    shuffled = arguments.get("decoder_answers") == "shuffled"
    # tensorboard's events are written to this folder. transformers has no argument for it.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / runs.EVENTS)
    options = TrainingArguments(
        output_dir=str(run),
        seed=arguments["seed"],
        num_train_epochs=arguments["epochs"],
        max_steps=arguments["max_steps"] or -1,
        per_device_train_batch_size=arguments["batch_size"],
        gradient_accumulation_steps=arguments["accumulate"],
        learning_rate=arguments["learning_rate"],
        weight_decay=arguments["weight_decay"],
        adam_beta1=training.betas[0],
        adam_beta2=training.betas[1],
        warmup_steps=training.warmup,  # a float below 1 is a share of all steps
        lr_scheduler_type="linear",
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",  # one pass over hundreds of small parameters
        disable_tqdm=True,  # the trainer has a bar of its own
        bf16=arguments["bf16"],
        logging_steps=arguments["log_every"],
        save_strategy="steps" if every else "epoch",
        save_steps=every or 500,
        dataloader_num_workers=arguments["workers"],
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,  # the losses use all of them in every step
        report_to=["tensorboard"],
    )
    config = job.model.config
    weights = ("classification", "contrastive", "generation")
    circumstances = [f"{name} weight {getattr(config, f'{name}_weight')}" for name in weights]
    circumstances.append(f"batch size {arguments['batch_size']}")
    return CMIMTLTrainer(
        callbacks=[Watch(run, console, ", ".join(circumstances))],
        rate_factors=training.rate_factors,
        keep_checkpoints=arguments["keep"],
        console=console,
        model=job.model,
        args=options,
        train_dataset=VQADataset(
            job.examples,
            job.images,
            written=shuffled_answers(job.examples, arguments["seed"]) if shuffled else None,
            augmentation=arguments["augmentation"],
            seed=arguments["seed"],
        ),
        data_collator=VQACollator(job.processor, job.vocabulary),
    )
