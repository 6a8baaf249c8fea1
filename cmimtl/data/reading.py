"""What the readers share: reading a JSON list as rows, repairing fields, and finding images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cmimtl.data.answers import normalize_answer
from cmimtl.data.example import CLOSED, OPEN, DataError, ReaderReport, VQAExample

_ANSWER_TYPES = {"OPEN": OPEN, "CLOSED": CLOSED}


class Row:
    """One row of a JSON list, which knows its place, for messages, and repairs what is read."""

    def __init__(
        self, operation: str, path: Path, number: int, fields: object, report: ReaderReport
    ):
        self._operation = operation
        self._path = path
        self._number = number
        self._report = report
        if not isinstance(fields, dict):
            raise DataError(
                f"{operation}: {path}, row {number} must be an object with named fields, "
                f"got {type(fields).__name__}."
            )
        self._fields = fields

    def where(self, field: str) -> str:
        """The place of a field, as "file, row, field"."""
        return f"{self._path.name}, row {self._number}, '{field}'"

    def error(self, field: str, requirement: str, got: object) -> DataError:
        """The error that says what a field must be and what it is."""
        return DataError(
            f"{self._operation}: {self._path}, row {self._number}, '{field}' must {requirement}, "
            f"got {got}."
        )

    def text(self, field: str) -> str:
        """A field as text, with blanks trimmed and single; it may be empty.

        Repairs: numbers become text; tabs, line ends and runs of blanks become one blank.

        Raises:
            DataError: the field is missing or neither text nor a finite number.
        """
        if field not in self._fields:
            raise self.error(
                field, "be there", f"only {', '.join(sorted(self._fields)) or 'no field'}"
            )
        value = self._fields[field]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            value = str(value)
            if field == "answer":
                self._report.repair("number as answer", self.where(field))
        if not isinstance(value, str):
            raise self.error(field, "be text or a finite number", repr(value))
        cleaned = " ".join(value.split())
        if cleaned != value:
            self._report.repair(f"blanks in {field}", self.where(field))
        return cleaned

    def required(self, field: str) -> str:
        """A field as `text` gives it, which must not be empty.

        Raises:
            DataError: the field is missing or empty.
        """
        value = self.text(field)
        if not value:
            raise self.error(field, "not be empty", repr(self._fields[field]))
        return value

    def optional(self, field: str) -> str:
        """A field as `text` gives it, or an empty text where the field is missing or null."""
        return self.text(field) if self._fields.get(field) is not None else ""

    def answer_type(self) -> str:
        """The field ``answer_type`` as "open" or "closed", whatever its case and blanks.

        Raises:
            DataError: the field is missing or something else.
        """
        value = self.text("answer_type").upper()
        if value not in _ANSWER_TYPES:
            raise self.error("answer_type", "be OPEN or CLOSED", repr(self._fields["answer_type"]))
        return _ANSWER_TYPES[value]

    def example(
        self,
        *,
        image: Path,
        image_id: str,
        question: str,
        content_type: str,
        split: str,
        extra: Mapping[str, str],
    ) -> VQAExample | None:
        """Make the example of this row. Where its answer says nothing, drop the row; -> None."""
        answer_type = self.answer_type()
        answer = self.text("answer")
        normalized = normalize_answer(answer)
        if not normalized:
            reason = "answer without a word" if answer else "empty answer"
            self._report.drop(reason, self.where("answer"))
            return None
        return VQAExample(
            qid=self.required("qid"),
            image=image,
            image_id=image_id,
            question=question,
            answer=answer,
            answer_normalized=normalized,
            answer_type=answer_type,
            content_type=content_type,
            split=split,
            extra={name: value for name, value in extra.items() if value},
        )

    def note(self, observation: str, field: str) -> None:
        """Count an observation about a field."""
        self._report.note(observation, self.where(field))

    def repair(self, defect: str, field: str) -> None:
        """Count a repair of a field."""
        self._report.repair(defect, self.where(field))

    def drop(self, reason: str, field: str) -> None:
        """Count the row as dropped because of a field."""
        self._report.drop(reason, self.where(field))


class ImageFolder:
    """Finds the images of a data set; looks at each file once, however many questions it has."""

    def __init__(self, operation: str, root: Path, folders: Sequence[str]):
        """Take the first of some folders that exists.

        Raises:
            DataError: none does.
        """
        present = [root / name for name in folders if (root / name).is_dir()]
        if not present:
            raise DataError(
                f"{operation}: root must hold the folder {' or '.join(map(repr, folders))} "
                f"with the images, got {root} with {_contents(root)}."
            )
        self.folder = present[0].resolve()
        self._known: dict[str, Path] = {}

    def path(self, row: Row, field: str) -> Path:
        """The absolute path of the image that a row names.

        Raises:
            DataError: there is no such file.
        """
        name = row.required(field)
        if name not in self._known:
            path = self.folder / name
            if not path.is_file():
                raise row.error(field, f"name an image file in {self.folder}", f"{name!r}")
            self._known[name] = path
        return self._known[name]


def find_file(operation: str, root: Path, names: Sequence[str]) -> Path:
    """The first of some files that exists in root.

    Raises:
        DataError: none does.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    wanted = " or ".join(map(repr, names))
    raise DataError(f"{operation}: root must hold {wanted}, got {root} with {_contents(root)}.")


def read_rows(operation: str, path: Path, report: ReaderReport) -> Iterator[Row]:
    """The rows of a JSON file that holds one list of objects. A byte-order mark is skipped.

    Raises:
        DataError: the file cannot be read, is no JSON or no list, or a row is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{operation}: {path} must be a readable JSON file, got {error}."
        ) from error
    if not isinstance(content, list) or not content:
        got = "an empty list" if content == [] else type(content).__name__
        raise DataError(f"{operation}: {path} must hold a list of rows, got {got}.")
    for number, fields in enumerate(content):
        yield Row(operation, path, number, fields, report)


def check_split(operation: str, split: str, splits: Sequence[str]) -> None:
    """Check that split is one of splits.

    Raises:
        ValueError: it is not.
    """
    if split not in splits:
        known = ", ".join(map(repr, splits))
        raise ValueError(f"{operation}: split must be one of {known}, got {split!r}.")


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in root.iterdir())
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "nothing in it"
