"""The same questions under another condition: what changes an answer is what the model goes by.

A probe changes the pictures or the words and nothing else. `ask_under` gives the answers in rows
that can be laid beside those of `cmimtl.evaluation.evaluate`, question by question.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from rich.console import Console

from cmimtl.data import OPEN, VQAExample
from cmimtl.data.batches import ImageCache
from cmimtl.evaluation.answer import Answers
from cmimtl.evaluation.attention import Masks, with_attention
from cmimtl.evaluation.evaluate import Answerer, open_run, predictions, shuffled
from cmimtl.evaluation.metrics import exact_match
from cmimtl.files import check_writable, write_json
from cmimtl.names import ARTEFACTS, STRENGTHS


@dataclass(frozen=True)
class Probe:
    """A condition.

    Attributes:
        says: what is changed, in a few words.
        question: from a question as it is to how it is asked.
        pictures: from the questions and their pictures to what is shown, one for each question.
        masks: the same of the pictures' masks; None where what is shown has none.
    """

    says: str
    question: Callable[[str], str] = str
    pictures: Callable[[Sequence[VQAExample], ImageCache], Iterable[np.ndarray]] = (
        lambda examples, images: (images[e.image] for e in examples)
    )
    masks: Callable[[Sequence[VQAExample], Masks], Iterable[np.ndarray | None]] = (
        lambda examples, masks: (masks[e.image] for e in examples)
    )


def _blank(examples: Sequence[VQAExample], images: ImageCache) -> Iterable[np.ndarray]:
    black = np.zeros((images.image_size, images.image_size, 3), np.uint8)
    return itertools.repeat(black, len(examples))


def _mixed_up(examples: Sequence[VQAExample], images: Any) -> Iterable[Any]:
    return (images[path] for path in shuffled(examples))


def _in_haste(question: str) -> str:
    """As it is typed in haste: no capital at the beginning, no mark at the end."""
    return question[:1].lower() + question[1:].rstrip("?.! ")


def _at_length(question: str) -> str:
    return f"Please look at the image and answer: {question}"


# Artefacts. Each takes a picture (size, size, 3) uint8, a strength from 1 to 3 and a generator.


def _blurred(picture: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    radius = 0.008 * 2 ** (strength - 1) * len(picture)
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _noisy(picture: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 12 * 2 ** (strength - 1), picture.shape[:2])
    return _as_bytes(picture + noise[..., None])


def _low_dose(picture: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Few quanta: the noise grows with the root of the grey value."""
    quanta = 64 / 4 ** (strength - 1)
    counts = rng.poisson(picture.mean(-1) / 255 * quanta)
    return _as_bytes(np.repeat((counts / quanta * 255)[..., None], 3, -1))


