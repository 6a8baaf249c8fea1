"""The main job from end to end on the embedded data set: draw, train, evaluate, answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cmimtl import runs
from cmimtl.data import DESCRIBED, VQAExample, read_split, write_phantom
from cmimtl.data.batches import ImageCache
from cmimtl.evaluation.answer import Answer, QuestionAnswerer
from cmimtl.evaluation.evaluate import evaluate, evaluate_generation, print_generation, print_scores
from cmimtl.evaluation.explain import draw
from cmimtl.files import check_writable, write_json, write_text
from cmimtl.progress import Phase
from cmimtl.training.train import train

ABOUT = """\
A small model learns to answer questions about pictures, from nothing, on this machine.
The pictures are drawn: heads, chests and abdomens as CT, MRI or X-ray would show them, most of them
with one lesion. A classifier picks short answers ("left", "yes"); a decoder writes longer ones
("small bright lesion in the upper left of the chest")."""

# Kinds of question that are answered aloud, and the split that one of each is taken from: a closed
# one, an open one that is answered shortly, and a description of what no training picture shows.
SHOWN = (("closed", "test"), ("open", "test"), ("open", "compositional"))

# How often, of 2,400 pictures, an answer occurs to be a class of the classifier: short answers do
# 40 times and more, a description ten times at most.
MIN_ANSWER_COUNT = 25

EPOCHS = {False: 4, True: 16}  # thorough or not
MINUTES = {False: 3, True: 10}  # about, on two cores; thorough from the steps of the other


def run_demo(
    output_dir: str | os.PathLike[str],
    *,
    json_path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    thorough: bool = False,
    max_steps: int | None = None,
    n_images: int = 2400,
) -> dict[str, Any]:
    """Train the tiny model on the phantom set and show that it looks at the images.

    Args:
        output_dir: folder for the data set ("data"), the run ("run"), the scores ("scores.json"),
            every answer ("predictions.jsonl") and the picture ("answers.png"). What an interrupted
            demo left there is gone on with.
        json_path: where else the scores are written.
        seed: seed of the model.
        thorough: train four times as long.
        max_steps: optimizer steps; those of the epochs where None.
        n_images: pictures of the phantom set.
    Returns:
        the scores of `cmimtl.evaluation.evaluate.evaluate` on the test split; under "descriptions"
        and "compositional" those of `cmimtl.evaluation.evaluate.evaluate_generation` on the splits
        of these names; "seconds", of each phase and in all, and "seed".
    Raises:
        ValueError, DataError: output_dir or json_path cannot be used.
    """
    started = time.monotonic()
    if json_path is not None:
        json_path = check_writable("demo", "json", json_path)
    output = Path(output_dir)
    data, run, picture = output / "data", output / "run", output / "answers.png"
    check_writable("demo", "output_dir", picture)
    console = Console()
    console.print(ABOUT, highlight=False, soft_wrap=True)
    console.print(
        f"It takes about {MINUTES[thorough]} minutes on two cores. Ctrl-C ends it; the same command"
        " goes on with it.",
        highlight=False,
        soft_wrap=True,
    )

    seconds = {}
    with Phase(console, "drawing the pictures", n_images) as phase:
        write_phantom(data, n_images, progress=phase.advance)
    seconds["draw"] = time.monotonic() - started
    resume = runs.has_run(run)
    length = {"epochs": EPOCHS[thorough]} if max_steps is None else {"max_steps": max_steps}
    train(
        run,
        resume=resume,
        data="phantom",
        root=data,
        preset="tiny",
        seed=seed,
        min_answer_count=max(1, MIN_ANSWER_COUNT * n_images // 2400),
        workers=1,  # makes the next batch meanwhile, on the core that the training leaves free
        **length,
    )
    seconds["train"] = time.monotonic() - started - sum(seconds.values())

    answerer = QuestionAnswerer.from_run(run, batch_size=128)
    splits = {name: read_split("phantom", data, name) for name in ("train", "test", *DESCRIBED)}
    paths = [example.image for name in ("test", *DESCRIBED) for example in splits[name]]
    images = ImageCache(paths, answerer.image_size)
    with Phase(console, "answering test questions", _asked(splits)) as phase:
        answerer.progress = phase.advance
        scores = evaluate(answerer, answerer.vocabulary, splits["train"], splits["test"], images)
        for name in DESCRIBED:
            scores[name] = evaluate_generation(answerer, splits["train"], splits[name], images)
        answerer.progress = None
    predictions = [
        {"split": name, **row}
        for name, part in (("test", scores), *((name, scores[name]) for name in DESCRIBED))
        for row in part.pop("predictions")
    ]
    seconds["evaluate"] = time.monotonic() - started - sum(seconds.values())
    _print(scores, console)

    shown = _representative(splits, seed)
    answers = [
        answerer.answer(example.image, example.question, answer_type=example.answer_type)
        for example in shown
    ]
    draw(picture, answers, [example.answer for example in shown])
    seconds["all"] = time.monotonic() - started
    scores |= {"seconds": seconds, "seed": seed}
    lines = (json.dumps(row, ensure_ascii=False) for row in predictions)
    write_text(output / "predictions.jsonl", "\n".join(lines) + "\n")
    for path in filter(None, (output / "scores.json", json_path)):
        write_json(path, scores)
    _tell(shown, answers, console)
    console.print(
        f"\n{seconds['all']:.0f} s in all. In {output}: answers.png (these answers, and where the"
        " model looked), scores.json, predictions.jsonl (every answer), run (the model; cmimtl"
        " answer asks it), data (the pictures).",
        highlight=False,
        soft_wrap=True,
    )
    return scores


def _asked(splits: dict[str, list[VQAExample]]) -> int:
    """How many questions the evaluation asks the model, those of the controls included."""
    # Those of the test split with the images as they are, mixed up, and black; the descriptions
    # with the images as they are, and mixed up.
    return 3 * len(splits["test"]) + sum(2 * len(splits[name]) for name in DESCRIBED)


def _print(scores: dict[str, Any], console: Console) -> None:
    print_scores(scores, "test pictures", console)
    overall, alone = 100 * scores["overall"], 100 * scores["question_only"]
    mixed = 100 * scores["shuffled_images"]
    console.print(
        f"The model answers {overall:.0f} of 100 questions right. Whoever knows the questions but"
        f" not the pictures gets {alone:.0f}, and the model itself {mixed:.0f} when each question"
        " comes with another picture: the difference is what it sees.\n",
        highlight=False,
        soft_wrap=True,
    )
    print_generation(scores["descriptions"], "test pictures described in words", console)
    print_generation(
        scores["compositional"], "the same, of lesions unlike any in training", console
    )
    found = scores["compositional"]
    console.print(
        f"{100 * found['exact_match']:.0f} of 100 of these descriptions are right in every word."
        " Training had none of them: each has to be put together from what is seen. The classifier,"
        " which gives whole answers that it knows, cannot.\n",
        highlight=False,
        soft_wrap=True,
    )


def _representative(splits: dict[str, list[VQAExample]], seed: int) -> list[VQAExample]:
    """Draw one example of each kind of SHOWN at random, and not by how it was answered."""
    rng = np.random.default_rng(seed)
    shown = []
    for answer_type, split in SHOWN:
        chosen = [e for e in splits[split] if e.answer_type == answer_type]
        shown.append(chosen[rng.integers(len(chosen))])
    return shown


def _tell(shown: Sequence[VQAExample], answers: Sequence[Answer], console: Console) -> None:
    console.print("Three questions, drawn at random:", highlight=False)
    for example, answer in zip(shown, answers, strict=True):
        said = [f"classifier: [bold]{answer.classes[0][0]}[/] ({answer.classes[0][1]:.0%})"]
        if answer.generated is not None:
            said.append(
                f"decoder: [bold]{answer.generated}[/] ({answer.generated_probability:.0%})"
            )
        console.print(
            f"  {example.question} {'; '.join(said)}; true: [bold]{example.answer}[/]",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "  The classifier was trained on all questions, but has only answers that are frequent; the"
        " decoder was trained on open ones, so a closed one is not put to it.",
        highlight=False,
        soft_wrap=True,
    )
