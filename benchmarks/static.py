"""Static figures of the GPU kernels, read from compiled code: no GPU is needed, and none is used.

    cmimtl bench static --json FILE [--backend cuda triton] [--target sm_90 …] [--dtype float32 …]

An element is one state of one channel at one step. `slots_per_element` and its kin count the
hottest loop, the one over steps that the recurrence of the pass is in; `all_slots_per_element`
counts every such loop of a Triton kernel, what a backward pass recomputes and prepares included. A
CUDA kernel has one, and its forward pass another one, for the last steps of whatever length there
is: `last_slots_per_element`, with all that its branches may leave out. Warps on a multiprocessor
are as many as registers, the shared memory of a launch and the most warps and blocks allow.

Rows of a whole CUDA pass also have what it moves (csrc/cuda/traffic.h, by the plan of a launch):
over the least that has to move, for the workload below, and in bytes for that and the benchmarks'
large ones. Rows for sm_90 have the time of the workload on an H100, as a model: the slowest of its
issue slots, its MUFU pipe and its memory, each at its peak; beside it the least that one EX2 an
element takes, and the least that the memory takes.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import sass
from benchmarks.limits import SCAN_BYTES
from benchmarks.records import PATCHES, TEXT
from cmimtl.files import check_writable
from cmimtl_kernels import backends

TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
BACKENDS = ("cuda", "triton")
# Of a scan, and of one that Triton splits over time.
PASSES = (
    "forward", "backward", "summary", "carry", "summary of gradients", "carry of gradients",
)  # fmt: skip

# H100 SXM: multiprocessors of four parts, each of which starts one warp instruction a cycle.
MULTIPROCESSORS, PARTS, WARP, CLOCK = 132, 4, 32, 1.755e9
LANES_PER_SECOND = MULTIPROCESSORS * PARTS * WARP * CLOCK
BYTES_PER_SECOND = 3.35e12
BATCH, STEPS, DIM = 8, 4096, 1536  # of the modelled workload, at the row's dstate
STREAMS = {"selective_scan": 1, "cross_selective_scan": 2}  # each has STEPS / STREAMS of its own

PEER = "mamba_ssm (static, e9594ce)"
# mamba_ssm's kernels at commit e9594ce, compiled for sm_90 by us and counted in the same way: which
# one runs depends on the length, and a length that is no multiple of its chunk takes a slower path.
# A pair is a range over dtypes and options. What was not read of them is None.
_PEER_SLOTS = {
    # pass, length: float32, bfloat16
    ("forward", "up to 128"): (34, 39),
    ("forward", "up to 256"): (24, 25),
    ("forward", "up to 512"): (18, 21),
    ("forward", "up to 1024"): (19, 22),
    ("forward", "longer"): (20, 23),
    ("forward", "no multiple of the chunk"): ((34, 50), (34, 50)),
    ("backward", "multiple of the chunk"): ((55, 85), (55, 85)),
    ("backward", "no multiple of the chunk"): ((70, 105), (70, 105)),
}
# Its atomics are two adds for each element, where our rows count those in the code of a kernel.
_PEER_BACKWARD = {
    "spill_bytes": (116, 676),
    "float_atomics": 2,
    "float_atomic_bytes_per_element": 8,
}


def peer_rows(dtypes: list[str], keys: Iterable[str] = ()) -> list[dict]:
    """The peer's figures, with all of `keys`; a pair is its least and its most."""
    rows = []
    for (which, length), slots in _PEER_SLOTS.items():
        for dtype, value in zip(("float32", "bfloat16"), slots, strict=True):
            if dtype in dtypes:
                row = {
                    "backend": PEER,
                    "pass": which,
                    "op": "selective_scan",
                    "arch": "sm_90",
                    "dtype": dtype,
                    "dstate": 16,
                    "length": length,
                    "slots_per_element": value,
                }
                row |= _PEER_BACKWARD if which == "backward" else {}
                rows.append(dict.fromkeys(keys) | row)
    return rows


