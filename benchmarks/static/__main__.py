"""Print and write static figures of the GPU kernels, read from compiled code without a GPU."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.static import DTYPES, PASSES, SPLIT_PASSES, TARGETS, rows
from cmimtl.files import check_writable, write_json

COLUMNS = {
    "slots_per_element": "slots",
    "all_slots_per_element": "all slots",
    "last_slots_per_element": "last slots",
    "mufu_cycles_per_element": "MUFU cycles",
    "registers": "registers",
    "spill_bytes": "spilled bytes",
    "shared_bytes": "shared bytes",
    "warps_per_sm": "warps per SM",
    "traffic_over_least": "bytes over least",
    "h100_us": "H100, µs",
    "h100_ex2_limit_us": "EX2 limit",
    "h100_memory_limit_us": "memory limit",
}


def table(found: list[dict]) -> Table:
    """One line for each row."""
    made = Table(
        title="Static figures, for each element: read from compiled code, nothing was run",
        caption=f"times: a model, batch {rows.BATCH}, {rows.STEPS} steps, {rows.DIM} channels,"
        " H100 at its peaks",
    )
    head = ("arch", "pass", "op", "dtype")
    for name in (*head, "kernel"):
        made.add_column(name)
    for name in COLUMNS.values():
        made.add_column(name, justify="right")
    for row in sorted(found, key=lambda row: [row[key] for key in head]):
        detail = row.get("length") or (f"{row['states']} states" if row.get("states") else "")
        detail += " in pairs" if row.get("channels") == 2 else ""
        kernel = f"{row['backend']} {detail}".strip()
        made.add_row(*(row[key] for key in head), kernel, *(_cell(row, key) for key in COLUMNS))
    return made


def _cell(row: dict, key: str) -> str:
    value = row.get(key)
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.{2 if key == 'traffic_over_least' else 1}f}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="cmimtl bench static", description=__doc__)
    both = ["cuda", "triton"]
    passes = (*PASSES, *SPLIT_PASSES)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--backend", nargs="+", choices=both, default=both)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=("float32", "bfloat16"))
    parser.add_argument("--pass", nargs="+", choices=passes, default=PASSES, dest="passes")
    options = parser.parse_args()
    check_writable("bench static", "--json", options.json)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for every column
        console = Console(width=200)
    found = rows.collect(
        options.backend, options.target, options.dtype, options.passes, console.print
    )
    write_json(options.json, rows.by_launch(found))
    console.print(table(found))


if __name__ == "__main__":
    main()
