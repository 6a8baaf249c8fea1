"""Scores of a trained model on a split, and the controls that belong beside them.

A score says that a model sees only where it stands well above what the questions alone give away,
and where it falls to that when the images are taken away or mixed up.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from cmimtl.answer import QuestionAnswerer
from cmimtl.batches import ImageCache
from cmimtl.data import CLOSED, OPEN, AnswerVocabulary, VQAExample, check_split
from cmimtl.files import check_writable, write_json
from cmimtl.metrics import majority, question_only, score
from cmimtl.train import read_run, read_split

# Name in the JSON -> name in the table.
_CONTROLS = {
    "question_only": "question alone (look-up)",
    "majority": "majority answer",
    "shuffled_images": "model, images mixed up",
    "blank_images": "model, black images",
}


class Answerer(Protocol):
    """What is evaluated: both heads of a model, or anything else that answers in text."""

    def classify(self, questions: Sequence[str], pictures: Iterable[np.ndarray]) -> list[str]:
        """One answer per question; pictures (height, width, 3) uint8, one per question."""

    def generate(self, questions: Sequence[str], pictures: Iterable[np.ndarray]) -> list[str]:
        """As :meth:`classify`, in free text."""


def evaluate(
    answerer: Answerer,
    vocabulary: AnswerVocabulary,
    train: Sequence[VQAExample],
    test: Sequence[VQAExample],
    images: ImageCache,
) -> dict[str, object]:
    """Score both heads on a split, with controls.

    Args:
        answerer: the model.
        vocabulary: the answers that its classifier can give.
        train: the training split, from which the look-up and the majority answer come.
        test: the split to score, of at least two images.
        images: the pictures of ``test``.
    Returns:
        a dict ready for JSON, fractions in [0, 1] with 95 % intervals clustered by image::

            questions, images       numbers
            overall, open, closed   accuracy of the classifier; None without such a question
            intervals               of these, [low, high]
            by_content_type         type -> questions, accuracy, interval, token_f1, question_only
            question_only, majority, shuffled_images, blank_images     overall accuracy of a control
            controls                control -> overall, open, closed, intervals
            exact_match, token_f1   of the decoder's answers to the open questions
            generated               the same with intervals, and with images mixed up
            out_of_vocabulary_share     share of answers that the classifier cannot give
    Raises:
        ValueError: test has fewer than two images, or train is empty.
    """
    mixed_up = shuffled(test)
    questions = [example.question for example in test]
    black = np.zeros((images.image_size, images.image_size, 3), np.uint8)

    def classify(pictures: Iterable[np.ndarray]) -> dict[str, object]:
        return score(test, answerer.classify(questions, pictures))

    classified = classify(images[example.image] for example in test)
    controls = {
        "question_only": score(test, question_only(train, test)),
        "majority": score(test, majority(train, test)),
        "shuffled_images": classify(images[path] for path in mixed_up),
        "blank_images": classify(itertools.repeat(black, len(test))),
    }
    by_content_type = classified["by_content_type"]
    for name, scores in by_content_type.items():
        scores["question_only"] = controls["question_only"]["by_content_type"][name]["accuracy"]
    generated = _evaluate_decoder(answerer, test, mixed_up, images)
    return {
        "questions": classified["questions"],
        "images": classified["images"],
        **{name: classified[name] for name in ("overall", "open", "closed")},
        **{name: controls[name]["overall"] for name in _CONTROLS},
        "exact_match": generated["exact_match"],
        "token_f1": generated["token_f1"],
        **vocabulary.coverage(test),
        "open_questions": classified["open_questions"],
        "closed_questions": classified["closed_questions"],
        "intervals": {
            name: classified["intervals"][name] for name in ("overall", "open", "closed")
        },
        "controls": {
            name: {key: scores[key] for key in ("overall", "open", "closed", "intervals")}
            for name, scores in controls.items()
        },
        "generated": generated,
        "by_content_type": by_content_type,
    }


def _evaluate_decoder(
    answerer: Answerer,
    test: Sequence[VQAExample],
    mixed_up: Sequence[Path],
    images: ImageCache,
) -> dict[str, object]:
    """Exact match and token F1 of the generated answers; open questions alone, as in training."""
    chosen = [number for number, example in enumerate(test) if example.answer_type == OPEN]
    if not chosen:
        return {"questions": 0, "exact_match": None, "token_f1": None}
    examples = [test[number] for number in chosen]
    questions = [example.question for example in examples]
    answers = answerer.generate(questions, (images[example.image] for example in examples))
    without = answerer.generate(questions, (images[mixed_up[number]] for number in chosen))
    scores, control = score(examples, answers), score(examples, without)
    return {
        "questions": len(examples),
        "exact_match": scores["overall"],
        "token_f1": scores["token_f1"],
        "intervals": {
            "exact_match": scores["intervals"]["overall"],
            "token_f1": scores["intervals"]["token_f1"],
        },
        "shuffled_images": {"exact_match": control["overall"], "token_f1": control["token_f1"]},
    }


def evaluate_generation(
    answerer: Answerer, test: Sequence[VQAExample], images: ImageCache
) -> dict[str, object]:
    """Score the decoder alone, on a split that a classifier has no classes for.

    Returns:
        ``{"questions", "exact_match", "token_f1", "intervals", "shuffled_images"}`` as under
        "generated" of :func:`evaluate`.
    Raises:
        ValueError: fewer than two images.
    """
    return _evaluate_decoder(answerer, test, shuffled(test), images)


def shuffled(examples: Sequence[VQAExample], seed: int = 0) -> list[Path]:
    """Another image for every question, the same one for all questions about an image.

    The images change places along one circle through all of them in random order, so none stays.

    Args:
        examples: questions about at least two images.
        seed: of the order.
    Returns:
        one path per example, of an image with another ``image_id``.
    Raises:
        ValueError: all questions are about one image.
    """
    paths = {example.image_id: example.image for example in examples}
    if len(paths) < 2:
        raise ValueError(
            "evaluate: test must hold questions about at least 2 images, or none can be mixed up,"
            f" got {len(paths)}."
        )
    names = sorted(paths)
    np.random.default_rng(seed).shuffle(names)
    successor = dict(zip(names, names[1:] + names[:1], strict=True))
    return [paths[successor[example.image_id]] for example in examples]


def print_scores(scores: dict[str, object], title: str, console: Console) -> None:
    """Print what :func:`evaluate` gave as tables, in percent.

    Args:
        scores: its result.
        title: names data set and split.
        console: where to print.
    """
    table = Table(
        title=f"{title}: {scores['questions']} questions about {scores['images']} images",
        caption="accuracy in %, with 95 % intervals clustered by image",
    )
    table.add_column("")
    for name, key in (("overall", None), (OPEN, "open_questions"), (CLOSED, "closed_questions")):
        table.add_column(name if key is None else f"{name} ({scores[key]})", justify="right")
    rows = {"classifier": scores} | {_CONTROLS[k]: v for k, v in scores["controls"].items()}
    for name, row in rows.items():
        cells = (_percent(row[key], row["intervals"][key]) for key in ("overall", "open", "closed"))
        table.add_row(name, *cells, style="bold" if row is scores else None)
    console.print(table)

    generated = scores["generated"]
    if generated["questions"]:
        print_generation(generated, "decoder, open questions", console)

    table = Table(title="classifier, by what the question asks about")
    for name in ("", "questions", "accuracy", "question alone"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in scores["by_content_type"].items():
        table.add_row(
            name,
            str(row["questions"]),
            _percent(row["accuracy"], row["interval"]),
            _percent(row["question_only"]),
        )
    console.print(table)
    console.print(
        f"{_percent(scores['out_of_vocabulary_share'])} % of the answers are none of the"
        " classifier's classes, which come from the training split alone."
    )


def print_generation(generated: dict[str, object], title: str, console: Console) -> None:
    """Print exact match and token F1 of the decoder, and both with images mixed up, in percent."""
    table = Table(title=f"{title}: {generated['questions']} questions")
    for name in ("", "exact match", "token F1"):
        table.add_column(name, justify="right" if name else "left")
    keys = ("exact_match", "token_f1")
    cells = (_percent(generated[key], generated["intervals"][key]) for key in keys)
    table.add_row("decoder", *cells, style="bold")
    control = generated["shuffled_images"]
    table.add_row(_CONTROLS["shuffled_images"], *(_percent(control[key]) for key in keys))
    console.print(table)


def _percent(fraction: float | None, interval: Sequence[float] | None = None) -> str:
    if fraction is None:
        return "-"
    text = f"{100 * fraction:.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def evaluate_run(
    run: str | os.PathLike[str],
    *,
    data: str | None = None,
    root: str | os.PathLike[str] | None = None,
    split: str = "test",
    json_path: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
) -> dict[str, object]:
    """Score what ``cmimtl train`` left in a folder, print the scores and write them as JSON.

    Args:
        run: folder of the run.
        data, root: data set and its folder; the run's own where None.
        split: which part of it.
        json_path: where the scores are written.
        batch_size: questions at a time.
    Returns:
        as :func:`evaluate`; for the compositional split of the phantom set, whose answers no
        classifier has, as :func:`evaluate_generation`.
    Raises:
        ValueError: run holds no finished model, or an argument is out of range.
        DataError: the data set cannot be used.
    """
    if json_path is not None:
        json_path = check_writable("evaluate", "json", json_path)
    arguments = read_run(run)
    if data is not None and data != arguments["data"] and root is None:
        raise ValueError("evaluate: root must be given where data is not the run's own, got none.")
    data, root = data or arguments["data"], root or arguments["root"]
    check_split(data, split)
    answerer = QuestionAnswerer.from_run(run, batch_size=batch_size)
    test = read_split(data, root, split)
    images = ImageCache([example.image for example in test], answerer.image_size)
    console, title = Console(), f"{run} on {data}, {split}"
    if split == "compositional":
        scores = evaluate_generation(answerer, test, images)
        print_generation(scores, title, console)
    else:
        train = read_split(data, root, "train")
        scores = evaluate(answerer, answerer.vocabulary, train, test, images)
        print_scores(scores, title, console)
    if json_path is not None:
        write_json(json_path, scores)
    return scores
