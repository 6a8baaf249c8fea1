"""Reads records: rows by what they hold."""

import json
from pathlib import Path

COMMITTED = Path(__file__).parents[1] / "records"
FORWARD, BOTH = PASSES = ("forward", "forward+backward")  # which pass a row is about


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def committed() -> list[dict]:
    """The records of this repository, by file name."""
    return [load(path) for path in sorted(COMMITTED.glob("*.json"))]


def rows(record: dict, suite: str, **fields) -> list[dict]:
    """The rows of a suite whose fields have these values."""
    return [
        row
        for row in record["rows"]
        if row["suite"] == suite and all(row.get(k) == v for k, v in fields.items())
    ]


def one(record: dict, suite: str, **fields) -> dict:
    """The first of these rows, which may say why it was not run; empty where there is none."""
    return next(iter(rows(record, suite, **fields)), {})


def values(record: dict, suite: str, field: str, **fields) -> list[float]:
    """A field of each of these rows that has it."""
    return [row[field] for row in rows(record, suite, **fields) if field in row]


def ours(record: dict) -> str:
    """The name of this library's best backend in the rows of the scan."""
    names = {row["name"] for row in rows(record, "ops")}
    return next((name for name in ("cuda", "triton", "cpu") if name in names), "cpu")


def device(record: dict) -> str:
    """The device's name without the number of threads."""
    return record["device"].split(",")[0]


def workload(of: tuple[int, int, int]) -> dict[str, int]:
    """The fields of a scan's row that hold its sizes."""
    return dict(zip(("batch", "length", "dim"), of, strict=True))


def size(of: tuple[int, int, int]) -> dict[str, int]:
    """The fields of a fusion's row that hold its sizes."""
    return dict(zip(("batch", "n_visual", "n_text"), of, strict=True))
