"""Every row of static figures: those of our kernels with their modelled time, and mamba_ssm's."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.baselines import PATCHES, TEXT
from benchmarks.limits import SCAN_BYTES
from benchmarks.static import DTYPES, PASSES, STREAMS, sass
from cmimtl_kernels import backends

# H100 SXM: multiprocessors of four parts, each of which starts one warp instruction a cycle.
MULTIPROCESSORS, PARTS, WARP, CLOCK = 132, 4, 32, 1.755e9
LANES_PER_SECOND = MULTIPROCESSORS * PARTS * WARP * CLOCK
BYTES_PER_SECOND = 3.35e12
# The workload whose time is modelled, at the row's dstate. An op with two streams has half of the
# steps in each.
BATCH, STEPS, DIM = 8, 4096, 1536

PEER = "mamba_ssm (static, e9594ce)"
# Issue slots per element of mamba_ssm's kernels at commit e9594ce, compiled for sm_90 and counted
# like ours. The length decides which kernel runs; a length that is no multiple of the kernel's
# chunk takes a slower path. A pair is the least and the most over dtypes and options. A figure that
# was not read is None.
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
# mamba_ssm's float atomics are two adds for each element; a row of ours counts the atomic
# instructions in the code of a kernel.
_PEER_BACKWARD = {
    "spill_bytes": (116, 676),
    "float_atomics": 2,
    "float_atomic_bytes_per_element": 8,
}


def collect(
    wanted: Iterable[str],
    targets: Iterable[str],
    dtypes: Iterable[str],
    passes: Sequence[str] = PASSES,
    say: Callable[[str], object] = print,
) -> list[dict]:
    """Every row of these backends, targets, dtypes and passes. Rows that cannot be read are left
    out, and `say` is told why."""
    rows = []
    if "cuda" in wanted:
        from benchmarks.static import cuda

        if cuda.LIBRARY.is_file():
            rows += cuda.rows(targets, dtypes)
        else:
            say(f"no rows of the CUDA kernels: {cuda.LIBRARY.name} is not built here")
    if "triton" in wanted:
        from benchmarks.static import triton

        rows += triton.rows(targets, dtypes, passes)
    for row in rows:
        if row["pass"] in PASSES:
            row |= moved(row)
            row |= modelled(row) if row["arch"] == "sm_90" else {}
    keys = dict.fromkeys(key for row in rows for key in row)
    return rows + (peer_rows(dtypes, keys) if "sm_90" in targets else [])


def moved(row: dict) -> dict:
    """Bytes that a pass moves for the modelled workload.

    The library counts them for a CUDA kernel, also for two workloads of the benchmarks. For a
    Triton kernel they are the least that has to move, and its checkpoints.
    """
    if row["backend"] == "triton":
        checkpoints = 4 * row["dstate"] / backends.BACKENDS["triton"].checkpoint_every
        of_step = SCAN_BYTES[row["pass"]] * DTYPES[row["dtype"]] / DTYPES["float32"] + checkpoints
        return dict.fromkeys(("moved_bytes", "least_bytes"), BATCH * STEPS * DIM * of_step)
    from benchmarks.static import cuda

    which = row["pass"], row["op"], row["dtype"]
    modelled_sizes = (BATCH, STEPS // STREAMS[row["op"]], DIM)
    traffic = {
        "x".join(map(str, sizes)): cuda.traffic(*which, sizes, row["dstate"])
        for sizes in (modelled_sizes, TEXT, PATCHES)
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
    """Microseconds that the modelled workload takes on an H100, and its two limits."""
    elements = BATCH * STEPS * DIM * row["dstate"]
    memory = row["moved_bytes"] / BYTES_PER_SECOND
    issue = elements * row["all_slots_per_element"] / LANES_PER_SECOND
    mufu = elements * row["all_mufu_cycles_per_element"] / LANES_PER_SECOND
    return {
        "h100_us": 1e6 * max(issue, mufu, memory),
        "h100_ex2_limit_us": 1e6 * elements * sass.CYCLES_PER_MUFU / LANES_PER_SECOND,
        "h100_memory_limit_us": 1e6 * row["least_bytes"] / BYTES_PER_SECOND,
    }


def peer_rows(dtypes: Iterable[str], keys: Iterable[str] = ()) -> list[dict]:
    """mamba_ssm's figures in these dtypes, with all of `keys`."""
    known = {"backend": PEER, "op": "selective_scan", "arch": "sm_90", "dstate": 16}
    return [
        dict.fromkeys(keys)
        | known
        | {"pass": which, "dtype": dtype, "length": length, "slots_per_element": value}
        | (_PEER_BACKWARD if which == "backward" else {})
        for (which, length), slots in _PEER_SLOTS.items()
        for dtype, value in zip(("float32", "bfloat16"), slots, strict=True)
        if dtype in dtypes
    ]


def by_launch(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows under two keys. "rows": of each backend's pass, op, arch, dtype and dstate the
    kernel that a full GPU runs; and the peer's. "fewer_channels": the CUDA kernels that run instead
    where there are too few channels to fill the GPU, or where channels are not in aligned pairs."""
    full, fewer = [], []
    for row in rows:
        most = max(_states_of_thread(other) for other in rows if _same(row, other))
        (full if _states_of_thread(row) == most else fewer).append(row)
    return {"rows": full, "fewer_channels": fewer}


def _states_of_thread(row: dict) -> int:
    return (row.get("states") or 0) * (row.get("channels") or 1)


def _same(row: dict, other: dict) -> bool:
    return all(row[k] == other[k] for k in ("backend", "pass", "op", "arch", "dtype", "dstate"))
