"""Rows of the Triton kernels, compiled for the very arguments that a launch gives them."""

import contextlib
import itertools
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.static import PASSES, SPLIT_PASSES, STREAMS, sass
from cmimtl_kernels import testing
from cmimtl_kernels.triton import launch

TARGETS = {
    **{f"sm_{cc}": GPUTarget("cuda", cc, 32) for cc in (80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
DSTATE = 16
# The sizes of the recorded call are multiples of 16, as sizes usually are. None is 1, which Triton
# would compile in.
BATCH, LENGTH, DIM, EVERY = 2, 256, 256, 16
MANY = 100  # multiprocessors: so many that such a scan is split over time

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """A Triton kernel and the arguments that it was launched with."""

    kernel: triton.JITFunction
    arguments: dict[str, object]
    options: dict[str, object]  # of the compiler

    def source(self) -> ASTSource:
        """What Triton's own launcher would compile: constants and None are compiled in, and so is
        the fact that an integer or an address is a multiple of 16."""
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
    """Stands in for a kernel of launch.py and notes what the kernel is called with."""

    def __init__(self, kernel: triton.JITFunction, into: list[Launch]):
        self.kernel, self.into = kernel, into

    def __getitem__(self, grid):
        def call(*positional, **named):
            names = self.kernel.arg_names
            options = {name: named.pop(name) for name in set(named) - set(names)}
            given = dict(zip(names, positional, strict=False))
            self.into.append(Launch(self.kernel, given | named, options))

        return call


def launches(op: str, dtype: torch.dtype, lanes: int, processors: int) -> dict[str, Launch]:
    """The launches of an op's two passes, with gate, D, bias and softplus.

    On many processors the scans are split over time, and other kernels run before each pass.
    """
    recorded: list[Launch] = []
    inputs = testing.scan_inputs(
        BATCH, LENGTH, DIM, DSTATE, cross=op.startswith("cross"), ngroups=1, initial_state=False,
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
        getattr(launch, f"{op}_bwd")(*outs, last, *tensors, checkpoints, *options)
    passes = PASSES
    if len(recorded) > 2:
        passes = (*SPLIT_PASSES[:2], "forward", *SPLIT_PASSES[2:], "backward")
    return dict(zip(passes, recorded, strict=True))


def figures(target: str, dtype: str, op: str, which: str) -> dict:
    """The row of one kernel, for one target."""
    processors = 1 if which in PASSES else MANY
    made = launches(op, getattr(torch, dtype), TARGETS[target].warp_size, processors)[which]
    compiled = made.compile(TARGETS[target])
    row = {
        "backend": "triton",
        "pass": which,
        "op": op,
        "arch": target,
        "dtype": dtype,
        "dstate": DSTATE,
    }
    if target.startswith("gfx"):
        return row | _figures_amd(compiled.asm["amdgcn"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        kernel = sass.read(Path(file.name), TARGETS[target].arch)
    launched = kernel.launched(32 * made.options["num_warps"], compiled.metadata.shared)
    return row | (_per_element(kernel, made) if "CROSS" in made.arguments else {}) | launched


def _per_element(kernel: sass.Kernel, made: Launch) -> dict[str, float]:
    """Issue slots, MUFU cycles, shared-memory accesses and shuffles, each per element.

    An innermost loop that has at least one EX2 for each of its elements goes over steps. An
    innermost loop with fewer EX2 goes over tiles of ROWS steps; all states of a channel share its
    cost.
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

    every = [loop.per_element(n) for loop, n in elements.items()]
    return hottest.per_element(elements[hottest]) | {
        f"all_{name}": sum(figures[name] for figures in every)
        for name in ("slots_per_element", "mufu_cycles_per_element")
    }


def _figures_amd(assembly: str) -> dict:
    """What the assembler notes about a kernel for an AMD GPU."""

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


def rows(targets: Iterable[str], dtypes: Iterable[str], passes: Iterable[str]) -> list[dict]:
    """A row for each kernel, compiled by as many processes as there are cores."""
    jobs = list(itertools.product(targets, dtypes, STREAMS, passes))
    # The compiler runs on one core. The threads that torch has started do not survive a fork.
    processes = min(len(os.sched_getaffinity(0)), len(jobs), 16)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(figures, *zip(*jobs, strict=True)))
