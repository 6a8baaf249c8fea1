"""Reader of SLAKE (Liu et al. 2021, arXiv 2102.09542), and of any data set in its layout.

Layout:

    root/train.json, validate.json, test.json      lists of rows
    root/imgs/xmlab1/source.jpg                    named by a row's img_name
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmimtl.data.example import DataError, ReaderReport, VQAExample
from cmimtl.data.reading import ImageFolder, check_split, find_file, read_rows

# Split -> the names that its file may have: the authors' own first, then those of mirrors.
SLAKE_FILES: Mapping[str, Sequence[str]] = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),
    "test": ("test.json",),
}

_OPERATION = "read_slake"


def read_slake(
    root: str | os.PathLike[str],
    split: str,
    *,
    language: str | None = "en",
    report: ReaderReport,
    files: Mapping[str, Sequence[str]] = SLAKE_FILES,
) -> list[VQAExample]:
    """Read one split.

    Rows of other languages are left out first of all. Of the 96 test images of the English part, 72
    have questions among the Chinese training rows, so that a mixture would leak them.

    Args:
        root: folder with the layout above.
        split: a key of ``files``.
        language: value of ``q_lang`` to keep, ``"en"`` or ``"zh"``; None keeps every row.
        report: filled with counts of what was repaired and dropped.
        files: split -> file names, of which the first that exists is read.
    Returns:
        the examples, in the order of the file. ``image_id`` is the image's folder ("xmlab1").
        ``extra`` has ``organ`` (SLAKE's location), ``modality``, ``language`` and ``base_type``
        where the row has them.
    Raises:
        ValueError: the split is unknown.
        DataError: a file or row cannot be used.
    """
    check_split(_OPERATION, split, tuple(files))
    root = Path(root)
    images = ImageFolder(_OPERATION, root, ("imgs",))
    path = find_file(_OPERATION, root, files[split])
    examples = []
    languages = set()
    for row in read_rows(_OPERATION, path, report):
        report.rows += 1
        row_language = row.required("q_lang")
        languages.add(row_language)
        if language is not None and row_language != language:
            row.drop("other language", "q_lang")
            continue
        image = images.path(row, "img_name")
        example = row.example(
            image=image,
            image_id=image.relative_to(images.folder).with_suffix("").parts[0],
            question=row.required("question"),
            content_type=row.required("content_type"),
            split=split,
            extra={
                "organ": row.optional("location"),
                "modality": row.optional("modality"),
                "language": row_language,
                "base_type": row.optional("base_type"),
            },
        )
        if example is not None:
            examples.append(example)
    if not examples:
        raise DataError(
            f"{_OPERATION}: {path} must hold a usable row of language {language!r}, "
            f"got rows of {', '.join(sorted(languages))}."
        )
    report.examples += len(examples)
    return examples
