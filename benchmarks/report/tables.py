"""Records -> tables: lists of lines of text, the headings first."""

from collections.abc import Callable

from benchmarks import fusions
from benchmarks.baselines import BASELINES, LARGE, SMALL, TEXT
from benchmarks.report.claims import COMPILED
from benchmarks.report.records import (
    BOTH,
    PASSES,
    device,
    one,
    ours,
    rows,
    size,
    workload,
)

Table = list[list[str]]


# Numbers and rows as text.


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2f} ms"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 20 else f"{ratio:.1f}x"


def millions(count: float) -> str:
    return f"{count / 1e6:.1f} M"


def field(name: str, form: Callable[[float], str] = str) -> Callable[[dict], str]:
    """row -> a field of it as text; nothing where it has none."""
    return lambda row: form(row[name]) if name in row else ""


def time(row: dict) -> str:
    """The median time, or why there is none."""
    return milliseconds(row["seconds"]) if "seconds" in row else row.get("not_run", "")


def limit(row: dict) -> str:
    """The share of the row's limit, and which limit it is."""
    share = row.get("share_of_limit")
    return row.get("limit", "") if share is None else f"{percent(share)} of {row['limit']}"


def ratio(row: dict) -> str:
    """The time over ours, or what it would be by a smaller workload, or that it was not run."""
    if "expected_ratio" in row:
        return f"about {times(row['expected_ratio'])}*"
    return times(row["ratio"]) if "ratio" in row else "-" if row else ""


def shape(row: dict) -> str:
    return f"{row['batch']} x {row['length']} x {row['dim']}"


def tokens(row: dict) -> str:
    return f"{row['batch']} x ({row['n_visual']} + {row['n_text']})"


# Tables of one suite: heading -> cell of a row.

SCAN = {"batch x length x dim": shape, "pass": field("which")}
MEASURED = {"time": time, "spread": field("spread", percent)}
SUITES = {
    "kernel": SCAN | MEASURED | {
        "ns per state": field("ns_per_element", "{:.3f}".format), "limit": limit,
    },
    "dtypes": SCAN | {"dtype": field("dtype")} | MEASURED | {
        "limit": limit, "times float32": field("ratio", "{:.2f}x".format),
    },
    "peak": {
        "batch x length x dim": shape,
        "peak, forward + backward": field("peak_bytes", megabytes),
        "of it outputs and gradients": field("least_bytes", megabytes),
        "beyond them": field("extra_bytes", megabytes),
        "of all states of all steps": field("share_of_states", lambda x: f"{100 * x:.1f} %"),
    },
    "block": {
        "batch x tokens": tokens, "part": field("name"), "time": time,
        "share": field("share", percent), "limit": limit, "kept": field("kept_bytes", megabytes),
    },
    "model": {
        "preset": field("preset"), "batch": field("batch"), "pass": field("which"),
        "fusion": field("name"), "parameters": field("parameters", millions),
        "of them fusion": field("fusion_parameters", millions), **MEASURED,
        "samples/s": field("samples_per_second", "{:.1f}".format), "limit": limit,
        "times cross-mamba": field("ratio", "{:.2f}x".format),
        "peak": field("peak_bytes", megabytes),
    },
}  # fmt: skip


def suite(name: str) -> Callable[[dict], Table]:
    """record -> the table of a suite's rows; of our scan's suites, the rows of its best backend."""
    columns = SUITES[name]

    def table(record: dict) -> Table:
        backend = {"name": ours(record)} if name in ("kernel", "dtypes", "peak") else {}
        chosen = rows(record, name, **backend)
        return [list(columns), *([cell(row) for cell in columns.values()] for row in chosen)]

    return table


# Tables that put several rows side by side.


def fusion_table(record: dict) -> Table:
    """One line for each fusion and size: time, limit, memory."""
    table = [
        ["batch x tokens", "fusion", "parameters", "forward", "forward + backward",
         "times Cross-Mamba", "limit", "samples/s", "kept", "peak"]
    ]  # fmt: skip
    for of in fusions.SIZES:
        for name in fusions.FUSIONS:
            forward, both = (
                one(record, "fusion", name=name, which=which, **size(of)) for which in PASSES
            )
            if not both:
                continue
            memory = one(record, "fusion memory", name=name, **size(of))
            table.append(
                [tokens(both), name, field("parameters", millions)(forward | both), time(forward),
                 time(both), field("ratio", times)(both), limit(both),
                 field("samples_per_second", "{:.1f}".format)(both),
                 field("kept_bytes", megabytes)(memory), field("peak_bytes", megabytes)(memory)]
            )  # fmt: skip
    return table


