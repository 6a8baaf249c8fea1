"""The embedded default data set: procedural phantoms, written and read in SLAKE's layout.

Layout::

    root/train.json, validate.json, test.json, compositional.json
    root/imgs/xmlab1/source.jpg
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmimtl.data.example import ReaderReport, VQAExample
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


def write_phantom(
    root: str | os.PathLike[str], n_images: int = 2000, seed: int = 0, image_size: int = 96
) -> Path:
    raise NotImplementedError
