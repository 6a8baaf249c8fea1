"""Scores of a trained model on a split, and the controls that belong beside them.

A score shows that a model looks at the images only if two things hold: it is well above what the
questions alone give away, and it falls to that when the images are taken away or mixed up.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from cmimtl.data import (
    CLOSED,
    DESCRIBED,
    OPEN,
    AnswerVocabulary,
    VQAExample,
    check_split,
    load_dataset,
    read_split,
)
from cmimtl.data.batches import ImageCache
from cmimtl.evaluation.answer import Answers, QuestionAnswerer
from cmimtl.evaluation.attention import Masks, with_attention
from cmimtl.evaluation.metrics import majority, question_only, score
from cmimtl.files import check_writable, write_json
from cmimtl.runs import read_run

# Name of a row in the JSON -> its name in the table.
_CONTROLS = {
    "question_only": "question alone (look-up)",
    "majority": "majority answer",
    "shuffled_images": "model, images mixed up",
    "blank_images": "model, black images",
}
_GENERATION_CONTROLS = {
    "classifier": "classifier",
    "question_only": _CONTROLS["question_only"],
    "shuffled_images": "decoder, images mixed up",
}


class Answerer(Protocol):
    """What is evaluated: both heads of a model, or anything else that answers in text."""

    def ask(
        self,
        questions: Sequence[str],
        pictures: Iterable[np.ndarray],
        in_words: Sequence[bool],
    ) -> Answers:
        """A classifier's answer to each question, and one in free text where in_words is True.

        pictures: one for each question, (height, width, 3) uint8.
        """


def evaluate(
    answerer: Answerer,
    vocabulary: AnswerVocabulary,
    train: Sequence[VQAExample],
    test: Sequence[VQAExample],
    images: ImageCache,
) -> dict[str, Any]:
    """Score both heads on a split, with controls.

    Args:
        answerer: the model.
        vocabulary: the answers that its classifier can give.
        train: the training split, from which the look-up and the majority answer come.
        test: the split to score, of at least two images.
        images: the pictures of ``test``.
    Returns:
        a dict ready for JSON, fractions in [0, 1] with 95 % intervals clustered by image:

            questions, images           numbers
            overall, open, closed       accuracy of the classifier; None without such a question
            intervals                   the intervals of these accuracies, [low, high]
            by_content_type             type -> questions, accuracy, interval, token_f1,
                                        question_only
            question_only, majority,
            shuffled_images,
            blank_images                overall accuracy of each control
            controls                    control -> overall, open, closed, intervals
            exact_match, token_f1       scores of the decoder's answers to the open questions
            generated                   these scores with intervals, and with images mixed up
            out_of_vocabulary_share     share of the answers that the classifier cannot give
            predictions                 a row per question, with the answers of both heads
    Raises:
        ValueError: test has fewer than two images, or train is empty.
    """
    mixed_up = shuffled(test)
    questions = [example.question for example in test]
    black = np.zeros((images.image_size, images.image_size, 3), np.uint8)

    # The decoder is asked the open questions alone, as in training.
    is_open = [example.answer_type == OPEN for example in test]
    none = [False] * len(test)
    answers = answerer.ask(questions, (images[e.image] for e in test), is_open)
    to_others = answerer.ask(questions, (images[path] for path in mixed_up), is_open)
    to_black = answerer.ask(questions, itertools.repeat(black, len(test)), none)
    classified = score(test, answers.classified)
    controls = {
        "question_only": score(test, question_only(train, test)),
        "majority": score(test, majority(train, test)),
        "shuffled_images": score(test, to_others.classified),
        "blank_images": score(test, to_black.classified),
    }
    by_content_type = classified["by_content_type"]
    for name, scores in by_content_type.items():
        scores["question_only"] = controls["question_only"]["by_content_type"][name]["accuracy"]
    generated = _score_decoder(
        list(itertools.compress(test, is_open)), _given(answers.written), _given(to_others.written)
    )
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
        "predictions": predictions(test, answers),
    }


def _score_decoder(
    test: Sequence[VQAExample], answers: Sequence[str], mixed_up: Sequence[str]
) -> dict[str, Any]:
    """Score generated answers, and those to other images, by exact match and token F1."""
    if not test:
        return {"questions": 0, "exact_match": None, "token_f1": None}
    scores, control = score(test, answers), score(test, mixed_up)
    return {
        "questions": len(test),
        "exact_match": scores["overall"],
        "token_f1": scores["token_f1"],
        "intervals": {
            "exact_match": scores["intervals"]["overall"],
            "token_f1": scores["intervals"]["token_f1"],
        },
        "shuffled_images": {"exact_match": control["overall"], "token_f1": control["token_f1"]},
    }


def _given(written: Sequence[str | None]) -> list[str]:
    """The answers to the questions that the decoder was asked."""
    return [answer for answer in written if answer is not None]


def evaluate_generation(
    answerer: Answerer,
    train: Sequence[VQAExample],
    test: Sequence[VQAExample],
    images: ImageCache,
) -> dict[str, Any]:
    """Score the decoder on a split whose answers only a decoder can give.

    Args: as `evaluate`.
    Returns:
        a dict with the keys that "generated" of `evaluate` has, and with "predictions".
        "classifier" has exact match and token F1 of the classifier, and "question_only" those of
        the best answer without the image.
    Raises:
        ValueError: test has fewer than two images, or train is empty.
    """
    questions = [example.question for example in test]
    everything = [True] * len(test)
    answers = answerer.ask(questions, (images[e.image] for e in test), everything)
    mixed_up = answerer.ask(questions, (images[path] for path in shuffled(test)), everything)
    scores = _score_decoder(test, _given(answers.written), _given(mixed_up.written))
    for name, said in (
        ("classifier", answers.classified),
        ("question_only", question_only(train, test)),
    ):
        control = score(test, said)
        scores[name] = {"exact_match": control["overall"], "token_f1": control["token_f1"]}
    scores["predictions"] = predictions(test, answers)
    return scores


def predictions(test: Sequence[VQAExample], answers: Answers) -> list[dict[str, Any]]:
    """Make a row per question; "generated" is None where the decoder was not asked."""
    return [
        {
            "qid": example.qid,
            "image": example.image_id,
            "question": example.question,
            "answer": example.answer,
            "answer_type": example.answer_type,
            "content_type": example.content_type,
            "classified": by_class,
            "probability": probability,
            "generated": in_words,
        }
        for example, by_class, probability, in_words in zip(test, *answers, strict=True)
    ]


def shuffled(examples: Sequence[VQAExample], seed: int = 0) -> list[Path]:
    """Give every question another image, and all questions about an image the same one.

    All images, in a random order, form one circle, and each takes the place of the next. So no
    image stays in its place.

    Args:
        examples: questions about at least two images.
        seed: seed of the order.
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


