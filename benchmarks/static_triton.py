"""The Triton half of static.py: kernels compiled for the arguments that a launch gives them."""

import contextlib
import multiprocessing
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import sass
from cmimtl_kernels import testing
from cmimtl_kernels.triton import launch

TARGETS = {
    **{f"sm_{cc}": GPUTarget("cuda", cc, 32) for cc in (80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PASSES = (
    "forward", "backward", "summary", "carry", "summary of gradients", "carry of gradients",
)  # fmt: skip
OPS = ("selective_scan", "cross_selective_scan")
DSTATE = 16
# Large enough that no size is 1, which would be compiled in; multiples of 16, as sizes are.
BATCH, LENGTH, DIM, EVERY = 2, 256, 256, 16
# Multiprocessors enough to split such a scan over time.
MANY = 100

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments that it was launched with."""

    kernel: triton.JITFunction
    arguments: dict[str, object]
    options: dict[str, object]  # of the compiler

    def source(self) -> ASTSource:
        """As Triton's launcher would: None, and constants, are compiled in; so is that an integer
        or an address is a multiple of 16."""
        signature, constants, divisible = {}, {}, {}
        names = self.kernel.arg_names
        for index, name in enumerate(names):
            value = self.arguments[name]
            if value is None or self.kernel.params[index].is_constexpr:
                signature[name], constants[name] = "constexpr", value
                continue
            signature[name] = "i32" if isinstance(value, int) else _TYPES[value.dtype]
            if not isinstance(value, int) or value % 16 == 0:
                divisible[index,] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, divisible)

    def compile(self, target: GPUTarget):
        return triton.compile(self.source(), target=target, options=self.options)


class Recorder:
    """Stands where launch.py has a kernel, and notes what it is called with."""

    def __init__(self, kernel: triton.JITFunction, into: list[Launch]):
        self.kernel, self.into = kernel, into

    def __getitem__(self, grid):
        def call(*positional, **named):
            names = self.kernel.arg_names
            options = {name: named.pop(name) for name in set(named) - set(names)}
            given = dict(zip(names, positional, strict=False))
            self.into.append(Launch(self.kernel, given | named, options))

        return call


def launches(
    op: str, dtype: torch.dtype, dstate: int = DSTATE, lanes: int = 32, processors: int = 1
) -> dict[str, Launch]:
    """The launches of an op's two passes, with gate, D, bias and softplus.

    On many processors the scans are split over time, and the passes have kernels before them.
    """
    recorded: list[Launch] = []
    inputs = testing.scan_inputs(
        BATCH, LENGTH, DIM, dstate, cross=op.startswith("cross"), ngroups=1, initial_state=False,
        dtype=dtype,
    )  # fmt: skip
    tensors = inputs.values()  # in the order of the op's schema, lengths last
    with contextlib.ExitStack() as stack:
        for name in ("scan_forward", "scan_backward", "segment_summary", "segment_carry"):
            kernel = getattr(launch, name)
            stack.enter_context(mock.patch.object(launch, name, Recorder(kernel, recorded)))
        stack.enter_context(mock.patch.object(launch, "lanes_of", lambda x: lanes))
        stack.enter_context(mock.patch.object(launch, "processors_of", lambda x: processors))
        options = (True, False, EVERY)
        *outs, last, checkpoints = getattr(launch, f"{op}_fwd")(*tensors, *options)
        getattr(launch, f"{op}_bwd")(*outs, last, *tensors, checkpoints, *options, False)
    passes = ("forward", "backward")
    if len(recorded) > 2:
        passes = (
            "summary", "carry", "forward", "summary of gradients", "carry of gradients", "backward",
        )  # fmt: skip
    return dict(zip(passes, recorded, strict=True))


def figures(op: str, which: str, dtype: str, target: str, dstate: int = DSTATE) -> dict:
    """One row: a kernel's figures for one target."""
    processors = 1 if which in ("forward", "backward") else MANY
    made = launches(op, DTYPES[dtype], dstate, TARGETS[target].warp_size, processors)[which]
    compiled = made.compile(TARGETS[target])
    row = {
        "backend": "triton",
        "pass": which,
        "op": op,
        "arch": target,
        "dtype": dtype,
        "dstate": dstate,
    }
    if target.startswith("gfx"):
        return row | _figures_amd(compiled.asm["amdgcn"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        kernel = sass.read(Path(file.name), TARGETS[target].arch)
    per_element = _per_element(kernel, made) if "CROSS" in made.arguments else {}
    return (
        row
        | per_element
        | {
            "registers": kernel.registers,
            "spill_bytes": kernel.spill_bytes,
            "float_atomics": kernel.atomics.total(),
        }
        | kernel.resident(32 * made.options["num_warps"], compiled.metadata.shared)
    )


def _per_element(kernel: sass.Kernel, made: Launch) -> dict[str, float]:
    """Issue slots, MUFU cycles, and shared-memory accesses and shuffles, per element.

    An innermost loop with one EX2 or more for each of its elements is one over steps. One with
    fewer is over tiles of ROWS steps, whose cost all states of a channel share.
    """
    arguments = made.arguments
    streams = 2 if arguments["CROSS"] else 1
    channels = arguments.get("CHANNELS", 1) * arguments["LANES"] // 32  # of a thread
    tiled = "ROWS" in arguments
    of_step = arguments["N"] * channels * (1 if tiled else streams)
    elements = {}
    for loop in kernel.innermost_loops:
        ex2 = loop.count(r"MUFU\.EX2")
        if ex2 >= of_step:
            elements[loop] = ex2 // of_step * of_step
        elif ex2 and tiled:
            elements[loop] = arguments["N"] * channels * streams * arguments["ROWS"]
    by_step = [loop for loop in elements if loop.count(r"MUFU\.EX2") >= of_step]
    hottest = max(by_step, key=lambda loop: loop.slots)

    def per_element(pattern: str) -> float:
        return hottest.count(pattern) / elements[hottest]

    return {
        "slots_per_element": hottest.slots / elements[hottest],
        "all_slots_per_element": sum(loop.slots / n for loop, n in elements.items()),
        "mufu_cycles_per_element": sass.CYCLES_PER_MUFU * per_element("MUFU"),
        "all_mufu_cycles_per_element": sass.CYCLES_PER_MUFU
        * sum(loop.count("MUFU") / n for loop, n in elements.items()),
        "ex2_per_element": per_element(r"MUFU\.EX2"),
        "shared_per_element": per_element("LDS|STS"),
        "shuffles_per_element": per_element("SHFL"),
        "global_bytes_per_element": hottest.bytes(sass.GLOBAL) / elements[hottest],
    }


def _figures_amd(assembly: str) -> dict:
    """What the assembler's notes say of a kernel."""

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly).group(1))

    return {
        "registers": field("vgpr_count"),
        "spill_bytes": 4 * field("vgpr_spill_count"),
        "scratch_bytes": field("private_segment_fixed_size"),
        "shared_bytes": field("group_segment_fixed_size"),
        "float_atomics": len(
            re.findall(r"\b(?:global|flat|buffer)_atomic_\w*f(?:16|32)", assembly)
        ),
    }


def rows(targets: list[str], dtypes: list[str], passes: list[str]) -> list[dict]:
    jobs = [
        (op, which, dtype, target)
        for target in targets
        for dtype in dtypes
        for op in OPS
        for which in passes
    ]
    # A compiler runs on one core, and each process imports torch; threads that it has started do
    # not survive a fork.
    processes = min(len(os.sched_getaffinity(0)), len(jobs), 16)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(figures, *zip(*jobs, strict=True)))
