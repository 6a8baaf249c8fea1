"""Read Med-VQA data sets from disk.

    report = ReaderReport()
    train = load_dataset("slake", "data/slake", "train", report=report)
    vocabulary = AnswerVocabulary.from_examples(train)

Each data set has a reader in a module of its own, which `cmimtl/names.py` names, and all readers
give `VQAExample`. The default data set is the phantom set, which comes with the package:
`write_phantom` draws it to disk in SLAKE's layout, and the SLAKE reader reads it.
"""

from __future__ import annotations

import os
from pathlib import Path

from cmimtl import names
from cmimtl.data.answers import AnswerVocabulary, normalize_answer
from cmimtl.data.example import CLOSED, OPEN, DataError, ReaderReport, VQAExample
from cmimtl.data.phantom import DESCRIBED, write_phantom
from cmimtl.names import DATASETS

__all__ = [
    "CLOSED",
    "DATASETS",
    "DESCRIBED",
    "OPEN",
    "AnswerVocabulary",
    "DataError",
    "ReaderReport",
    "VQAExample",
    "check_split",
    "draw_missing",
    "load_dataset",
    "normalize_answer",
    "read_split",
    "write_phantom",
]


def check_split(name: str, split: str) -> None:
    """Make sure that a data set has a split, before anything is read.

    Raises:
        ValueError: unknown name or split.
    """
    if name not in DATASETS:
        known = ", ".join(repr(known) for known in DATASETS)
        raise ValueError(f"load_dataset: name must be one of {known}, got {name!r}.")
    if split not in names.splits_of(name):
        known = ", ".join(map(repr, names.splits_of(name)))
        raise ValueError(f"load_dataset: split must be one of {known}, got {split!r}.")


def load_dataset(
    name: str,
    root: str | os.PathLike[str],
    split: str,
    *,
    report: ReaderReport | None = None,
    **options: object,
) -> list[VQAExample]:
    """Read one split of a data set that lies on disk.

    Args:
        name: ``"phantom"``, ``"slake"``, ``"vqa-rad"`` or ``"ovqa"``.
        root: folder of the data set, as its authors pack it (each reader's docstring shows the
            layout).
        split: ``"train"``, ``"validation"`` or ``"test"``; ``"phantom"`` has ``"descriptions"`` and
            ``"compositional"`` too.
        report: an empty `ReaderReport`, which is filled with what was repaired and dropped.
        **options: options of the data set's reader. ``language`` of slake: ``"en"`` by default,
            None for all. ``validation_fraction`` of vqa-rad, which has no validation split of its
            own: the fraction of the training images that is held out, 0 by default. It must be the
            same in every call of a run.
    Returns:
        list of `VQAExample` in the order of the file.
    Raises:
        ValueError: the name or the split is unknown.
        TypeError: the reader does not know an option.
        DataError: a file or row cannot be used; the message names file, row and field.
    """
    check_split(name, split)
    report = ReaderReport() if report is None else report
    return names.load(DATASETS[name])(root, split, report=report, **options)


def draw_missing(name: str, root: str | os.PathLike[str]) -> None:
    """Draw a phantom set where root holds none; the other data sets are on disk or are not."""
    if name == "phantom" and not (Path(root) / "phantom.json").is_file():
        write_phantom(root)


def read_split(
    name: str, root: str | os.PathLike[str], split: str, report: ReaderReport | None = None
) -> list[VQAExample]:
    """`load_dataset`, after `draw_missing`."""
    draw_missing(name, root)
    return load_dataset(name, root, split, report=report)
