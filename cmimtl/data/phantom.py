"""The embedded default data set: procedural phantoms, written and read in SLAKE's layout.

Each picture is a head, a chest or an abdomen as CT, MRI or X-ray would show it, in grey, with at
most one abnormality, which has a size, a brightness and a place. Sides are the patient's, as
radiologists name them: what is on the left of the picture is "right".

Layout::

    root/train.json, validate.json, test.json, compositional.json
    root/imgs/xmlab1/source.jpg
    root/phantom.json                   how it was drawn; written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cmimtl.data.example import DataError, ReaderReport, VQAExample
from cmimtl.data.slake import SLAKE_FILES, read_slake

PHANTOM_FILES: Mapping[str, Sequence[str]] = {
    **SLAKE_FILES,
    "compositional": ("compositional.json",),
}


def read_phantom(
    root: str | os.PathLike[str], split: str, *, report: ReaderReport
) -> list[VQAExample]:
    """Read one split of a phantom set that :func:`write_phantom` wrote, through the SLAKE reader.

    Args:
        root: folder of the set.
        split: "train", "validation", "test" or "compositional": questions whose answers occur in no
            other split as a whole, though each of their words does.
        report: filled as by :func:`cmimtl.data.slake.read_slake`.
    Raises:
        ValueError, DataError: as read_slake.
    """
    return read_slake(root, split, report=report, files=PHANTOM_FILES)


# Share of the images in each split. Compositional images hold combinations that no other has.
SHARES = {"train": 0.78, "validation": 0.05, "test": 0.12, "compositional": 0.05}

ARTICLES = {"CT": "a", "MRI": "an", "X-Ray": "an"}
MODALITIES = tuple(ARTICLES)
PARTS = ("Head", "Chest", "Abdomen")
SIZES, SHADES = ("small", "large"), ("bright", "dark")
LEVELS, SIDES = ("upper", "lower"), ("left", "right")

# Combinations of size, shade, level and side that train, validation and test never have: each value
# occurs twice among them, so that every word of their descriptions is learned from the others.
HELD_OUT = frozenset(
    {
        ("small", "bright", "upper", "left"),
        ("small", "dark", "lower", "right"),
        ("large", "bright", "lower", "left"),
        ("large", "dark", "upper", "right"),
    }
)

# Grey values, 0 to 1: surroundings, skin or bone around the body, soft tissue, air-filled parts.
TISSUES = {
    "CT": (0.0, 0.95, 0.45, 0.15),
    "MRI": (0.0, 0.25, 0.65, 0.4),
    "X-Ray": (0.2, 0.55, 0.4, 0.3),
}
RADII = {"small": 0.055, "large": 0.12}  # of the side


@dataclass(frozen=True)
class _Phantom:
    """What one picture shows. finding: (size, shade, level, side) or None."""

    modality: str
    part: str
    finding: tuple[str, str, str, str] | None


def write_phantom(
    root: str | os.PathLike[str], n_images: int = 2400, seed: int = 0, image_size: int = 96
) -> Path:
    """Draw a set and write it to disk in SLAKE's layout.

    The answers to every question string are balanced within each split, so that a question alone
    tells nothing beyond the number of its answers. The pictures are split, not the questions.

    Args:
        root: folder to be made. One that holds a set drawn with the same arguments is kept as it
            is.
        n_images: pictures in all splits together, at least 200.
        seed: the same seed draws the same set.
        image_size: side of the square pictures in pixels, at least 32.
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
    drawn = {"n_images": n_images, "seed": seed, "image_size": image_size, "version": 1}
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
        _write(temporary, n_images, seed, image_size)
        (temporary / "phantom.json").write_text(json.dumps(drawn) + "\n")
        if root.exists():
            root.rmdir()
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _drawn(root: Path) -> dict | None:
    """The arguments that a set was drawn with; None where root holds no whole set."""
    try:
        return json.loads((root / "phantom.json").read_text())
    except (OSError, ValueError):
        return None


def _write(root: Path, n_images: int, seed: int, image_size: int) -> None:
    rng = np.random.default_rng([seed, n_images, image_size])
    grid = _Grid(image_size)
    number, qid = 0, 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for split, share in SHARES.items():
            phantoms = [
                _draw_phantom(rng, held_out=split == "compositional")
                for _ in range(round(share * n_images))
            ]
            first = number + 1
            for phantom in phantoms:
                number += 1
                picture = _draw(phantom, grid, rng)
                pool.submit(_save, picture, root / "imgs" / f"xmlab{number}" / "source.jpg")
            rows = []
            for offset, question in _questions(phantoms, rng, described=split == "compositional"):
                rows.append(_row(first + offset, phantoms[offset], question, qid))
                qid += 1
            path = root / PHANTOM_FILES[split][0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows) + "\n")


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.fromarray(picture).save(path, quality=92)


def _draw_phantom(rng: np.random.Generator, *, held_out: bool) -> _Phantom:
    modality, part = str(rng.choice(MODALITIES)), str(rng.choice(PARTS))
    if not held_out and rng.random() < 0.25:
        return _Phantom(modality, part, None)
    while True:
        values = (SIZES, SHADES, LEVELS, SIDES)
        finding = tuple(str(rng.choice(choices)) for choices in values)
        if (finding in HELD_OUT) == held_out:
            return _Phantom(modality, part, finding)


# Questions


@dataclass(frozen=True)
class _Question:
    text: str
    answer: str
    answer_type: str
    content_type: str


