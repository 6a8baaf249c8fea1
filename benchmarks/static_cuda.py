"""The CUDA half of static.py: the scans' kernels in the built library, cmimtl_kernels/_cuda.so.

A kernel is found by its template arguments, which its mangled name spells out:

    scan_forward_kernel<T, kStates, kShare, kChannels, kStreams, kGate>
    scan_backward_kernel<T, kStates, kShare, kStreams, kGate>

with kStates states of each of kChannels channels in a thread, kShare lanes to a channel, kStreams
streams, and a gate or not. How it is launched, and what a pass moves, the library tells itself:
csrc/cuda/introspection.cu.
"""

import csv
import ctypes
import functools
import io
import re
from pathlib import Path

from benchmarks import sass
from cmimtl_kernels import backends  # and with it torch, which the library needs

LIBRARY = Path(__file__).parents[1] / "cmimtl_kernels" / "_cuda.so"

_DTYPES = {"f": "float32", "NS0_8bfloat16E": "bfloat16", "NS0_7float16E": "float16"}
_DTYPE_CODES = {"float32": 0, "bfloat16": 2, "float16": 3}  # DType of csrc/selective_scan.h
_OPS = {1: "selective_scan", 2: "cross_selective_scan"}
# Those with a gate that hold 16 states of a channel, in one lane or in two.
_NAME = re.compile(
    rf"scan_(forward|backward)_kernelI({'|'.join(_DTYPES)})"
    r"Li(16(?=ELi1E)|8(?=ELi2E))ELi(\d)E(?:Li(\d)E)?Li(\d)ELb1EE"
)


class _Options(ctypes.Structure):
    """ScanOptions of csrc/cuda/traffic.h."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("streams", ctypes.c_int),
        *((name, ctypes.c_bool) for name in "gate skip bias state last_gradient output".split()),
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
    """Threads and bytes of dynamic shared memory of a block of the kernel with a gate."""
    threads, shared = ctypes.c_int(), ctypes.c_int()
    kernel = (which == "backward", _DTYPE_CODES[dtype], streams, True, states, lanes, channels)
    into = (ctypes.byref(threads), ctypes.byref(shared))
    _loaded(LIBRARY).cmimtl_cuda_scan_launch(*kernel, *into)
    return threads.value, shared.value


def traffic(
    which: str, op: str, dtype: str, workload: tuple[int, int, int], dstate: int
) -> dict[str, int]:
    """Bytes that a pass moves with gate, D and delta_bias, by the columns of csrc/cuda/traffic.h;
    workload: batch, length, dim."""
    streams = next(n for n, name in _OPS.items() if name == op)
    options = _Options(_DTYPE_CODES[dtype], streams, gate=True, skip=True, bias=True)
    sizes = (*workload, dstate, 1, backends.BACKENDS["cuda"].checkpoint_every)
    text = _loaded(LIBRARY).cmimtl_cuda_scan_traffic(which == "backward", *sizes, options)
    of_tensors = list(csv.DictReader(io.StringIO(text.decode())))
    columns = ("read", "written", "read_by_blocks", "again", "least")
    return {column: sum(int(row[column]) for row in of_tensors) for column in columns}


def rows(targets: list[str], dtypes: list[str]) -> list[dict]:
    """A row for each kernel with a gate, and at most two lanes to a channel, in the library.

    `states` tells how a launch divides dstate = 16: 16 states of a channel in one thread, or 8 in
    each of two where there are few channels; `channels`, how many a thread has.
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
        # Steps of a channel that one iteration of the pass's loop takes at least.
        steps = _loaded(LIBRARY).cmimtl_cuda_scan_steps(which == "backward")
        row |= figures(kernel, channels * states * steps) | kernel.resident(*block)
        result.append(row)
    order = ("arch", "dtype", "op", "pass", "states", "channels")
    return sorted(result, key=lambda row: [str(row[key]) for key in order])


def figures(kernel: sass.Kernel, elements: int) -> dict:
    """Of the loop with the recurrence, which has one EX2 for each of `elements` at least.

    The tiles of B and C and the checkpoints of the forward pass, every 8 or 16 steps, lie outside
    of it and are not counted: the code of their loops has branches for any dstate, of which one
    runs; all of them are 0.9 slots where a thread has two channels. What the loop loops over in
    turn with an EX2 of its own is left out: the backward pass's output for callers that ask for it
    again.
    """
    loops = {}
    for loop in kernel.loops_without(r"MUFU\.EX2"):
        if iterations := loop.count(r"MUFU\.EX2") // elements:
            loops[loop] = iterations * elements
    rates = {loop: loop.slots / count for loop, count in loops.items()}
    loop = min(rates, key=rates.get)  # not the one of the last steps, if they have one

    def per_element(pattern: str) -> float:
        return loop.count(pattern) / loops[loop]

    slots, mufu = rates[loop], sass.CYCLES_PER_MUFU * per_element("MUFU")
    return {
        "slots_per_element": slots,
        "all_slots_per_element": slots,
        "last_slots_per_element": max(rates.values()),
        "mufu_cycles_per_element": mufu,
        "all_mufu_cycles_per_element": mufu,
        "ex2_per_element": per_element(r"MUFU\.EX2"),
        "shared_per_element": per_element("LDS|STS"),
        "shuffles_per_element": per_element("SHFL"),
        "global_bytes_per_element": loop.bytes(sass.GLOBAL) / loops[loop],
        "registers": kernel.registers,
        "spill_bytes": kernel.spill_bytes,
        "float_atomics": kernel.atomics.total(),
    }
