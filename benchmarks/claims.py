"""What this project claims of its speed and memory, each with the number of a record behind it.

The report prints them all with what was measured; test_report.py holds the committed record to
them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks import fusions
from benchmarks.records import (
    LARGE,
    LONG,
    PATCHES,
    PATCHES_SIZE,
    QUERIES_SIZE,
    SMALL,
    TEXT,
    measured,
    ours,
    rows,
    size,
    workload,
)

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"


@dataclass(frozen=True)
class Claim:
    """A number of a record and what it must be.

    Attributes:
        text: what is claimed; the bound and the number stand beside it.
        sense: "at least" or "at most".
        bound: of the number, in `unit`.
        unit: as it is printed behind the number.
        value: record -> number, or None where its rows are missing.
    """

    text: str
    sense: str
    bound: float
    unit: str
    value: Callable[[dict], float | None]

    def holds(self, record: dict) -> bool | None:
        """Whether the record shows it; None where its rows are missing."""
        number = self.value(record)
        if number is None:
            return None
        return number >= self.bound if self.sense == "at least" else number <= self.bound

    def show(self, number: float | None) -> str:
        if number is None:
            return "not measured"
        digits = 0 if number >= 100 else 1 if number >= 10 else 2
        return f"{number:.{digits}f}".removesuffix(".00").removesuffix(".0") + self.unit


def _quotient(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _fusion(field: str, numerator: str, denominator: str, of, suite="fusion", scale=1.0):
    """A field of one fusion over that of another, forward and backward."""

    def value(record: dict) -> float | None:
        a, b = (
            measured(record, suite, field, name=name, which=BOTH, **size(of))
            for name in (numerator, denominator)
        )
        found = _quotient(a, b)
        return None if found is None else scale * found

    return value


def _slower(baseline: str, which: str, workloads):
    """How many times our time a baseline takes: the least of these workloads that ran."""

    def value(record: dict) -> float | None:
        found = [
            measured(record, "ops", "ratio", name=baseline, which=which, **workload(of))
            for of in workloads
        ]
        return min((ratio for ratio in found if ratio is not None), default=None)

    return value


def _flatness(which: str):
    """Largest over smallest of Cross-Mamba's cost per token at long lengths, minus one, in %."""

    def value(record: dict) -> float | None:
        chosen = rows(record, "length", name=fusions.OURS, which=which)
        costs = [r["seconds_per_token"] for r in chosen if _long(r) and "seconds_per_token" in r]
        return 100 * (max(costs) / min(costs) - 1) if len(costs) > 1 else None

    return value


def _off_a_line(record: dict) -> float | None:
    """How far the time of Cross-Mamba's forward and backward pass is from a straight line in
    length, in % of the line, at its worst."""
    chosen = [
        row
        for row in rows(record, "length", name=fusions.OURS, which=BOTH)
        if _long(row) and "seconds" in row
    ]
    if len(chosen) < 3:
        return None
    lengths, seconds = np.array([(row["length"], row["seconds"]) for row in chosen]).T
    # The errors are shares of the time, so the fit weighs them as such.
    line = np.polyval(np.polyfit(lengths, seconds, 1, w=1 / seconds), lengths)
    return 100 * float(np.abs(seconds / line - 1).max())


def _long(row: dict) -> bool:
    return row["length"] >= 1024


def _share(which: str, workloads):
    """Our scan's share of the machine's limit in one pass: the least of these workloads."""

    def value(record: dict) -> float | None:
        found = [
            measured(record, "kernel", "share_of_limit", which=which, **workload(of))
            for of in workloads
        ]
        return min((100 * share for share in found if share is not None), default=None)

    return value


def _growth(which: str):
    """How much more a state costs in our scan at the longest length than at the one before, in %;
    below 0 where it is less."""

    def value(record: dict) -> float | None:
        short, long = (
            measured(record, "kernel", "ns_per_element", which=which, **workload(of))
            for of in (PATCHES, LONG)
        )
        growth = _quotient(long, short)
        return None if growth is None else 100 * (growth - 1)

    return value


def _peak(length: int):
    def value(record: dict) -> float | None:
        share = measured(record, "peak", "share_of_states", name=ours(record), length=length)
        return None if share is None else 100 * share

    return value


def _peak_falls(record: dict) -> float | None:
    """The largest step up of the share from one length to the next longer one, in points."""
    chosen = sorted(rows(record, "peak", name=ours(record)), key=lambda row: row["length"])
    shares = [100 * row["share_of_states"] for row in chosen]
    steps = [longer - shorter for shorter, longer in itertools.pairwise(shares)]
    return max(steps, default=None)


def _bfloat16(which: str):
    def value(record: dict) -> float | None:
        return measured(record, "dtypes", "ratio", name=ours(record), which=which, dtype="bfloat16")

    return value


def _gemm_share(record: dict) -> float | None:
    share = measured(record, "block", "share", name="GEMM", **size(QUERIES_SIZE))
    return None if share is None else 100 * share


def _kept(record: dict) -> float | None:
    kept = measured(record, "block", "kept_bytes", name="whole block", **size(QUERIES_SIZE))
    return None if kept is None else kept / 1e6


