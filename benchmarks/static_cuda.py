"""The CUDA half of static.py: the scans' kernels in the built library, cmimtl_kernels/_cuda.so.

A kernel is found by its template arguments, which its mangled name spells out:

    scan_forward_kernel<T, kStates, kShare, kChannels, kStreams, kGate>
    scan_backward_kernel<T, kStates, kShare, kStreams, kGate>

with kStates states of each of kChannels channels in a thread, kShare lanes to a channel, kStreams
streams, and a gate or not.
"""

import re
from pathlib import Path

from benchmarks import sass

LIBRARY = Path(__file__).parents[1] / "cmimtl_kernels" / "_cuda.so"
THREADS = 128  # of a block: kThreads of csrc/cuda/plan.h
# Steps of a channel that one iteration of a pass's loop takes at least: kStage of scan_forward.cuh,
# kChunk of plan.h.
STEPS = {"forward": 4, "backward": 8}

_DTYPES = {"f": "float32", "NS0_8bfloat16E": "bfloat16", "NS0_7float16E": "float16"}
_OPS = {1: "selective_scan", 2: "cross_selective_scan"}
_NAME = re.compile(
    rf"scan_(forward|backward)_kernelI({'|'.join(_DTYPES)})Li(\d+)ELi(\d+)E(?:Li(\d)E)?Li(\d)ELb1EE"
)


def rows(targets: list[str], dtypes: list[str], library: Path = LIBRARY) -> list[dict]:
    """A row for each kernel with a gate, and at most two lanes to a channel, in the library.

    `states` tells how a launch divides dstate = 16: 16 states of a channel in one thread, or 8 in
    each of two where there are few channels; `channels`, how many a thread has.
    """
    result = []
    for (name, capability), kernel in sass.read_library(library, THREADS).items():
        found = _NAME.search(name)
        if found is None:
            continue
        which, dtype = found.group(1), _DTYPES[found.group(2)]
        states, lanes, channels, streams = (int(n or 1) for n in found.groups()[2:])
        target = f"sm_{capability}"
        if states * lanes != 16 or target not in targets or dtype not in dtypes:
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
        result.append(row | figures(kernel, channels * states * STEPS[which]))
    order = ("arch", "dtype", "op", "pass", "states", "channels")
    return sorted(result, key=lambda row: [str(row[key]) for key in order])


def figures(kernel: sass.Kernel, elements: int) -> dict:
    """Of the loop with the recurrence, which has one EX2 for each of `elements` at least.

    The tiles of B and C and the checkpoints of the forward pass, every 8 or 16 steps, lie outside
    of it and are not counted. What it loops over in turn with an EX2 of its own is left out: the
    backward pass's output for callers that ask for it again.
    """
    loops = {}
    for loop in kernel.loops_without(r"MUFU\.EX2"):
        if iterations := loop.count(r"MUFU\.EX2") // elements:
            loops[loop] = iterations * elements
    loop = min(loops, key=lambda loop: loop.slots / loops[loop])  # not the one of a short rest

    def per_element(pattern: str) -> float:
        return loop.count(pattern) / loops[loop]

    slots, mufu = loop.slots / loops[loop], sass.CYCLES_PER_MUFU * per_element("MUFU")
    return {
        "slots_per_element": slots,
        "all_slots_per_element": slots,
        "mufu_cycles_per_element": mufu,
        "all_mufu_cycles_per_element": mufu,
        "ex2_per_element": per_element(r"MUFU\.EX2"),
        "shared_per_element": per_element("LDS|STS"),
        "shuffles_per_element": per_element("SHFL"),
        "global_bytes_per_element": loop.bytes(sass.GLOBAL) / loops[loop],
        "registers": kernel.registers,
        "spill_bytes": kernel.spill_bytes,
        "warps_per_sm": kernel.warps_per_sm,
        "float_atomics": kernel.atomics.total(),
    }
