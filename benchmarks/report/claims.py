"""What this project claims of its speed and memory, each with the numbers of a record behind it.

benchmarks/RESULTS.md shows the claims beside what was measured. test_report.py holds the committed
records to them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import fusions
from benchmarks.baselines import LARGE, PATCHES
from benchmarks.report.records import (
    BOTH,
    FORWARD,
    PASSES,
    device,
    one,
    ours,
    rows,
    size,
    values,
    workload,
)

COMPILED = "torch.compile of a 16-step loop"


@dataclass(frozen=True)
class Claim:
    """Numbers of a record and what each of them must be.

    Attributes:
        text: what the numbers are.
        sense: "at least" or "at most".
        bound: of every number.
        unit: "x", or " %" for a number that is shown times 100.
        numbers: record -> the numbers that were measured.
    """

    text: str
    sense: str
    bound: float
    unit: str
    numbers: Callable[[dict], list[float]]

    def worst(self, record: dict) -> float | None:
        """The number that is nearest to the bound or farthest beyond it; None without any."""
        pick = min if self.sense == "at least" else max
        return pick(self.numbers(record), default=None)

    def holds(self, record: dict) -> bool | None:
        """Whether the record shows it; None where nothing of it was measured."""
        if (number := self.worst(record)) is None:
            return None
        return number >= self.bound if self.sense == "at least" else number <= self.bound

    def show(self, number: float | None) -> str:
        if number is None:
            return "not measured"
        number *= 100 if self.unit == " %" else 1
        digits = 0 if number >= 100 else 1 if number >= 10 else 2
        return f"{number:.{digits}f}".removesuffix(".00").removesuffix(".0") + self.unit


def _over(record: dict, suite: str, field: str, above: str, below: str) -> list[float]:
    """A field of one fusion over the same field of another, forward and backward, by size."""
    found = []
    for of in fusions.SIZES:
        a, b = (
            values(record, suite, field, name=name, which=BOTH, **size(of))
            for name in (above, below)
        )
        found += [x / y for x, y in zip(a, b, strict=False)]
    return found


def _variation(record: dict) -> list[float]:
    """Largest over smallest of Cross-Mamba's time per token at long lengths, minus one, by pass."""
    found = []
    for which in PASSES:
        chosen = rows(record, "length", name=fusions.OURS, which=which)
        costs = [row["seconds_per_token"] for row in chosen if row["length"] >= 1024]
        if len(costs) > 1:
            found.append(max(costs) / min(costs) - 1)
    return found


def _of_native_peers(record: dict) -> list[float]:
    """The time of each scan that others have compiled for CPUs over ours, at the large sizes."""
    found = (
        one(record, "ops", name=name, which=FORWARD, **workload(of))
        for name in ("Intel's extension", "ggml")
        for of in LARGE
    )
    return [row["ratio"] for row in found if "ratio" in row]


CLAIMS = (
    Claim("training step of the fusion, at both sizes: the Transformer's time over Cross-Mamba's",
          "at least", 5, "x",
          lambda r: _over(r, "fusion", "seconds", fusions.TRANSFORMER, fusions.OURS)),
    Claim("the same step without our kernels: Cross-Mamba's time, on mamba's reference scan, over"
          " the Transformer's", "at least", 1, "x",
          lambda r: _over(r, "fusion", "seconds", fusions.MAMBAS, fusions.TRANSFORMER)),
    Claim("what is kept for the backward pass, at both sizes: Cross-Mamba's bytes over the"
          " Transformer's", "at most", 0.1, " %",
          lambda r: _over(r, "fusion memory", "kept_bytes", fusions.OURS, fusions.TRANSFORMER)),
    Claim("Cross-Mamba's time per token, in each pass: by how much it varies from 1024 to 16384"
          " tokens", "at most", 0.15, " %", _variation),
    Claim(f"scan, forward, at all five sizes: the time of {COMPILED} over ours", "at least", 3.4,
          "x", lambda r: values(r, "ops", "ratio", name=COMPILED, which=FORWARD)),
    Claim(f"scan, forward + backward, at all five sizes: the time of {COMPILED} over ours",
          "at least", 5, "x", lambda r: values(r, "ops", "ratio", name=COMPILED, which=BOTH)),
    Claim("scan, forward, at the three large sizes: the time of Intel's extension, and of ggml,"
          " over ours", "at least", 14, "x", _of_native_peers),
    Claim("scan, each pass at the three large sizes: our share of the FMA limit", "at least",
          0.28, " %", lambda r: values(r, "kernel", "share_of_limit", name=ours(r))),
    Claim("scan, in each pass: our time in bfloat16 over our time in float32", "at most", 1.05,
          "x", lambda r: values(r, "dtypes", "ratio", name=ours(r), dtype="bfloat16",
                                **workload(PATCHES))),
    Claim("scan, at three lengths: memory beyond inputs, outputs and gradients, over the states of"
          " all steps", "at most", 0.125, " %",
          lambda r: values(r, "peak", "share_of_states", name=ours(r))),
)  # fmt: skip


def table(records: list[dict]) -> list[list[str]]:
    """Every claim with its bound and the worst number of each record."""
    lines = [["", "claimed", *(device(record) for record in records)]]
    for claim in CLAIMS:
        numbers = []
        for record in records:
            missed = record["device_type"] == "cpu" and claim.holds(record) is False
            numbers.append(claim.show(claim.worst(record)) + (" (missed)" if missed else ""))
        lines.append([claim.text, f"{claim.sense} {claim.show(claim.bound)}", *numbers])
    return lines