def _asked(p: _Phantom, rng: np.random.Generator) -> list[_Question]:
    """The questions that a picture could be asked, one phrasing of each."""

    def pick(*phrasings: str) -> str:
        return phrasings[rng.integers(len(phrasings))]

    def yes(value: bool) -> str:
        return "Yes" if value else "No"

    part, modality = str(rng.choice(PARTS)), str(rng.choice(MODALITIES))
    questions = [
        _Question(
            pick("What modality is used to take this image?", "Which imaging modality is this?"),
            p.modality, "OPEN", "Modality",
        ),
        _Question(
            pick("What part of the body does this image show?", "Which body part is shown?"),
            p.part, "OPEN", "Position",
        ),
        _Question(
            f"Is this {ARTICLES[modality]} {modality} image?",
            yes(p.modality == modality), "CLOSED", "Modality",
        ),
        _Question(
            f"Does the image show the {part.lower()}?", yes(p.part == part), "CLOSED", "Position"
        ),
        _Question(
            pick("Is there an abnormality in the image?", "Does the image look abnormal?"),
            yes(p.finding is not None), "CLOSED", "Abnormality",
        ),
    ]  # fmt: skip
    if p.finding is None:
        return questions
    size, shade, level, side = p.finding
    asked_side = str(rng.choice(SIDES))
    return [
        *questions,
        _Question(
            f"Is there a lesion on the {asked_side} side?",
            yes(side == asked_side), "CLOSED", "Abnormality",
        ),
        _Question("Is the lesion large or small?", size, "CLOSED", "Size"),
        _Question(
            pick("On which side is the lesion?", "Where is the lesion, left or right?"),
            side, "CLOSED", "Position",
        ),
        _Question(
            "Is the lesion in the upper or the lower part of the image?",
            level, "CLOSED", "Position",
        ),
        _Question("Does the lesion look bright or dark?", shade, "CLOSED", "Abnormality"),
        *[
            _Question(text, f"{size} {shade} lesion in the {level} {side}", "OPEN", "Abnormality")
            for text in ("Describe the abnormality.", "What is abnormal in this image?")
        ],
    ]  # fmt: skip


def _questions(
    phantoms: Sequence[_Phantom], rng: np.random.Generator, *, described: bool
) -> list[tuple[int, _Question]]:
    """(index of the phantom, question) in the order of the pictures, answers balanced per string.

    described: only the descriptions of findings.
    """
    by_text: dict[str, dict[str, list[tuple[int, _Question]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for index, phantom in enumerate(phantoms):
        for question in _asked(phantom, rng):
            if not described or " lesion in the " in question.answer:
                by_text[question.text][question.answer].append((index, question))
    kept = []
    for by_answer in by_text.values():
        fewest = min(map(len, by_answer.values()))
        for pairs in by_answer.values():
            kept += [pairs[i] for i in rng.permutation(len(pairs))[:fewest]]
    return sorted(kept, key=lambda pair: (pair[0], pair[1].text))


def _row(number: int, phantom: _Phantom, question: _Question, qid: int) -> dict[str, object]:
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


# Pictures


class _Grid:
    """Coordinates of the pixels' middles, 0 to 1, and shapes on them."""

    def __init__(self, size: int) -> None:
        middles = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.size = size
        self.y, self.x = middles[:, None], middles[None, :]

    def ellipse(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """Share of each pixel inside an ellipse with these half-axes, (size, size)."""
        distance = np.hypot((self.x - x) / width, (self.y - y) / height)
        edge = (1 - distance) * min(width, height) * self.size
        return np.clip(edge + 0.5, 0, 1)


def _draw(p: _Phantom, grid: _Grid, rng: np.random.Generator) -> np.ndarray:
    """(size, size) uint8."""
    around, rim, soft, air = TISSUES[p.modality]

    def near(value: float, spread: float) -> float:
        return float(value + rng.uniform(-spread, spread))

    picture = np.full((grid.size, grid.size), around, np.float32)

    def paint(shape: np.ndarray, grey: float) -> None:
        picture[:] += shape * (grey - picture)

    x, y = near(0.5, 0.02), near(0.5, 0.02)
    width, height = {"Head": (0.36, 0.44), "Chest": (0.46, 0.38), "Abdomen": (0.46, 0.34)}[p.part]
    width, height = near(width, 0.02), near(height, 0.02)
    paint(grid.ellipse(x, y, width, height), rim)
    paint(grid.ellipse(x, y, width - 0.04, height - 0.04), soft)
    if p.part == "Head":
        for side in (-1, 1):  # ventricles
            paint(grid.ellipse(x + side * 0.05, y, 0.03, 0.1), air)
    elif p.part == "Chest":
        for side in (-1, 1):  # lungs
            paint(grid.ellipse(x + side * 0.21, y, 0.14, height - 0.1), air)
        paint(grid.ellipse(x, y + height - 0.08, 0.05, 0.05), rim)  # spine
    else:
        paint(grid.ellipse(x - 0.15, y - 0.05, 0.24, 0.18), (soft + rim) / 2)  # liver
        paint(grid.ellipse(x, y + height - 0.1, 0.06, 0.06), rim)
    if p.finding is not None:
        size, shade, level, side = p.finding
        radius = near(RADII[size], 0.01)
        # The patient's left is on the right of the picture.
        at_x = near(0.68 if side == "left" else 0.32, 0.03)
        at_y = near(0.38 if level == "upper" else 0.62, 0.02)
        inside, ring = (1.0, 0.0) if shade == "bright" else (0.0, 1.0)
        paint(grid.ellipse(at_x, at_y, radius + 0.02, radius + 0.02), ring)
        paint(grid.ellipse(at_x, at_y, radius, radius), inside)
    picture *= near(1.0, 0.08)
    picture += rng.normal(0, 0.02, picture.shape).astype(np.float32)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
