"""csrc/cuda/traffic.h against the bytes that the kernels read and write when they run, and against
the least."""

import csv
import ctypes
import io
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from tests.cuda_on_cpu import build

DTYPES = {"float32": 0, "bfloat16": 2, "float16": 3}  # DType of csrc/selective_scan.h
PASSES = ("forward", "backward")
SIZES = ("batch", "length", "dim", "dstate", "ngroups")


class Options(ctypes.Structure):
    """ScanOptions of csrc/cuda/traffic.h."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("streams", ctypes.c_int),
        *((name, ctypes.c_bool) for name in "gate skip bias state last_gradient".split()),
    ]


@dataclass(frozen=True)
class Scan:
    """Sizes and options of a call, all options on."""

    batch: int
    length: int
    dim: int
    dstate: int = 16
    ngroups: int = 1
    checkpoints: bool = True
    dtype: str = "float32"
    streams: int = 1
    gate: bool = True
    optional: bool = True  # D, delta_bias and the states

    def __str__(self) -> str:
        op = "cross" if self.streams == 2 else "one"
        sizes = "x".join(str(getattr(self, name)) for name in SIZES)
        options = [name for name in ("gate", "optional") if getattr(self, name)]
        return "-".join([op, self.dtype, sizes, *options])

    def arguments(self, which: str, every: int) -> tuple:
        """Those of the library's functions, with a checkpoint `every` so many steps."""
        on = self.optional
        options = Options(DTYPES[self.dtype], self.streams, self.gate, on, on, on, on)
        sizes = (getattr(self, name) for name in SIZES)
        return which == "backward", *sizes, every * self.checkpoints, options


def chunk(kernels) -> int:
    """The number of steps of a chunk of the backward pass, which begins at a checkpoint."""
    return kernels.cmimtl_cuda_scan_steps(True)


def table(kernels, name: str, which: str, scan: Scan) -> dict[str, Counter]:
    """Bytes of each tensor by the column of the table that a function of the library returns."""
    text = getattr(kernels, name)(*scan.arguments(which, chunk(kernels))).decode()
    result: dict[str, Counter] = {}
    for row in csv.DictReader(io.StringIO(text)):
        of_tensor = result.setdefault(row.pop("tensor"), Counter())
        of_tensor.update({column: int(n) for column, n in row.items()})  # both streams as one
    return result


