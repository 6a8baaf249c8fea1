"""Rows of the CUDA scans: the kernels in the built library, cmimtl_kernels/_cuda.so.

A kernel is found by its template arguments, which its mangled name spells out:

    scan_forward_kernel<T, kStates, kShare, kChannels, kStreams, kGate>
    scan_backward_kernel<T, kStates, kShare, kStreams, kGate>

A thread has kStates states of each of its kChannels channels; kShare threads share a channel. The
library itself tells how a kernel is launched and what a pass moves: csrc/cuda/introspection.cu.
"""

import csv
import ctypes
import functools
import io
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.static import STREAMS, sass
from cmimtl_kernels import backends  # and with it torch, which the library needs

LIBRARY = Path(__file__).parents[2] / "cmimtl_kernels" / "_cuda.so"

_DTYPES = {"f": "float32", "NS0_8bfloat16E": "bfloat16", "NS0_7float16E": "float16"}
_DTYPE_CODES = {"float32": 0, "bfloat16": 2, "float16": 3}  # DType of csrc/selective_scan.h
_OPS = {streams: op for op, streams in STREAMS.items()}
# Kernels with a gate whose channels have 16 states, in one thread or in two.
_NAME = re.compile(
    rf"scan_(forward|backward)_kernelI({'|'.join(_DTYPES)})"
    r"Li(16(?=ELi1E)|8(?=ELi2E))ELi(\d)E(?:Li(\d)E)?Li(\d)ELb1EE"
)


class _Options(ctypes.Structure):
    """ScanOptions of csrc/cuda/traffic.h."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("streams", ctypes.c_int),
        *((name, ctypes.c_bool) for name in "gate skip bias state last_gradient".split()),
    ]


@functools.cache
def _loaded(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.cmimtl_cuda_scan_traffic.argtypes = [ctypes.c_bool, *[ctypes.c_int64] * 6, _Options]
    loaded.cmimtl_cuda_scan_traffic.restype = ctypes.c_char_p
    loaded.cmimtl_cuda_scan_steps.argtypes = [ctypes.c_bool]
    return loaded


def launch(
    which: str, dtype: str, streams: int, states: int, lanes: int, channels: int
) -> tuple[int, int]:
    """The threads of a block of this kernel, and the bytes of its dynamic shared memory."""
    threads, shared = ctypes.c_int(), ctypes.c_int()
    kernel = (which == "backward", _DTYPE_CODES[dtype], streams, True, states, lanes, channels)
    into = (ctypes.byref(threads), ctypes.byref(shared))
    _loaded(LIBRARY).cmimtl_cuda_scan_launch(*kernel, *into)
    return threads.value, shared.value


def traffic(
    which: str, op: str, dtype: str, workload: tuple[int, int, int], dstate: int
) -> dict[str, int]:
    """Bytes that a pass with gate, D and delta_bias moves, summed over its tensors, under the names
    of the columns of csrc/cuda/traffic.h.

    Args:
        workload: batch, length, dim.
    """
    options = _Options(_DTYPE_CODES[dtype], STREAMS[op], gate=True, skip=True, bias=True)
    sizes = (*workload, dstate, 1, backends.BACKENDS["cuda"].checkpoint_every)
    text = _loaded(LIBRARY).cmimtl_cuda_scan_traffic(which == "backward", *sizes, options)
    of_tensors = list(csv.DictReader(io.StringIO(text.decode())))
    columns = ("read", "written", "read_by_blocks", "again", "least")
    return {column: sum(int(row[column]) for row in of_tensors) for column in columns}


def rows(targets: Iterable[str], dtypes: Iterable[str]) -> list[dict]:
    """A row for each kernel of the library that has a gate and at most two threads to a channel.

    `states` is 16 where one thread has all states of a channel, and 8 where two threads share a
    channel, as they do when channels are few. `channels` says how many channels a thread has.
    """
    result = []
    for (name, capability), kernel in sass.read_library(LIBRARY, _NAME).items():
        found = _NAME.search(name)
        which, dtype = found.group(1), _DTYPES[found.group(2)]
        states, lanes, channels, streams = (int(n or 1) for n in found.groups()[2:])
        target = f"sm_{capability}"
        if target not in targets or dtype not in dtypes:
            continue
        row = {
            "backend": "cuda",
            "pass": which,
            "op": _OPS[streams],
            "arch": target,
            "dtype": dtype,
            "dstate": states * lanes,
            "states": states,
            "channels": channels,
        }
        block = launch(which, dtype, streams, states, lanes, channels)
        # The fewest steps of a channel that one iteration of the pass's loop takes.
        steps = _loaded(LIBRARY).cmimtl_cuda_scan_steps(which == "backward")
        row |= figures(kernel, channels * states * steps) | kernel.launched(*block)
        result.append(row)
    order = ("arch", "dtype", "op", "pass", "states", "channels")
    return sorted(result, key=lambda row: [str(row[key]) for key in order])


def figures(kernel: sass.Kernel, elements: int) -> dict:
    """The figures of a kernel's hot loop, which has at least one EX2 for each of its elements.

    The loops that load tiles of B and C and that store checkpoints every 8 or 16 steps are not
    counted. Their code has a branch for each dstate, of which a call takes one; together they take
    0.9 slots where a thread has two channels.

    Args:
        elements: the fewest elements of one iteration.
    """
    rates = []
    for loop in kernel.loops_without(r"MUFU\.EX2"):
        if iterations := loop.count(r"MUFU\.EX2") // elements:
            rates.append(loop.per_element(iterations * elements))
    rates.sort(key=lambda rate: rate["slots_per_element"])
    hot, last = rates[0], rates[-1]  # a loop of the last steps has more slots
    return hot | {
        "all_slots_per_element": hot["slots_per_element"],
        "last_slots_per_element": last["slots_per_element"],
        "all_mufu_cycles_per_element": hot["mufu_cycles_per_element"],
    }
