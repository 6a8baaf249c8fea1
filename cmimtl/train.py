"""Training, from files on disk to a folder with a model that answers.

A run's folder holds::

    run.json            what the run was started with; written before the first step
    reader_report.json  what the reader repaired and dropped
    checkpoint-N/       what --resume needs, after N steps
    runs/               tensorboard
    config.json, …      the processor and the model; model.safetensors comes last of all, so a
    folder
                        that has it holds a finished run
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

from accelerate import PartialState
from rich.console import Console
from transformers import TrainingArguments, set_seed

from cmimtl.batches import ImageCache, VQACollator, VQADataset
from cmimtl.checkpoints import STAGING, clean, step_of
from cmimtl.config import FUSIONS
from cmimtl.data import (
    DATASETS,
    AnswerVocabulary,
    DataError,
    ReaderReport,
    VQAExample,
    load_dataset,
    write_phantom,
)
from cmimtl.files import write_json
from cmimtl.model import CMIMTLForVisualQuestionAnswering
from cmimtl.presets import PRESETS, build_model, build_processor
from cmimtl.processor import CMIMTLProcessor
from cmimtl.trainer import CMIMTLTrainer

RUN_FILE = "run.json"
MODEL_FILE = "model.safetensors"

# What a run is started with where neither the caller nor the preset says otherwise.
_DEFAULTS = {
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
}


def train(output_dir: str | os.PathLike[str], *, resume: bool = False, **given: object) -> None:
    """Train a model and leave it in a folder.

    Args:
        output_dir: folder of the run; new or empty, or that of the run to resume.
        resume: go on with the run in output_dir, with its own arguments, from its newest whole
            checkpoint. The result is that of a run that was never interrupted.
        given: data (name of a data set) and root (its folder; a phantom set is drawn where none
            is), which a new run needs; preset, fusion, weights (folder of pretrained weights),
            seed, max_steps, epochs, batch_size, accumulate, learning_rate, weight_decay,
            augmentation, bf16, save_every, keep, log_every, workers. None stands for the preset's
            value.
    Raises:
        ValueError: an argument is out of range or missing, or output_dir holds something else.
        DataError: the data set cannot be used.
        OSError: pretrained weights cannot be had.
    """
    run = Path(output_dir)
    console = Console(stderr=True, quiet=not PartialState().is_main_process)
    given = {name: value for name, value in given.items() if value is not None}
    arguments = _resumed(run, given) if resume else _started(run, given)
    if (run / MODEL_FILE).is_file():
        console.print(f"{run} holds a finished run; nothing to do.")
        return

    preset = PRESETS[arguments["preset"]]
    # Before the model is made: its first weights are a part of what the seed decides.
    set_seed(arguments["seed"])
    examples, vocabulary = _read(arguments, run, console)
    processor = build_processor(
        preset,
        [example.question for example in examples],
        [example.answer_normalized for example in examples],
        weights=_path(arguments["weights"]),
    )
    model = build_model(
        preset,
        vocabulary=vocabulary,
        processor=processor,
        fusion=arguments["fusion"],
        weights=_path(arguments["weights"]),
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{arguments['preset']}, {arguments['fusion']}: {count / 1e6:.2f} M parameters")
    trainer = _trainer(run, arguments, model, processor, vocabulary, examples)
    newest = clean(run)
    if newest is not None:
        console.print(f"resuming after step {step_of(newest)}")
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if trainer.is_world_process_zero():
        _save(run, model, processor)
        console.print(f"the model is in {run}")


def read_run(run: str | os.PathLike[str]) -> dict[str, object]:
    """The arguments that a run was started with.

    Raises:
        ValueError: the folder holds no run.
    """
    path = Path(run) / RUN_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"read_run: run must be a folder that `cmimtl train` made, got {run}, whose {RUN_FILE}"
            " is missing or unreadable."
        ) from error


def read_split(
    data: str, root: str | os.PathLike[str], split: str, report: ReaderReport | None = None
) -> list[VQAExample]:
    """One split of a data set; a phantom set is drawn first where root holds nothing.

    Raises:
        ValueError, DataError: as :func:`cmimtl.data.load_dataset`.
    """
    if data == "phantom" and not (Path(root) / "phantom.json").is_file():
        with PartialState().main_process_first():
            if not (Path(root) / "phantom.json").is_file():
                write_phantom(root)
    return load_dataset(data, root, split, report=report)


def _started(run: Path, given: dict[str, object]) -> dict[str, object]:
    """The arguments of a new run, complete and checked, written to its folder."""
    for name in ("data", "root"):
        if name not in given:
            raise ValueError(f"train: {name} must be given for a new run, got none.")
    known = {"data": DATASETS, "preset": PRESETS, "fusion": FUSIONS}
    for name, names in known.items():
        if name in given and given[name] not in names:
            raise ValueError(
                f"train: {name} must be one of {', '.join(names)}, got {given[name]!r}."
            )
    if PartialState().is_main_process and run.exists() and (not run.is_dir() or any(run.iterdir())):
        advice = "; --resume goes on with it" if (run / RUN_FILE).is_file() else ""
        raise ValueError(
            f"train: output_dir must be new or empty, got {run}, which holds something{advice}."
        )
    training = PRESETS[given.get("preset", _DEFAULTS["preset"])].training
    arguments = {
        **_DEFAULTS,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "augmentation": training.augmentation,
        **{name: str(v) if isinstance(v, os.PathLike) else v for name, v in given.items()},
    }
    arguments["root"] = str(Path(arguments["root"]).absolute())
    if unknown := set(given) - set(arguments):
        raise ValueError(f"train: arguments must be known, got {', '.join(sorted(unknown))}.")
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        versions = {n: importlib.metadata.version(n) for n in ("cmimtl", "torch", "transformers")}
        write_json(run / RUN_FILE, {"arguments": arguments, "versions": versions})
    return arguments


def _resumed(run: Path, given: dict[str, object]) -> dict[str, object]:
    """The arguments of the run in a folder; those given again must be the same."""
    arguments = read_run(run)
    if "root" in given:
        given = {**given, "root": str(Path(str(given["root"])).absolute())}
    for name, value in given.items():
        if arguments.get(name) != value:
            raise ValueError(
                f"train: {name} must be what the run in {run} was started with"
                f" ({arguments.get(name)!r}) or be left out, got {value!r}."
            )
    return arguments


def _read(
    arguments: dict[str, object], run: Path, console: Console
) -> tuple[list[VQAExample], AnswerVocabulary]:
    """The training split and its answers; says what of the test split they leave out."""
    report = ReaderReport()
    examples = read_split(arguments["data"], arguments["root"], "train", report)
    if PartialState().is_main_process:
        write_json(run / "reader_report.json", report.to_dict())
    for line in report.lines():
        console.print(line, highlight=False)
    vocabulary = AnswerVocabulary.from_examples(examples)
    console.print(f"{len(vocabulary)} answers, from the training split alone")
    try:
        test = read_split(arguments["data"], arguments["root"], "test")
    except DataError as error:
        console.print(f"no test split to compare with: {error}")
    else:
        share = vocabulary.coverage(test)["out_of_vocabulary_share"]
        console.print(f"{share:.1%} of the {len(test)} test answers are not among them")
    return examples, vocabulary


def _trainer(
    run: Path,
    arguments: dict[str, object],
    model: CMIMTLForVisualQuestionAnswering,
    processor: CMIMTLProcessor,
    vocabulary: AnswerVocabulary,
    examples: list[VQAExample],
) -> CMIMTLTrainer:
    training = PRESETS[arguments["preset"]].training
    every = arguments["save_every"]
    # Where tensorboard looks; transformers has no argument for it any more.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run / "runs")
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
        bf16=arguments["bf16"],
        logging_steps=arguments["log_every"],
        save_strategy="steps" if every else "epoch",
        save_steps=every or 500,
        dataloader_num_workers=arguments["workers"],
        remove_unused_columns=False,
        report_to=["tensorboard"],
    )
    images = ImageCache([example.image for example in examples], model.config.image_size)
    return CMIMTLTrainer(
        rate_factors=training.rate_factors,
        keep_checkpoints=arguments["keep"],
        model=model,
        args=options,
        train_dataset=VQADataset(
            examples, images, augmentation=arguments["augmentation"], seed=arguments["seed"]
        ),
        data_collator=VQACollator(processor, vocabulary),
    )


def _save(run: Path, model: CMIMTLForVisualQuestionAnswering, processor: CMIMTLProcessor) -> None:
    """The processor, then the model, its weights last."""
    processor.save_pretrained(run)
    staging = run / STAGING
    model.save_pretrained(staging)
    # By the weights' file a finished run is known, so everything else is moved before it.
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MODEL_FILE):
        path.replace(run / path.name)
    staging.rmdir()


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