_OURS, _TRANSFORMER, _MAMBAS = fusions.OURS, fusions.TRANSFORMER, fusions.MAMBAS
_COMPILED = "torch.compile of a 16-step loop"
_FEW, _MANY = "batch 16, 32 + 32 tokens", "batch 4, 577 + 32 tokens"


CLAIMS = (
    Claim(f"training step: Transformer fusion's time over Cross-Mamba's, {_FEW}",
          "at least", 5.5, "x", _fusion("seconds", _TRANSFORMER, _OURS, QUERIES_SIZE)),
    Claim(f"the same, {_MANY}",
          "at least", 4.0, "x", _fusion("seconds", _TRANSFORMER, _OURS, PATCHES_SIZE)),
    Claim(f"without fused kernels: Cross-Mamba on mamba's reference scan over it, {_FEW}",
          "at least", 1.0, "x", _fusion("seconds", _MAMBAS, _TRANSFORMER, QUERIES_SIZE)),
    Claim("Cross-Mamba's parameters over the Transformer's",
          "at most", 10, " %", _fusion("parameters", _OURS, _TRANSFORMER, QUERIES_SIZE, scale=100)),
    Claim(f"kept activations, Cross-Mamba's over the Transformer's, {_FEW}", "at most",
          40, " %", _fusion("kept_bytes", _OURS, _TRANSFORMER, QUERIES_SIZE, "fusion memory", 100)),
    Claim(f"the same, {_MANY}", "at most",
          40, " %", _fusion("kept_bytes", _OURS, _TRANSFORMER, PATCHES_SIZE, "fusion memory", 100)),
    Claim("Cross-Mamba's cost per token varies from 1024 to 16384 tokens by, forward",
          "at most", 10, " %", _flatness(FORWARD)),
    Claim("the same, forward + backward",
          "at most", 15, " %", _flatness(BOTH)),
    Claim("the same time is a straight line in length, forward + backward, to within",
          "at most", 10, " %", _off_a_line),
    Claim(f"a block's training step inside GEMMs, {_FEW}", "at least", 70, " %", _gemm_share),
    Claim(f"activations that a block keeps, {_FEW}", "at most", 20, " MB", _kept),
    Claim("our scan's share of the FMA limit, forward, length 64",
          "at least", 35, " %", _share(FORWARD, (TEXT,))),
    Claim("the same, lengths 1154 and 16384",
          "at least", 40, " %", _share(FORWARD, (PATCHES, LONG))),
    Claim("the same, backward, all three lengths",
          "at least", 28, " %", _share(BACKWARD, (TEXT, PATCHES, LONG))),
    Claim("torch.compile of a 16-step loop over our scan, forward",
          "at least", 3.4, "x", _slower(_COMPILED, FORWARD, LARGE)),
    Claim("the same, forward + backward",
          "at least", 5, "x", _slower(_COMPILED, BOTH, LARGE)),
    Claim("the same, the two small calls, forward",
          "at least", 4, "x", _slower(_COMPILED, FORWARD, SMALL)),
    Claim("the same, the two small calls, forward + backward",
          "at least", 5, "x", _slower(_COMPILED, BOTH, SMALL)),
    Claim("mamba's reference over our scan, forward", "at least",
          40, "x", _slower("mamba's reference", FORWARD, LARGE)),
    Claim("the same, forward + backward at length 64", "at least",
          85, "x", _slower("mamba's reference", BOTH, (TEXT,))),
    Claim("transformers' slow path over our scan, forward", "at least",
          35, "x", _slower("transformers' slow path", FORWARD, LARGE)),
    Claim("the same, forward + backward at length 64", "at least",
          85, "x", _slower("transformers' slow path", BOTH, (TEXT,))),
    Claim("mambapy over our scan, forward + backward",
          "at least", 35, "x", _slower("mambapy", BOTH, LARGE)),
    Claim("Intel's extension over our scan, forward",
          "at least", 17, "x", _slower("Intel's extension", FORWARD, LARGE)),
    Claim("ggml over our scan, forward", "at least", 14, "x", _slower("ggml", FORWARD, LARGE)),
    Claim("our scan's time in bfloat16 over float32, forward",
          "at most", 1.05, "x", _bfloat16(FORWARD)),
    Claim("the same, forward + backward", "at most", 1.0, "x", _bfloat16(BOTH)),
    Claim("our scan's cost per state grows from length 1154 to 16384 by, forward",
          "at most", 10, " %", _growth(FORWARD)),
    Claim("the same, backward",
          "at most", 30, " %", _growth(BACKWARD)),
    Claim("our scan's memory beyond inputs, outputs and gradients, of all states, length 1154",
          "at most", 12.5, " %", _peak(1154)),
    Claim("that share grows from 289 to 1154 to 4616 by at a step",
          "at most", 0, " points", _peak_falls),
)  # fmt: skip


def table(records: list[dict]) -> list[list[str]]:
    """Every claim with its bound and the number of each record."""
    header = ["", "claimed", *(short_device(record) for record in records)]
    lines = [header]
    for claim in CLAIMS:
        numbers = []
        for record in records:
            shown = claim.show(claim.value(record))
            bound = record["device_type"] == "cpu" and claim.holds(record) is False
            numbers.append(shown + (" (missed)" if bound else ""))
        lines.append([claim.text, f"{claim.sense} {claim.show(claim.bound)}", *numbers])
    return lines


def short_device(record: dict) -> str:
    return record["device"].split(",")[0]