def moved(row: dict) -> dict:
    """Bytes that the workload moves; of a CUDA pass, by traffic.h, those of the large ones too."""
    if row["backend"] != "cuda":
        # Of Triton's kernels there is no such count: the least, with their checkpoints.
        states = 4 * row["dstate"] / backends.BACKENDS["triton"].checkpoint_every
        of_step = SCAN_BYTES[row["pass"]] * DTYPES[row["dtype"]] / DTYPES["float32"] + states
        return dict.fromkeys(("moved_bytes", "least_bytes"), BATCH * STEPS * DIM * of_step)
    from benchmarks import static_cuda

    which = row["pass"], row["op"], row["dtype"]
    workload = (BATCH, STEPS // STREAMS[row["op"]], DIM)
    traffic = {
        "x".join(map(str, sizes)): static_cuda.traffic(*which, sizes, row["dstate"])
        for sizes in (workload, TEXT, PATCHES)
    }
    first, *_ = traffic.values()
    total, least = first["read"] + first["written"], first["least"]
    return {
        "moved_bytes": total,
        "least_bytes": least,
        "traffic_over_least": total / least,
        "traffic": traffic,
    }


def modelled(row: dict) -> dict[str, float]:
    """Microseconds of the workload on an H100, and its two limits."""
    elements = BATCH * STEPS * DIM * row["dstate"]
    memory = row["moved_bytes"] / BYTES_PER_SECOND
    issue = elements * row["all_slots_per_element"] / LANES_PER_SECOND
    mufu = elements * row["all_mufu_cycles_per_element"] / LANES_PER_SECOND
    return {
        "h100_us": 1e6 * max(issue, mufu, memory),
        "h100_ex2_limit_us": 1e6 * elements * sass.CYCLES_PER_MUFU / LANES_PER_SECOND,
        "h100_memory_limit_us": 1e6 * row["least_bytes"] / BYTES_PER_SECOND,
    }


def collect(
    wanted: list[str],
    targets: list[str],
    dtypes: list[str],
    passes: Sequence[str] = PASSES[:2],
    say: Callable[[str], object] = print,
) -> list[dict]:
    """Every row. What cannot be read is left out, and said."""
    rows = []
    if "cuda" in wanted:
        from benchmarks import static_cuda

        if static_cuda.LIBRARY.is_file():
            rows += static_cuda.rows(targets, dtypes)
        else:
            say(f"no rows of the CUDA kernels: {static_cuda.LIBRARY.name} is not built here")
    if "triton" in wanted:
        from benchmarks import static_triton

        rows += static_triton.rows(targets, dtypes, passes)
    for row in rows:
        if row["pass"] in SCAN_BYTES:  # a whole one, and not a kernel of a split scan
            row |= moved(row)
            row |= modelled(row) if row["arch"] == "sm_90" else {}
    keys = dict.fromkeys(key for row in rows for key in row)
    return rows + (peer_rows(dtypes, keys) if "sm_90" in targets else [])


def by_launch(rows: list[dict]) -> dict[str, list[dict]]:
    """`rows`: of each of our backends one of each pass, op, arch, dtype and dstate, the kernel that
    a full GPU runs, and the peer's; `fewer_channels`: the CUDA kernels that take its place where it
    would leave the GPU idle, or where channels do not lie in aligned pairs."""
    full, fewer = [], []
    for row in rows:
        most = max(_states(other) for other in rows if _same(row, other))
        (full if _states(row) == most else fewer).append(row)
    return {"rows": full, "fewer_channels": fewer}


def _states(row: dict) -> int:
    """Of a thread."""
    return (row.get("states") or 0) * (row.get("channels") or 1)


def _same(row: dict, other: dict) -> bool:
    return all(row[k] == other[k] for k in ("backend", "pass", "op", "arch", "dtype", "dstate"))


_COLUMNS = {
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


def table(rows: list[dict]) -> Table:
    made = Table(
        title="Static figures, for each element: read from compiled code, nothing was run",
        caption=f"times: a model, batch {BATCH}, {STEPS} steps, {DIM} channels, H100 at its peaks",
    )
    for heading in ("arch", "pass", "op", "dtype", "kernel"):
        made.add_column(heading)
    for heading in _COLUMNS.values():
        made.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: (row["arch"], row["pass"], row["op"], row["dtype"])):
        detail = row.get("length") or (f"{row['states']} states" if row.get("states") else "")
        detail += " in pairs" if row.get("channels") == 2 else ""
        head = (row["arch"], row["pass"], row["op"], row["dtype"])
        cells = (_text(row.get(key), 2 if key == "traffic_over_least" else 1) for key in _COLUMNS)
        made.add_row(*head, f"{row['backend']} {detail}".strip(), *cells)
    return made


def _text(value, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"{value[0]}-{value[1]}"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="cmimtl bench static", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=PASSES[:2], dest="passes")
    options = parser.parse_args(arguments)
    check_writable("bench static", "--json", options.json)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for every column
        console = Console(width=200)
    rows = collect(options.backend, options.target, options.dtype, options.passes, console.print)
    temporary = options.json.with_name(options.json.name + ".tmp")
    temporary.write_text(json.dumps(by_launch(rows), indent=1) + "\n")
    temporary.replace(options.json)
    console.print(table(rows))


if __name__ == "__main__":
    main()
