"""Reading records: rows by what they hold, and the names that the report looks for."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

COMMITTED = Path(__file__).parent / "records"

# As test_ops.py has them; batch, length, dim.
TEXT, PATCHES, LONG = (16, 64, 1536), (4, 1154, 1536), (1, 16384, 1536)
LARGE = (TEXT, PATCHES, LONG)
SMALL = ((1, 64, 1536), (2, 33, 96))

# As test_fusion.py has them; batch, visual tokens, text tokens.
QUERIES_SIZE, PATCHES_SIZE = (16, 32, 32), (4, 577, 32)


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


def one(record: dict, suite: str, **fields) -> dict | None:
    """The first such row, also one that says why it was not run, or None."""
    return next(iter(rows(record, suite, **fields)), None)


def measured(record: dict, suite: str, field: str, **fields) -> float | None:
    """A number of the first such row, or None where it was not measured."""
    row = one(record, suite, **fields)
    return None if row is None else row.get(field)


def by_name(chosen: Iterable[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in chosen:
        groups.setdefault(row["name"], []).append(row)
    return groups


def ours(record: dict) -> str:
    """The name of this library's best backend in the rows of the ops."""
    names = {row["name"] for row in rows(record, "ops")}
    return next((name for name in ("cuda", "triton", "cpu") if name in names), "cpu")


def workload(of: tuple[int, int, int]) -> dict:
    return dict(zip(("batch", "length", "dim"), of, strict=True))


def size(of: tuple[int, int, int]) -> dict:
    return dict(zip(("batch", "n_visual", "n_text"), of, strict=True))


def exponent(xs: list[float], ys: list[float]) -> float:
    """p of the power law y = c * x**p that fits best, by least squares of the logarithms."""
    log_x, log_y = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mean_x, mean_y = sum(log_x) / len(log_x), sum(log_y) / len(log_y)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(log_x, log_y, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in log_x)
