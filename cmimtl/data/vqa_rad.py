"""Reader of VQA-RAD (Lau et al. 2018, doi 10.1038/sdata.2018.251) in both forms that are in use.

Layout, either of:

    root/trainset.json, testset.json     as most Med-VQA code reads it
    root/images/synpic1.jpg

    root/VQA_RAD Dataset Public.json     the authors' own, split by phrase_type
    root/VQA_RAD Image Folder/synpic1.jpg
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cmimtl.data.example import DataError, ReaderReport, VQAExample
from cmimtl.data.reading import ImageFolder, Row, check_split, find_file, read_rows
from cmimtl.names import SPLITS

_OPERATION = "read_vqa_rad"
_PUBLIC = "VQA_RAD Dataset Public.json"
_FILES = {"train": "trainset.json", "test": "testset.json"}
_PHRASE_TYPES = {
    "freeform": "train",
    "para": "train",
    "test_freeform": "test",
    "test_para": "test",
}
_QUESTION_TYPES = "ABN ATTRIB COLOR COUNT MODALITY ORGAN OTHER PLANE POS PRES SIZE".split()
# A question type that is at least so similar to a known one counts as its typo: PRSE and PRES have
# a similarity of 0.75.
_TYPO_SIMILARITY = 0.7
_SUFFIX = re.compile(r"\s+-\s*(?:yes/no|open)$", re.IGNORECASE)


def read_vqa_rad(
    root: str | os.PathLike[str],
    split: str,
    *,
    validation_fraction: float = 0.0,
    report: ReaderReport,
) -> list[VQAExample]:
    """Read one split.

    The official split has training and test rows alone, and every test image is a training image
    too. With ``validation_fraction`` > 0 that share of the training *images*, chosen by a hash of
    their names, is taken out of "train" and becomes "validation"; the choice depends on nothing
    else.

    Repaired: numbers as answers, blanks, case and blanks of answer_type, typos of question_type,
    the suffixes " -yes/no" and " -open" of questions. Dropped: rows of the training file that
    repeat an earlier one (same image, question and normalised answer). Test rows are never dropped
    for that, so that scores stay comparable with published ones; those that are also in the
    training file are noted.

    Args:
        root: folder in one of the two layouts above.
        split: "train", "test", or "validation" where validation_fraction > 0.
        validation_fraction: share of the training images to hold out, in [0, 1).
        report: filled with counts of what was repaired, dropped and noted.
    Returns:
        examples in the order of the file. ``image_id`` is the image's name without suffix;
        ``content_type`` the first of the question types, ``extra["content_types"]`` all of them;
        ``extra`` has ``organ`` and ``phrase_type`` too.
    Raises:
        ValueError: the split is unknown, or the fraction is out of range.
        DataError: a file or row cannot be used.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            f"{_OPERATION}: validation_fraction must lie in [0, 1), got {validation_fraction}."
        )
    check_split(_OPERATION, split, SPLITS)
    if split == "validation" and validation_fraction == 0:
        raise ValueError(
            f"{_OPERATION}: validation_fraction must be greater than 0 for the split "
            "'validation', got 0; VQA-RAD has none of its own, pass for example 0.1 here and for"
            " 'train'."
        )
    root = Path(root)
    images = ImageFolder(_OPERATION, root, ("images", "VQA_RAD Image Folder"))
    official = "test" if split == "test" else "train"
    examples = _read_official(root, official, images, report)
    if official == "test":
        _note_rows_in_training(root, images, examples, report)
    elif validation_fraction > 0:
        held_out = _held_out_images(examples, validation_fraction)
        examples = [e for e in examples if (e.image_id in held_out) == (split == "validation")]
    if not examples:
        raise DataError(f"{_OPERATION}: {root} must hold rows of the split {split!r}, got none.")
    report.examples += len(examples)
    return examples


def _read_official(
    root: Path, split: str, images: ImageFolder, report: ReaderReport
) -> list[VQAExample]:
    """Read the official split "train" or "test"; repeated training rows are dropped."""
    examples = []
    seen: set[tuple[str, str, str]] = set()
    for row in _rows_of(root, split, report):
        report.rows += 1
        example = _example(row, split, images)
        if example is None:
            continue
        key = _content(example)
        if split == "train" and key in seen:
            row.drop("repeats an earlier training row", "question")
            continue
        seen.add(key)
        examples.append(example)
    return examples


def _rows_of(root: Path, split: str, report: ReaderReport) -> Iterator[Row]:
    path = find_file(_OPERATION, root, (_FILES[split], _PUBLIC))
    for row in read_rows(_OPERATION, path, report):
        if path.name != _PUBLIC:
            yield row
            continue
        phrase_type = row.required("phrase_type").lower()
        if phrase_type not in _PHRASE_TYPES:
            known = ", ".join(_PHRASE_TYPES)
            raise row.error("phrase_type", f"be one of {known}", repr(phrase_type))
        if _PHRASE_TYPES[phrase_type] == split:
            yield row


def _example(row: Row, split: str, images: ImageFolder) -> VQAExample | None:
    image = images.path(row, "image_name")
    question = row.required("question")
    bare = _SUFFIX.sub("", question)
    if bare != question:
        row.repair("suffix of the question", "question")
    content_types = _content_types(row)
    return row.example(
        image=image,
        image_id=image.stem,
        question=bare,
        content_type=content_types[0],
        split=split,
        extra={
            "organ": row.optional("image_organ"),
            "phrase_type": row.optional("phrase_type"),
            "content_types": ", ".join(content_types),
        },
    )


def _content_types(row: Row) -> list[str]:
    """The types of a question, in the order written, with typos repaired."""
    written = row.required("question_type")
    types = []
    for word in (part.strip() for part in written.split(",")):
        upper = word.upper()
        if not upper:
            continue
        close = difflib.get_close_matches(upper, _QUESTION_TYPES, n=1, cutoff=_TYPO_SIMILARITY)
        if not close:
            row.note("unknown question_type", "question_type")
        elif close[0] != word:
            row.repair("typo in question_type", "question_type")
        types.append(close[0] if close else upper)
    if not types:
        raise row.error("question_type", "name a type", repr(written))
    if len(types) > 1:
        row.note("several question types", "question_type")
    return types


def _content(example: VQAExample) -> tuple[str, str, str]:
    """The content of a row; two rows with the same content are the same."""
    return example.image_id, example.question.lower(), example.answer_normalized


def _note_rows_in_training(
    root: Path, images: ImageFolder, examples: list[VQAExample], report: ReaderReport
) -> None:
    """Count the test rows, and the test images, that the training rows hold too."""
    if not any((root / name).is_file() for name in (_FILES["train"], _PUBLIC)):
        return
    training = _read_official(root, "train", images, ReaderReport())
    contents = {_content(example) for example in training}
    image_ids = {example.image_id for example in training}
    for example in examples:
        where = f"test row with qid {example.qid}"
        if _content(example) in contents:
            report.note("test row also in train", where)
        if example.image_id in image_ids:
            report.note("image of the test row also in train", where)


def _held_out_images(examples: list[VQAExample], fraction: float) -> set[str]:
    """Choose the images to hold out, at least one: the first by SHA-256 of their names.

    So the choice is the same on every machine.
    """
    image_ids = {example.image_id for example in examples}
    ordered = sorted(image_ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: max(1, math.floor(fraction * len(ordered)))])
