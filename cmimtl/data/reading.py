"""What the readers share: reading a JSON list as rows, repairing fields, and finding images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cmimtl.data.answers import normalize_answer
from cmimtl.data.example import CLOSED, OPEN, DataError, ReaderReport, VQAExample
from cmimtl.files import leads_out, read_json

_ANSWER_TYPES = {"OPEN": OPEN, "CLOSED": CLOSED}


class Row:
    """One row of a JSON list, which knows its place, for messages, and repairs what is read."""

    def __init__(
        self,
        operation: str,
        path: Path,
        number: int,
        fields: object,
        report: ReaderReport,
        qids: set[str],
    ):
        """qids: those of the file's earlier rows, to which `example` adds this row's."""
        self._operation = operation
        self._path = path
        self._number = number
        self._report = report
        self._qids = qids
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

        Repairs: numbers become text, 2.0 as 2; tabs, line ends and runs of blanks become one blank.

        Raises:
            DataError: the field is missing or neither text nor a finite number.
        """
        if field not in self._fields:
            raise self.error(
                field, "be there", f"only {', '.join(sorted(self._fields)) or 'no field'}"
            )
        value = self._fields[field]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            value = str(int(value) if value == int(value) else value)
            if field == "answer":
                self._report.repair("number as answer", self.where(field))
        if not isinstance(value, str):
            raise self.error(field, "be text or a finite number", _short(value))
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
            raise self.error("answer_type", "be OPEN or CLOSED", _short(value))
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
        qid = self.required("qid")
        if qid in self._qids:
            self.note("qid of an earlier row", "qid")
        self._qids.add(qid)
        return VQAExample(
            qid=qid,
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
        self._root = root
        if leads_out(root, self.folder):
            raise DataError(
                f"{operation}: root must hold its images itself, got {present[0]}, which leads to"
                f" {self.folder}; name the folder that holds them as root, or copy them."
            )
        self._known: dict[str, Path] = {}

    def path(self, row: Row, field: str) -> Path:
        """The absolute path of the image that a row names.

        Raises:
            DataError: there is no such file, or it lies outside the data set.
        """
        name = row.required(field)
        if name not in self._known:
            path = self.folder / name
            try:
                found, out = path.is_file(), leads_out(self._root, path)
            except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a circle of links
                found, out = False, False
            if out:
                raise row.error(field, f"name an image file within {self._root}", _short(name))
            if not found:
                raise row.error(field, f"name an image file in {self.folder}", _short(name))
            self._known[name] = path
        return self._known[name]


def find_file(operation: str, root: Path, names: Sequence[str]) -> Path:
    """The first of some files that exists in root.

    Raises:
        DataError: none does, or it is a link to a file elsewhere.
    """
    for name in names:
        if (path := root / name).is_file():
            if leads_out(root, path):
                raise DataError(
                    f"{operation}: root must hold {name!r} itself, got {path}, which leads to"
                    f" {path.resolve()}."
                )
            return path
    wanted = " or ".join(map(repr, names))
    raise DataError(f"{operation}: root must hold {wanted}, got {root} with {_contents(root)}.")


def read_rows(operation: str, path: Path, report: ReaderReport) -> Iterator[Row]:
    """The rows of a JSON file that holds one list of objects. A byte-order mark is skipped.

    Raises:
        DataError: the file cannot be read, is no JSON or no list, or a row is no object.
    """
    try:
        content = read_json(operation, "a data set's file must hold a list of rows", path, list)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error
    if not content:
        raise DataError(f"{operation}: {path} must hold a list of rows, got an empty list.")
    qids: set[str] = set()
    for number, fields in enumerate(content):
        yield Row(operation, path, number, fields, report, qids)


def _short(value: object) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}… ({len(text)} characters)"


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in root.iterdir())
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "nothing in it"
