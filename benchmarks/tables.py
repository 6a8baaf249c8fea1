"""Records -> tables, as lists of rows of text; the first row is the header."""

from benchmarks import fusions
from benchmarks.baselines import BASELINES
from benchmarks.records import (
    LARGE,
    PATCHES_SIZE,
    QUERIES_SIZE,
    measured,
    one,
    ours,
    rows,
    size,
    workload,
)

Table = list[list[str]]
PASSES = ("forward", "forward+backward")
SIZES = (QUERIES_SIZE, PATCHES_SIZE)


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2f} ms"


def megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f} MB"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:,.0f}x" if ratio >= 20 else f"{ratio:.1f}x"


def limit(row: dict) -> str:
    """Share of the row's limit and which limit it is."""
    share = row.get("share_of_limit")
    return row.get("limit", "") if share is None else f"{100 * share:.0f} % of {row['limit']}"


def of_size(of: tuple[int, int, int]) -> str:
    return f"{of[0]} x ({of[1]} + {of[2]})"


def of_workload(of: tuple[int, int, int]) -> str:
    return " x ".join(map(str, of))


def fusion_table(record: dict) -> Table:
    """One line per fusion and size: time, limit, memory."""
    table = [
        ["batch x tokens", "fusion", "parameters", "forward", "forward + backward",
         "times Cross-Mamba", "limit", "samples/s", "kept", "peak"]
    ]  # fmt: skip
    for of in SIZES:
        for name in fusions.FUSIONS:
            found = {p: one(record, "fusion", name=name, which=p, **size(of)) for p in PASSES}
            both, forward = found["forward+backward"], found["forward"]
            if both is None:
                continue
            memory = one(record, "fusion memory", name=name, **size(of)) or {}
            count = both.get("parameters") or (forward or {}).get("parameters")
            table.append(
                [
                    of_size(of),
                    name,
                    f"{count / 1e6:.1f} M" if count else "",
                    milliseconds((forward or {}).get("seconds")),
                    milliseconds(both.get("seconds")) or both["not_run"],
                    times(both.get("ratio")),
                    limit(both),
                    f"{both['samples_per_second']:.1f}" if "seconds" in both else "",
                    megabytes(memory.get("kept_bytes")),
                    megabytes(memory.get("peak_bytes")),
                ]
            )
    return table


def speedup_table(record: dict) -> Table:
    """Our scan's time per state, and how many times it the baselines take."""
    name = ours(record)
    table = [["", *(f"{of_workload(of)}, {which}" for which in PASSES for of in LARGE)]]
    places = [{"which": which, **workload(of)} for which in PASSES for of in LARGE]

    def line(label: str, cell) -> None:
        table.append([label, *(cell(place) for place in places)])

    def own(place: dict) -> str:
        row = one(record, "ops", name=name, **place)
        return "" if row is None else f"{row['ns_per_element']:.3f} ns"

    line(f"ours ({name}), per state", own)
    for baseline in BASELINES:
        found = rows(record, "ops", name=baseline.name)
        if not any("seconds" in row for row in found):
            continue
        line(
            baseline.name,
            lambda place, b=baseline: _ratio(one(record, "ops", name=b.name, **place)),
        )
    return table


def _ratio(row: dict | None) -> str:
    if row is None:
        return ""
    if "ratio" in row:
        return times(row["ratio"])
    return f"about {times(row['expected_ratio'])}*" if "expected_ratio" in row else "-"


def kernel_table(record: dict) -> Table:
    """Each pass of our scan by itself."""
    table = [["batch x length x dim", "pass", "time", "spread", "ns per state", "limit"]]
    for row in rows(record, "kernel"):
        table.append(
            [
                f"{row['batch']} x {row['length']} x {row['dim']}",
                row["which"],
                milliseconds(row["seconds"]),
                percent(row["spread"]),
                f"{row['ns_per_element']:.3f}",
                limit(row),
            ]
        )
    return table


def ops_table(record: dict) -> Table:
    """Every row of the ops."""
    table = [
        ["batch x length x dim", "pass", "who", "time", "spread", "rounds", "ns per state", "limit",
         "times ours"]
    ]  # fmt: skip
    for row in rows(record, "ops"):
        head = [of_workload((row["batch"], row["length"], row["dim"])), row["which"], row["name"]]
        if "not_run" in row:
            table.append([*head, f"not run: {row['not_run']}", "", "", "", "", _ratio(row)])
            continue
        table.append(
            [
                *head,
                milliseconds(row["seconds"]),
                percent(row["spread"]),
                str(row["rounds"]),
                f"{row['ns_per_element']:.3f}",
                limit(row),
                times(row.get("ratio")),
            ]
        )
    return table