def print_scores(scores: dict[str, Any], title: str, console: Console) -> None:
    """Print what `evaluate` gave as tables, in percent.

    Args:
        scores: the result of `evaluate`.
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


def print_generation(generated: dict[str, Any], title: str, console: Console) -> None:
    """Print exact match and token F1 of the decoder and of its controls, in percent."""
    table = Table(title=f"{title}: {generated['questions']} questions")
    for name in ("", "exact match", "token F1"):
        table.add_column(name, justify="right" if name else "left")
    keys = ("exact_match", "token_f1")
    cells = (_percent(generated[key], generated["intervals"][key]) for key in keys)
    table.add_row("decoder", *cells, style="bold")
    for name, title in _GENERATION_CONTROLS.items():
        if name in generated:
            table.add_row(title, *(_percent(generated[name][key]) for key in keys))
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
) -> dict[str, Any]:
    """Score what ``cmimtl train`` left in a folder, print the scores and write them as JSON.

    Args:
        run: folder of the run.
        data, root: data set and its folder; the run's own where None.
        split: which split of the data set.
        json_path: where the scores are written.
        batch_size: number of questions at a time.
    Returns:
        the result of `evaluate`, or of `evaluate_generation` for the splits of the
        phantom set that ask for descriptions. The rows of "predictions" have an "attention" too,
        see `cmimtl.evaluation.attention.measures`.
    Raises:
        ValueError: run holds no finished model, or an argument is out of range.
        DataError: the data set cannot be used.
    """
    if json_path is not None:
        json_path = check_writable("evaluate", "json", json_path)
    asked = open_run(run, data=data, root=root, split=split, batch_size=batch_size)
    answerer, data, root, test, images = asked
    console, title = Console(), f"{run} on {data}, {split}"
    train = load_dataset(data, root, "train")
    if data == "phantom" and split in DESCRIBED:
        scores = evaluate_generation(answerer, train, test, images)
        print_generation(scores, title, console)
    else:
        scores = evaluate(answerer, answerer.vocabulary, train, test, images)
        print_scores(scores, title, console)
    paths = [example.image for example in test]
    scores["predictions"] = with_attention(
        scores["predictions"],
        answerer,
        (images[path] for path in paths),
        map(Masks(images.image_size).__getitem__, paths),
        data=data,
    )
    if json_path is not None:
        write_json(json_path, scores)
    return scores


class Asked(NamedTuple):
    """A trained model and the questions that it is asked."""

    answerer: QuestionAnswerer
    data: str
    root: str | os.PathLike[str]
    test: list[VQAExample]
    images: ImageCache


def open_run(
    run: str | os.PathLike[str],
    *,
    data: str | None,
    root: str | os.PathLike[str] | None,
    split: str,
    batch_size: int,
) -> Asked:
    """Load what ``cmimtl train`` left in a folder, and a split to ask it.

    Args, Raises: as `evaluate_run`.
    """
    arguments = read_run(run)
    if data is not None and data != arguments["data"] and root is None:
        raise ValueError("evaluate: root must be given where data is not the run's own, got none.")
    # A run of others may name any folder: a phantom set is drawn only where the user names it.
    read = load_dataset if root is None else read_split
    data, root = data or arguments["data"], root or arguments["root"]
    check_split(data, split)
    answerer = QuestionAnswerer.from_run(run, batch_size=batch_size)
    test = read(data, root, split)
    images = ImageCache([example.image for example in test], answerer.image_size)
    return Asked(answerer, data, root, test, images)
