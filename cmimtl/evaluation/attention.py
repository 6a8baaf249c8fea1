"""Where a model looks, in numbers: attention over a picture against the picture's mask.

A mask lies beside a picture as `mask.png`, as in SLAKE and in the phantom set; 0 is what is around
the body. Other data sets have none. A picture without one has the entropy alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmimtl.data import DataError
from cmimtl.data.images import load_image
from cmimtl.data.phantom_pictures import LESION
from cmimtl.evaluation.answer import QuestionAnswerer

MASK = "mask.png"


class Masks:
    """The masks of pictures, by the path of the picture, scaled to the model's size."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self._read = functools.cache(self._open)

    def __getitem__(self, image: Path) -> np.ndarray | None:
        """The mask of a picture, (image_size, image_size) uint8; None where it has none.

        Raises:
            DataError: the mask is no image.
        """
        return self._read(image.with_name(MASK))

    def _open(self, path: Path) -> np.ndarray | None:
        if not path.is_file():
            return None
        size = (self.image_size, self.image_size)
        try:
            # One pixel stands for a square of them: a mean of labels would be another label.
            mask = load_image(path).resize(size, Image.Resampling.NEAREST)
        except (OSError, ValueError) as error:
            raise DataError(f"Masks: {path} must be a readable image, got {error}") from error
        return np.asarray(mask).max(-1)  # grey, or the colours of a palette in which 0 is black


def entropy(attention: np.ndarray) -> float:
    """How far attention is spread, from 0 (on one patch) to 1 (even).

    It is -sum a log a, over the logarithm of the number of patches.
    """
    a = np.asarray(attention, float).ravel()
    terms = a * np.log(a, out=np.zeros_like(a), where=a > 0)
    return float(-terms.sum() / np.log(a.size))


def mass(attention: np.ndarray, inside: np.ndarray) -> float:
    """The share of attention that lies in a part of the picture.

    The attention to a patch is even over its pixels.

    Args:
        attention: (rows, columns), sums to 1.
        inside: (height, width) bool, whole patches of it.
    """
    return float((attention * _covered(attention, inside)).sum())


def points_at(attention: np.ndarray, inside: np.ndarray) -> bool:
    """The pointing game: whether the patch with the most attention touches a part of the picture.

    Source: Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", whose tolerance
    about the part is here the patch itself.
    """
    return bool(_covered(attention, inside).flat[np.argmax(attention)] > 0)


def _covered(attention: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The share of each patch that lies inside, (rows, columns)."""
    (rows, columns), (height, width) = attention.shape, inside.shape
    return inside.reshape(rows, height // rows, columns, width // columns).mean((1, 3))


def measures(attention: np.ndarray, mask: np.ndarray | None, *, lesion: int | None) -> dict:
    """What a row of the predictions says of the attention, ready for JSON.

    Args:
        attention: (rows, columns).
        mask: of the picture, or None.
        lesion: the mask's label of a lesion, or None where it has none such.
    Returns:
        entropy; body, body_area: the attention's mass in the body, and the body's share of the
        picture, which even attention would have; lesion, lesion_area: of the lesion; pointed: the
        pointing game, and pointed_by_chance: the share of the patches that win it. What the mask
        does not tell is None.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("body", "body_area", "lesion", "lesion_area", "pointed", "pointed_by_chance")
    )
    found["entropy"] = entropy(attention)
    if mask is None:
        return found
    found["body"], found["body_area"] = mass(attention, mask > 0), float((mask > 0).mean())
    if lesion is not None and (inside := mask == lesion).any():
        found["lesion"], found["lesion_area"] = mass(attention, inside), float(inside.mean())
        found["pointed"] = float(points_at(attention, inside))
        found["pointed_by_chance"] = float((_covered(attention, inside) > 0).mean())
    return found


def with_attention(
    rows: Sequence[dict[str, Any]],
    answerer: QuestionAnswerer,
    pictures: Iterable[np.ndarray],
    masks: Iterable[np.ndarray | None],
    *,
    data: str,
) -> list[dict[str, Any]]:
    """Rows of predictions with `measures` as their "attention".

    Args:
        rows: with the questions as they were asked.
        answerer: who was asked.
        pictures, masks: one for each row.
        data: name of the data set; of the phantom set it is known which label is a lesion.
    """
    lesion = LESION if data == "phantom" else None
    grids = answerer.attention([row["question"] for row in rows], pictures)
    return [
        row | {"attention": measures(grid, mask, lesion=lesion)}
        for row, grid, mask in zip(rows, grids, masks, strict=True)
    ]
