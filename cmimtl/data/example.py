"""What every reader gives, `VQAExample`; what it did meanwhile, `ReaderReport`; and
how it fails, `DataError`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OPEN = "open"
CLOSED = "closed"

# A report keeps this many messages per defect; the counts are always complete.
MESSAGES_PER_DEFECT = 5


class DataError(ValueError):
    """A reader cannot use a file or a row. The message names file, row (from 0) and field."""


@dataclass(frozen=True)
class VQAExample:
    """One question about one image.

    Attributes:
        qid: the row's own identifier as text, unique within a split file of the data set.
        image: absolute path of the image file.
        image_id: key of the image within the data set; the same for every question about it.
            Splits are made and confidence intervals are clustered by it.
        question: the question with blanks trimmed and single.
        answer: the answer as written, blanks trimmed and single.
        answer_normalized: `cmimtl.data.answers.normalize_answer` of ``answer``: the class
            label.
        answer_type: ``"open"`` or ``"closed"``.
        content_type: what the question asks about, in the data set's own words ("Modality",
            "PRES"). Where a row names several, the first.
        split: the split that was asked for.
        extra: what else the row says, by name: ``organ``, ``modality``, ``language``,
            ``phrase_type``, ``content_types`` (all of them). Not part of equality.
    """

    qid: str
    image: Path
    image_id: str
    question: str
    answer: str
    answer_normalized: str
    answer_type: str
    content_type: str
    split: str
    extra: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass
class ReaderReport:
    """What a reader met in one split: rows read, rows given, defects repaired and rows dropped.

    Pass an empty report to `cmimtl.data.load_dataset`; print ``lines()`` or store
    ``to_dict()``.

    Attributes:
        rows: number of rows in the files of the split.
        examples: number of examples that the reader gave.
        repaired: defect -> number of rows in which it was repaired.
        dropped: reason -> number of rows that were left out for it.
        noted: observation -> number of rows that it holds for. Nothing was changed for it.
        messages: defect, reason or observation -> the first places of it, as "file, row, field".
    """

    rows: int = 0
    examples: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    messages: dict[str, list[str]] = field(default_factory=dict)

    def repair(self, defect: str, where: str) -> None:
        """Count one repaired row."""
        self._count(self.repaired, defect, where)

    def drop(self, reason: str, where: str) -> None:
        """Count one row that was left out."""
        self._count(self.dropped, reason, where)

    def note(self, observation: str, where: str) -> None:
        """Count one row that an observation holds for."""
        self._count(self.noted, observation, where)

    def _count(self, counts: Counter[str], key: str, where: str) -> None:
        counts[key] += 1
        kept = self.messages.setdefault(key, [])
        if len(kept) < MESSAGES_PER_DEFECT:
            kept.append(where)

    def lines(self) -> list[str]:
        """The report as lines of text, the most frequent first within each group."""
        text = [f"{self.rows} rows read, {self.examples} examples"]
        for group, counts in self._groups():
            for key, count in counts.most_common():
                text.append(f"{group}: {key}: {count} (first: {self.messages[key][0]})")
        return text

    def to_dict(self) -> dict[str, object]:
        """The report as plain numbers, lists and dicts, ready for JSON."""
        groups = {group: dict(counts.most_common()) for group, counts in self._groups()}
        return {"rows": self.rows, "examples": self.examples, **groups, "messages": self.messages}

    def _groups(self) -> list[tuple[str, Counter[str]]]:
        return [("repaired", self.repaired), ("dropped", self.dropped), ("noted", self.noted)]
