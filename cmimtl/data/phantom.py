"""The default data set, which is drawn by this package, written and read in SLAKE's layout.

Each picture is a head, a chest or an abdomen as CT, MRI or X-ray would show it, in grey, with at
most one abnormality, which has a size, a brightness and a place. Sides are the patient's, as
radiologists name them: what is on the left of the picture is "right".

Layout:

    root/train.json, validate.json, test.json    as in SLAKE
    root/descriptions.json                       descriptions of the test pictures
    root/compositional.json                      descriptions of findings that no other split has
    root/imgs/xmlab1/source.jpg                  as in SLAKE
    root/phantom.json                            how the set was drawn; written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cmimtl.data.example import DataError, ReaderReport, VQAExample
from cmimtl.data.phantom_pictures import Grid, draw_picture
from cmimtl.data.phantom_questions import Phantom, Question, ask, draw_phantom
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

# So large a share of the training questions that ask for less than a description is kept. They are
# far easier to learn, and what a description teaches of a picture serves them too.
ORDINARY_IN_TRAINING = 0.4


def write_phantom(
    root: str | os.PathLike[str],
    n_images: int = 2400,
    seed: int = 0,
    image_size: int = 96,
    *,
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
        progress: called after each picture that is drawn.
    Returns:
        root.
    Raises:
        ValueError: an argument is out of range.
        DataError: root holds something else.
    """
    if n_images < 200:
        raise ValueError(f"write_phantom: n_images must be at least 200, got {n_images}.")
    if image_size < 32:
        raise ValueError(f"write_phantom: image_size must be at least 32, got {image_size}.")
    root = Path(root)
    drawn = {"n_images": n_images, "seed": seed, "image_size": image_size, "version": 2}
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
        _write(temporary, n_images, seed, image_size, progress)
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


def _write(
    root: Path,
    n_images: int,
    seed: int,
    image_size: int,
    progress: Callable[[], None] | None,
) -> None:
    rng = np.random.default_rng([seed, n_images, image_size])
    grid = Grid(image_size)
    pictures = 0
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in PHANTOM_FILES}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        saved = []
        for images, share in SHARES.items():
            held_out = images == "compositional"
            phantoms = [
                draw_phantom(rng, held_out=held_out) for _ in range(round(share * n_images))
            ]
            first = pictures + 1
            for phantom in phantoms:
                pictures += 1
                path = root / "imgs" / f"xmlab{pictures}" / "source.jpg"
                saved.append(pool.submit(_save, draw_picture(phantom, grid, rng), path))
                if progress is not None:
                    progress()
            asked = {images: ask(phantoms, rng, described=held_out)}
            if images == "train":
                ordinary = ask(phantoms, rng, described=False, share=ORDINARY_IN_TRAINING)
                asked = {images: ordinary + ask(phantoms, rng, described=True)}
            elif images == "test":
                asked["descriptions"] = ask(phantoms, rng, described=True)
            for split, pairs in asked.items():
                for offset, question in pairs:
                    qid = sum(map(len, rows.values()))
                    rows[split].append(_row(first + offset, phantoms[offset], question, qid))
        for future in saved:
            future.result()  # raises the error of the saving, if there was one
    for split, names in PHANTOM_FILES.items():
        (root / names[0]).write_text(json.dumps(rows[split]) + "\n")


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.fromarray(picture).save(path, quality=92)


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
