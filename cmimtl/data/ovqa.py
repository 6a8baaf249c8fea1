"""Reader of OVQA, orthopaedic images (Huang et al. 2022, doi 10.1145/3477495.3531724).

Layout:

    root/trainset.json, valset.json, testset.json      or train.json, val.json, test.json
    root/img/ or root/images/                          named by a row's image_name
"""

from __future__ import annotations

import os
from pathlib import Path

from cmimtl.data.example import DataError, ReaderReport, VQAExample
from cmimtl.data.reading import ImageFolder, check_split, find_file, read_rows

_FILES = {
    "train": ("trainset.json", "train.json"),
    "validation": ("valset.json", "val.json", "validate.json"),
    "test": ("testset.json", "test.json"),
}

_OPERATION = "read_ovqa"


def read_ovqa(
    root: str | os.PathLike[str], split: str, *, report: ReaderReport
) -> list[VQAExample]:
    """Read one split.

    Args:
        root: folder with the layout above.
        split: "train", "validation" or "test".
        report: filled with counts of what was repaired and dropped.
    Returns:
        examples in the order of the file; ``image_id`` is the image's name without suffix,
        ``extra`` has ``organ``.
    Raises:
        ValueError: the split is unknown.
        DataError: a file or row cannot be used.
    """
    check_split(_OPERATION, split, tuple(_FILES))
    root = Path(root)
    images = ImageFolder(_OPERATION, root, ("img", "images"))
    path = find_file(_OPERATION, root, _FILES[split])
    examples = []
    for row in read_rows(_OPERATION, path, report):
        report.rows += 1
        image = images.path(row, "image_name")
        example = row.example(
            image=image,
            image_id=image.relative_to(images.folder).with_suffix("").as_posix(),
            question=row.required("question"),
            content_type=row.required("question_type"),
            split=split,
            extra={"organ": row.optional("image_organ")},
        )
        if example is not None:
            examples.append(example)
    if not examples:
        raise DataError(f"{_OPERATION}: {path} must hold a row with an answer, got none.")
    report.examples += len(examples)
    return examples