def dtype_table(record: dict) -> Table:
    table = [["batch x length x dim", "pass", "dtype", "time", "spread", "limit", "times float32"]]
    for row in rows(record, "dtypes"):
        shape = of_workload((row["batch"], row["length"], row["dim"]))
        table.append(
            [shape, row["which"], row["dtype"], milliseconds(row["seconds"]),
             percent(row["spread"]), limit(row), f"{row['ratio']:.2f}x"]
        )  # fmt: skip
    return table


def memory_table(record: dict) -> Table:
    """The scan's peak memory by length."""
    table = [
        ["batch x length x dim", "peak, forward + backward", "of it outputs and gradients",
         "beyond them", "of all states of all steps"]
    ]  # fmt: skip
    for row in rows(record, "peak", name=ours(record)):
        shape = of_workload((row["batch"], row["length"], row["dim"]))
        table.append(
            [shape, megabytes(row["peak_bytes"]), megabytes(row["least_bytes"]),
             megabytes(row["extra_bytes"]), f"{100 * row['share_of_states']:.1f} %"]
        )  # fmt: skip
    return table


def block_table(record: dict) -> Table:
    table = [["batch x tokens", "part", "time", "share", "limit", "kept"]]
    for row in rows(record, "block"):
        table.append(
            [of_size((row["batch"], row["n_visual"], row["n_text"])), row["name"],
             milliseconds(row["seconds"]), percent(row.get("share")), limit(row),
             megabytes(row.get("kept_bytes"))]
        )  # fmt: skip
    return table


def scaling_table(record: dict) -> Table:
    """Every row of the two slopes."""
    table = [["pass", "batch", "visual tokens", "layer", "time", "spread", "µs per token", "limit",
              "times Cross-Mamba"]]  # fmt: skip
    for row in [*rows(record, "length"), *rows(record, "batch")]:
        head = [row["which"], str(row["batch"]), str(row["length"]), row["name"]]
        if "not_run" in row:
            table.append([*head, f"not run: {row['not_run']}", "", "", "", ""])
            continue
        table.append(
            [*head, milliseconds(row["seconds"]), percent(row["spread"]),
             f"{1e6 * row['seconds_per_token']:.1f}", limit(row), times(row["ratio"])]
        )  # fmt: skip
    return table


def slope_table(record: dict, lengths=(1024, 4096, 16384)) -> Table:
    """Microseconds per token of one layer, short: the slope."""
    table = [
        ["one layer, µs per token", *(f"{n} tokens, {which}" for which in PASSES for n in lengths)]
    ]
    names = dict.fromkeys(row["name"] for row in rows(record, "length"))
    for name in names:
        cells = []
        for which in PASSES:
            for n in lengths:
                cost = measured(
                    record, "length", "seconds_per_token", name=name, which=which, length=n
                )
                cells.append("-" if cost is None else f"{1e6 * cost:.0f}")
        table.append([name, *cells])
    return table


def model_table(record: dict) -> Table:
    table = [["preset", "batch", "pass", "fusion", "parameters", "of them fusion", "time", "spread",
              "samples/s", "limit", "times cross-mamba", "peak"]]  # fmt: skip
    for row in rows(record, "model"):
        table.append(
            [row["preset"], str(row["batch"]), row["which"], row["name"],
             f"{row['parameters'] / 1e6:.1f} M", f"{row['fusion_parameters'] / 1e6:.1f} M",
             milliseconds(row["seconds"]), percent(row["spread"]),
             f"{row['samples_per_second']:.1f}", limit(row), f"{row['ratio']:.2f}x",
             megabytes(row.get("peak_bytes"))]
        )  # fmt: skip
    return table


# Title -> table of the page's section of one record, in its order.
TABLES = {
    "Fusion alone, float32": fusion_table,
    "One layer against length and batch": scaling_table,
    "Parts of a block": block_table,
    "The scan": ops_table,
    "Half precision": dtype_table,
    "Peak memory of the scan": memory_table,
    "The whole model": model_table,
}
