"""The default data set, which is drawn by this package, written and read in SLAKE's layout.

Each picture is a head, a chest or an abdomen as CT, MRI or X-ray would show it, in grey, with at
most one abnormality, which has a size, a brightness and a place. Sides are the patient's, as
radiologists name them: what is on the left of the picture is "right".

Layout:

    root/train.json, validate.json, test.json    as in SLAKE
    root/descriptions.json                       descriptions of the test pictures
    root/compositional.json                      descriptions of findings that no other split has
    root/imgs/xmlab1/source.jpg, mask.png        as in SLAKE; what a mask's pixels mean is in
                                                 `cmimtl.data.phantom_pictures`
    root/phantom.json                            how the set was drawn; written last

Options draw sets for single purposes: lesions of given sizes and contrasts, or long reports.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmimtl.data.example import DataError, ReaderReport, VQAExample
from cmimtl.data.phantom_pictures import Grid, draw_picture
from cmimtl.data.phantom_questions import (
    Phantom,
    Question,
    about_lesion,
    ask,
    draw_phantom,
    measured_phantom,
)
from cmimtl.data.phantom_reports import LONGEST, SHORTEST, reports
from cmimtl.data.slake import SLAKE_FILES, read_slake
from cmimtl.files import read_json
from cmimtl.names import MORE_SPLITS

# These splits ask only for descriptions, which only a decoder can give.
DESCRIBED = MORE_SPLITS["phantom"]

PHANTOM_FILES: Mapping[str, Sequence[str]] = {
    **SLAKE_FILES,
    **{split: (f"{split}.json",) for split in DESCRIBED},
}


def read_phantom(
    root: str | os.PathLike[str], split: str, *, report: ReaderReport
) -> list[VQAExample]:
    """Read one split of a phantom set that `write_phantom` wrote, through the SLAKE reader.

    Args:
        root: folder of the set.
        split: "train", "validation", "test", "descriptions" or "compositional". The last two ask
            for descriptions alone; those of "compositional" occur in no other split as a whole,
            though each of their words does.
        report: filled as by `cmimtl.data.slake.read_slake`.
    Raises:
        ValueError, DataError: as read_slake.
    """
    return read_slake(root, split, report=report, files=PHANTOM_FILES)


# The share of the pictures in each split. The pictures of the compositional split show combinations
# of attributes that no other split has.
SHARES = {"train": 0.78, "validation": 0.05, "test": 0.12, "compositional": 0.05}

VERSION = 3  # of what is written; a set of another one is not taken for one of these

# So large a share of the training questions that ask for less than a description is kept. They are
# far easier to learn, and what a description teaches of a picture serves them too.
ORDINARY_IN_TRAINING = 0.4


def write_phantom(
    root: str | os.PathLike[str],
    n_images: int = 2400,
    seed: int = 0,
    image_size: int = 96,
    *,
    n_train: int | None = None,
    diameters: Sequence[float] = (),
    contrasts: Sequence[float] = (),
    report_tokens: Sequence[int] = (),
    progress: Callable[[], None] | None = None,
) -> Path:
    """Draw a set and write it to disk in SLAKE's layout.

    The answers to every kind of question are balanced within each split, so that a question alone
    tells nothing beyond the number of its answers. The pictures are split, not the questions.

    Args:
        root: folder to be made. One that holds a set drawn with the same arguments is kept as it
            is.
        n_images: pictures in all splits together, at least 200.
        seed: the same seed draws the same set.
        image_size: side of the square pictures in pixels, at least 32.
        n_train: pictures in the training split, in place of its share of n_images. The other splits
            are the same for every n_train.
        diameters, contrasts: draw lesions of each diameter (a share of the picture's side) with
            each contrast (see `cmimtl.data.phantom_questions.Phantom`), equally many, and ask for
            them alone. The content type of a question names both.
        report_tokens: ask only long questions, of at most so many tokens each, which are reports;
            see `cmimtl.data.phantom_reports`. A training picture has one of each length, and every
            other picture one of each length and distance, which the content type names.
        progress: called after each picture that is drawn.
    Returns:
        root.
    Raises:
        ValueError: an argument is out of range.
        DataError: root holds something else.
    """
    for name, number, least in (
        ("n_images", n_images, 200),
        ("image_size", image_size, 32),
        ("n_train", n_images if n_train is None else n_train, 100),
    ):
        if number < least:
            raise ValueError(f"write_phantom: {name} must be at least {least}, got {number}.")
    if bool(diameters) != bool(contrasts) or (diameters and report_tokens):
        raise ValueError(
            "write_phantom: diameters and contrasts must be given together, and without"
            f" report_tokens, got {diameters}, {contrasts} and {report_tokens}."
        )
    # A lesion must cover a pixel, and lie in the picture.
    for name, values, low, high in (
        ("diameters", diameters, 2 / image_size, 0.6),
        ("contrasts", contrasts, 0.01, 1.0),
        ("report_tokens", report_tokens, SHORTEST, LONGEST),
    ):
        if wrong := [value for value in values if not low <= value <= high]:
            raise ValueError(
                f"write_phantom: {name} must lie in [{low:g}, {high:g}], got {wrong[0]:g}."
            )
    root = Path(root)
    drawn: dict[str, Any] = {"n_images": n_images, "seed": seed, "image_size": image_size}
    drawn |= {"n_train": n_train, "diameters": list(diameters), "contrasts": list(contrasts)}
    drawn |= {"report_tokens": list(report_tokens), "version": VERSION}
    if root.exists() and any(root.iterdir()):
        if _drawn(root) == drawn:
            return root
        raise DataError(
            f"write_phantom: root must be empty or hold a set drawn with {drawn}, got {root} with"
            f" {_drawn(root) or 'other files'}."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}.tmp{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _Writer(temporary, drawn, progress).write()
        (temporary / "phantom.json").write_text(json.dumps(drawn) + "\n")
        if root.exists():
            root.rmdir()
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _drawn(root: Path) -> dict | None:
    """The arguments that the set in root was drawn with; None where root holds no whole set."""
    try:
        return read_json("write_phantom", "it must tell how it was drawn", root / "phantom.json")
    except (OSError, ValueError):
        return None


class _Writer:
    """Draws a set into a folder, from what phantom.json will say of it."""

    def __init__(
        self, root: Path, drawn: Mapping[str, Any], progress: Callable[[], None] | None
    ) -> None:
        self.root, self.drawn, self.progress = root, drawn, progress
        self.cells = list(itertools.product(drawn["diameters"], drawn["contrasts"]))
        self.grid = Grid(drawn["image_size"])
        self.rows: dict[str, list[dict[str, object]]] = {split: [] for split in PHANTOM_FILES}
        self.pictures = 0
        self.saved: list[Future[None]] = []

    def write(self) -> None:
        key = [self.drawn[name] for name in ("seed", "n_images", "image_size")]
        rng, n_train = np.random.default_rng(key), self.drawn["n_train"]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for images, share in SHARES.items():
                if images == "train" and n_train is not None:
                    self._write(images, n_train, np.random.default_rng([*key, n_train]), pool)
                else:
                    self._write(images, round(share * self.drawn["n_images"]), rng, pool)
            for future in self.saved:
                future.result()  # raises the error of the saving, if there was one
        for split, names in PHANTOM_FILES.items():
            (self.root / names[0]).write_text(json.dumps(self.rows[split]) + "\n")

    def _write(
        self, images: str, count: int, rng: np.random.Generator, pool: ThreadPoolExecutor
    ) -> None:
        """Draw the pictures of a split, and ask about them."""
        phantoms = [self._draw(number, images == "compositional", rng) for number in range(count)]
        first = self.pictures + 1
        for phantom in phantoms:
            self.pictures += 1
            path = self.root / "imgs" / f"xmlab{self.pictures}"
            self.saved.append(pool.submit(_save, *draw_picture(phantom, self.grid, rng), path))
            if self.progress is not None:
                self.progress()
        for split, pairs in self._asked(images, phantoms, rng).items():
            for offset, question in pairs:
                qid = sum(map(len, self.rows.values()))
                row = _row(first + offset, phantoms[offset], question, qid)
                self.rows[split].append(row)

    def _draw(self, number: int, held_out: bool, rng: np.random.Generator) -> Phantom:
        if not self.cells:
            return draw_phantom(rng, held_out=held_out)
        return measured_phantom(rng, *self.cells[number % len(self.cells)], held_out=held_out)

    def _asked(
        self, images: str, phantoms: Sequence[Phantom], rng: np.random.Generator
    ) -> dict[str, list[tuple[int, Question]]]:
        """What is asked about the pictures of a split: split of the questions -> pairs."""
        if self.cells:
            return {images: ask(phantoms, rng, described=False, asked=about_lesion)}
        if lengths := self.drawn["report_tokens"]:
            asked = functools.partial(reports, lengths=lengths, every=images != "train")
            return {images: ask(phantoms, rng, described=False, asked=asked)}
        asked_of = {images: ask(phantoms, rng, described=images == "compositional")}
        if images == "train":
            # What was just asked is left, but its random numbers are drawn in version 2 too, whose
            # pictures these are.
            ordinary = ask(phantoms, rng, described=False, share=ORDINARY_IN_TRAINING)
            asked_of = {images: ordinary + ask(phantoms, rng, described=True)}
        elif images == "test":
            asked_of["descriptions"] = ask(phantoms, rng, described=True)
        return asked_of


def _save(picture: np.ndarray, mask: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    Image.fromarray(picture).save(folder / "source.jpg", quality=92)
    Image.fromarray(mask).save(folder / "mask.png")


def _row(number: int, phantom: Phantom, question: Question, qid: int) -> dict[str, object]:
    return {
        "img_id": number,
        "img_name": f"xmlab{number}/source.jpg",
        "question": question.text,
        "answer": question.answer,
        "q_lang": "en",
        "location": phantom.part,
        "modality": phantom.modality,
        "answer_type": question.answer_type,
        "base_type": "vqa",
        "content_type": question.content_type,
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    }