def _moved(picture: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of pictures on the way of a patient who moves sideways."""
    reach = max(strength, round(0.015 * 2 ** (strength - 1) * len(picture)))
    places = range(-reach, reach + 1)
    return _as_bytes(np.mean([np.roll(picture, x, axis=1) for x in places], axis=0))


def _streaked(picture: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Rays from a piece of metal, which is bright, as in CT."""
    size = len(picture)
    at = rng.uniform(0.3, 0.7, 2) * size
    y, x = np.mgrid[:size, :size] + 0.5
    angle, distance = np.arctan2(y - at[0], x - at[1]), np.hypot(y - at[0], x - at[1]) / size
    rays = np.cos(angle * 14 + rng.uniform(0, 2 * np.pi)) * 35 * strength / (1 + 4 * distance)
    return _as_bytes(np.where((distance < 0.02)[..., None], 255, picture + rays[..., None]))


def _cropped(
    picture: np.ndarray,
    strength: int,
    rng: np.random.Generator,
    filter: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """A part of the picture, as large as the picture was."""
    size, part = len(picture), round(len(picture) * (1 - 0.12 * strength))
    top, left = rng.integers(0, size - part + 1, 2)
    some = Image.fromarray(picture[top : top + part, left : left + part])
    return np.asarray(some.resize((size, size), filter))


def _as_bytes(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


_ARTEFACTS = {
    "blur": _blurred,
    "noise": _noisy,
    "low-dose": _low_dose,
    "motion": _moved,
    "streaks": _streaked,
    "crop": _cropped,
}


def _with_artefact(
    kind: str, strength: int, examples: Sequence[VQAExample], images: ImageCache
) -> Iterable[np.ndarray]:
    """The pictures with an artefact, which is the same whenever a picture is shown."""

    @functools.cache  # one array is one picture, which the model encodes once
    def picture(path) -> np.ndarray:
        return _ARTEFACTS[kind](images[path], strength, _generator(kind, path))

    return (picture(example.image) for example in examples)


def _generator(kind: str, path: Path) -> np.random.Generator:
    seed = hashlib.sha256(f"{kind} {path.name} {path.parent.name}".encode()).digest()[:8]
    return np.random.default_rng(int.from_bytes(seed, "little"))


def _cropped_masks(
    strength: int, examples: Sequence[VQAExample], masks: Masks
) -> Iterable[np.ndarray | None]:
    """The masks of what `_cropped` leaves of the pictures; no other artefact moves a place."""
    for path in (example.image for example in examples):
        mask = masks[path]
        nearest = Image.Resampling.NEAREST
        yield None if mask is None else _cropped(mask, strength, _generator("crop", path), nearest)


def _artefact(kind: str, strength: int) -> Probe:
    probe = Probe(
        f"{kind}, strength {strength}", pictures=functools.partial(_with_artefact, kind, strength)
    )
    if kind == "crop":
        return replace(probe, masks=functools.partial(_cropped_masks, strength))
    return probe


PROBES = {
    "blank": Probe(
        "black pictures", pictures=_blank, masks=lambda examples, _: [None] * len(examples)
    ),
    "shuffled": Probe("pictures of other patients", pictures=_mixed_up, masks=_mixed_up),
    "in-haste": Probe("questions without capital and mark", question=_in_haste),
    "at-length": Probe("questions with a polite beginning", question=_at_length),
    **{
        f"{kind}-{strength}": _artefact(kind, strength)
        for kind in ARTEFACTS
        for strength in STRENGTHS
    },
}


def ask_under(
    name: str, answerer: Answerer, test: Sequence[VQAExample], images: ImageCache
) -> list[dict]:
    """Ask the questions of a split under a probe.

    Args:
        name: of PROBES.
        answerer, test, images: as in `cmimtl.evaluation.evaluate.evaluate`.
    Returns:
        a row per question, as in the "predictions" of `evaluate`; "question" is how it was asked.
    Raises:
        ValueError: all questions are about one image, of a probe that exchanges images.
    """
    probe = PROBES[name]
    questions = [probe.question(example.question) for example in test]
    is_open = [example.answer_type == OPEN for example in test]
    answers: Answers = answerer.ask(questions, probe.pictures(test, images), is_open)
    rows = predictions(test, answers)
    return [row | {"question": question} for row, question in zip(rows, questions, strict=True)]


def probe_run(
    run: str | os.PathLike[str],
    name: str,
    *,
    data: str | None = None,
    root: str | os.PathLike[str] | None = None,
    split: str = "test",
    json_path: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Ask what ``cmimtl train`` left in a folder under a probe, and write the answers as JSON.

    Args:
        name: one of `cmimtl.names.PROBES`.
        run, data, root, split, json_path, batch_size: as in
            `cmimtl.evaluation.evaluate.evaluate_run`.
    Returns:
        a dict with "probe" and "predictions", see `ask_under`; these have an "attention" too, see
        `cmimtl.evaluation.attention.measures`.
    Raises:
        ValueError, DataError: as `evaluate_run` and `ask_under`.
    """
    if json_path is not None:
        json_path = check_writable("evaluate", "json", json_path)
    asked = open_run(run, data=data, root=root, split=split, batch_size=batch_size)
    probe = PROBES[name]
    rows = with_attention(
        ask_under(name, asked.answerer, asked.test, asked.images),
        asked.answerer,
        probe.pictures(asked.test, asked.images),
        probe.masks(asked.test, Masks(asked.images.image_size)),
        data=asked.data,
    )
    right = np.mean([exact_match(row["classified"], row["answer"]) for row in rows])
    Console().print(
        f"{run} on {asked.data}, {split}, {probe.says}: the classifier is right in"
        f" {100 * right:.1f} % of {len(rows)} questions",
        highlight=False,
    )
    scores = {"probe": name, "predictions": rows}
    if json_path is not None:
        write_json(json_path, scores)
    return scores