def loaded(path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.simt_set_warps_to_fill.argtypes = [ctypes.c_int64]
    library.simt_set_warps_to_fill(0)
    for name in ("cmimtl_cuda_scan_traffic", "count_scan"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_bool, *[ctypes.c_int64] * (len(SIZES) + 1), Options]
        function.restype = ctypes.c_char_p
    library.cmimtl_cuda_scan_steps.argtypes = [ctypes.c_bool]
    library.cmimtl_cuda_most_states.argtypes = [ctypes.c_int64]
    library.cmimtl_cuda_most_states.restype = ctypes.c_int64
    return library


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return loaded(build.counted())


def told(kernels, which: str, scan: Scan) -> dict[str, Counter]:
    return table(kernels, "cmimtl_cuda_scan_traffic", which, scan)


def counted(kernels, which: str, scan: Scan) -> dict[str, Counter]:
    return table(kernels, "count_scan", which, scan)


def check(formula: dict[str, Counter], counts: dict[str, Counter]) -> None:
    for name in formula.keys() | counts.keys():
        expected, found = formula.get(name, Counter()), counts.get(name, Counter())
        for column in ("read", "written", "read_by_blocks"):
            assert found[column] == expected[column], (name, column, found, expected)
        assert found["written_by_blocks"] == found["written"], name


# The carries of a split scan have blocks of 128 states of any channel, so dim * dstate is a
# multiple of it in the last three.
CASES = [
    Scan(1, 21, 130),
    Scan(2, 21, 130, dtype="bfloat16"),
    Scan(2, 9, 6, ngroups=3, dstate=5, streams=2),
    Scan(1, 13, 12, ngroups=2, streams=2, dtype="bfloat16"),
    Scan(1, 13, 6, gate=False, optional=False),
    Scan(1, 11, 6, gate=False, optional=False, streams=2, dtype="bfloat16"),
    Scan(1, 9, 5, dstate=40),
    Scan(34, 3, 5),
    Scan(17, 2, 3, dstate=5, gate=False, optional=False),
    Scan(1, 9, 5, dstate=256, dtype="bfloat16"),
    Scan(1, 520, 8),
    Scan(2, 261, 8, streams=2, dtype="bfloat16"),
    Scan(1, 520, 8, gate=False, optional=False),
]
SPLIT = CASES[-3:]


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("scan", CASES, ids=str)
def test_formula_is_what_the_kernels_move(kernels, which, scan):
    formula = told(kernels, which, scan)
    check(formula, counted(kernels, which, scan))
    assert ("states of segments" in formula) == (scan in SPLIT)


@pytest.mark.parametrize(
    "scan", [Scan(1, 21, 260), Scan(1, 11, 260, dtype="bfloat16", streams=2)], ids=str
)
def test_formula_with_two_channels_in_a_thread(kernels, scan):
    alone = told(kernels, "forward", scan)
    kernels.simt_set_warps_to_fill(1)
    try:
        formula = told(kernels, "forward", scan)
        check(formula, counted(kernels, "forward", scan))
    finally:
        kernels.simt_set_warps_to_fill(0)
    assert formula["B"]["read_by_blocks"] == 2 * formula["B"]["read"]  # 256 channels in a block
    assert alone["B"]["read_by_blocks"] == 5 * alone["B"]["read"]  # 64


def test_formula_without_checkpoints(kernels):
    scan = Scan(1, 21, 6, checkpoints=False)
    formula = told(kernels, "forward", scan)
    assert "checkpoints" not in formula
    check(formula, counted(kernels, "forward", scan))


@pytest.mark.parametrize("change", [{"length": 22}, {"gate": False}, {"dtype": "float16"}], ids=str)
def test_another_formula_is_seen(kernels, change):
    scan = Scan(1, 21, 6)
    counts = counted(kernels, "backward", scan)
    with pytest.raises(AssertionError):
        check(told(kernels, "backward", replace(scan, **change)), counts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_block_reads_again(kernels, dtype):
    """Each checkpoint a second time, and of all else at most what follows the first chunk's."""
    scan = Scan(1, 40, 128, dtype=dtype)  # every thread has a channel
    formula, counts = (f(kernels, "backward", scan) for f in (told, counted))
    for name, count in counts.items():
        of_tensor = formula.get(name, Counter())
        again = count["asked"] - count["read_by_blocks"]
        if name == "checkpoints":
            assert again == of_tensor["again"] == of_tensor["read"]
        else:
            assert of_tensor["again"] == 0
            assert again <= count["read_by_blocks"] * chunk(kernels) / scan.length, name


def over_least(kernels, scan: Scan, *passes: str) -> float:
    moved = sum((row for which in passes for row in told(kernels, which, scan).values()), Counter())
    return (moved["read"] + moved["written"]) / moved["least"]


# (batch, length): most bytes over the least, forward, backward and both. Scans of 192 warps are
# split in time on the way back, or they would leave two thirds of an H100 idle: delta, z, dout and
# C are read twice then, but for the first segment's.
MOST = {
    "float32": {
        (16, 64): (1.01, 1.06, 1.04),
        (4, 1154): (1.01, 1.37, 1.22),
        (8, 4096): (1.01, 1.06, 1.04),
        (200, 64): (1.01, 1.06, 1.04),
        (16, 600): (1.01, 1.07, 1.04),
    },
    "bfloat16": {
        (16, 64): (1.01, 1.10, 1.06),
        (4, 1154): (1.01, 1.38, 1.22),
        (8, 4096): (1.01, 1.10, 1.06),
        (200, 64): (1.01, 1.10, 1.06),
        (16, 600): (1.01, 1.10, 1.06),
    },
}


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("sizes", MOST["float32"])
@pytest.mark.parametrize("dtype", MOST)
def test_little_more_than_the_least_is_moved(kernels, dtype, sizes, streams):
    scan = Scan(*sizes, 1536, dtype=dtype, streams=streams)
    forward, backward, both = MOST[dtype][sizes]
    assert over_least(kernels, scan, "forward") <= forward
    assert over_least(kernels, scan, "backward") <= backward
    assert over_least(kernels, scan, *PASSES) <= both


def shared_bytes(kernels, states: int, channel_lanes: int) -> int:
    """Of a block of the cross scan's backward pass, with a gate."""
    threads, shared = ctypes.c_int(), ctypes.c_int()
    kernels.cmimtl_cuda_scan_launch(
        True, DTYPES["float32"], 2, True, states, channel_lanes, 1, ctypes.byref(threads),
        ctypes.byref(shared),
    )  # fmt: skip
    assert threads.value == 128
    return shared.value


def test_shared_memory_of_the_backward_scan(kernels):
    """What the library asks of a device for the largest dstate is no more than it takes, to a KiB,
    and every device has what it takes for others."""
    for lanes in (1, 2, 4, 8):
        assert shared_bytes(kernels, 16, lanes) <= 99 * 1024
    assert kernels.cmimtl_cuda_most_states(99 * 1024) == 16 * 8
    taken = shared_bytes(kernels, 16, 256 // 16)
    assert kernels.cmimtl_cuda_most_states(taken - 1) == 16 * 8
    assert kernels.cmimtl_cuda_most_states(taken + 1024) == 256