def slope_table(record: dict) -> Table:
    """Microseconds per token of one layer, at three lengths."""
    places = [dict(which=which, length=n) for which in PASSES for n in (1024, 4096, 16384)]
    head = (f"{place['length']} tokens, {place['which']}" for place in places)
    table = [["one layer, µs per token", *head]]
    for name in dict.fromkeys(row["name"] for row in rows(record, "length")):
        costs = [
            one(record, "length", name=name, **place).get("seconds_per_token") for place in places
        ]
        table.append([name, *("-" if cost is None else f"{1e6 * cost:.0f}" for cost in costs)])
    return table


def speedup_table(record: dict, workloads=LARGE) -> Table:
    """Our scan's time per state, and how many times ours the baselines take."""
    places = [dict(which=which, **workload(of)) for which in PASSES for of in workloads]
    table = [["", *(f"{shape(place)}, {place['which']}" for place in places)]]
    own = field("ns_per_element", "{:.3f} ns".format)
    lines = {ours(record): (f"ours ({ours(record)}), per state", own)}
    lines |= {baseline.name: (baseline.name, ratio) for baseline in BASELINES}
    for name, (label, cell) in lines.items():
        found = [one(record, "ops", name=name, **place) for place in places]
        if any("seconds" in row for row in found):
            table.append([label, *map(cell, found)])
    return table


def overview_table(records: list[dict]) -> Table:
    """The README's table: six numbers of each record that say what the library is good for."""
    of = size(fusions.QUERIES)

    def step(name: str):
        def cell(record: dict) -> str:
            row = one(record, "fusion", name=name, which=BOTH, **of)
            if "seconds" not in row:
                return "not measured"
            return time(row) if name == fusions.OURS else f"{time(row)}, {times(row['ratio'])}"

        return cell

    def kept(record: dict) -> str:
        found = [
            one(record, "fusion memory", name=name, **of)
            for name in (fusions.OURS, fusions.TRANSFORMER)
        ]
        if not all("kept_bytes" in row for row in found):
            return "not measured"
        return " against ".join(megabytes(row["kept_bytes"]) for row in found)

    def scan(name: str):
        def cell(record: dict) -> str:
            row = one(record, "ops", name=name, which=BOTH, **workload(TEXT))
            return f"{times(row['ratio'])} the time of ours" if "ratio" in row else "not measured"

        return cell

    lines = {
        f"training step of the fusion, {tokens(of)} tokens: Cross-Mamba": step(fusions.OURS),
        "the same step: a Transformer with 6 co-attention layers": step(fusions.TRANSFORMER),
        "the same step: Cross-Mamba on mamba's reference scan": step(fusions.MAMBAS),
        "kept for its backward pass: Cross-Mamba against the Transformer": kept,
        f"selective scan, forward and backward: {COMPILED}": scan(COMPILED),
        "the same scan: mamba's reference": scan("mamba's reference"),
    }
    head = ["", *(device(record) for record in records)]
    return [head, *([text, *(cell(record) for record in records)] for text, cell in lines.items())]


# The tables of one record, each with the text above it, in their order.
SECTIONS: tuple[tuple[str, Callable[[dict], Table]], ...] = (
    ("Fusion alone, d_model 768, Cross-Mamba with 2 layers against co-attention with 6 per stream;"
     " forward + backward is a training step without the optimizer:", fusion_table),
    ("", slope_table),
    ("The scan with softplus, bias, D and gate, dstate 16, our kernels against the others (batch x"
     " length x dim, pass):", speedup_table),
    ("\\* Not run: from its time at a smaller size. The gradient of indexing a step is as large as"
     " the sequence, so the backward passes of mamba's reference and of transformers' slow path are"
     " quadratic in length.\n\nThe same for two small calls, where the fixed cost of a call"
     " counts:", lambda record: speedup_table(record, SMALL)),
    ("Each pass by itself, in a process whose allocator keeps its memory:", suite("kernel")),
    ("Half precision beside float32:", suite("dtypes")),
    ("The scan's peak memory:", suite("peak")),
    ("One Cross-Mamba block, forward + backward:", suite("block")),
    ("The whole model, with each fusion:", suite("model")),
)  # fmt: skip
