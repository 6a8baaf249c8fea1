"""What the machine could do, and the least work of a call: `Work.seconds` is the limit of a row.

On a CPU the rates of the FMA pipes and of the memory are measured in the same run. On a GPU the
memory's is measured, and those of the FMA and EX2 pipes follow from the number of its
multiprocessors and their clock.
"""

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks import measure
from cmimtl_kernels import backends

# (FMA-pipe instructions, EX2 instructions) that one state of one channel and step needs at least.
# CPU, forward: delta * A folded into the reduction 1, polynomial of exp2 6, state 2, output 1.
# Backward: the forward's again without the output, the gradients of state, A, B, C and delta.
# GPU, forward: delta * A, the product with u * B, state, output, and one EX2 per state. Backward:
# the same without the output, 9 for the gradients.
SCAN_OPS = {
    "cpu": {"forward": (10, 0), "backward": (18, 0)},
    "cuda": {"forward": (4, 1), "backward": (12, 1)},
}

# Bytes that the scan moves at least for one channel step, float32. Forward: u, delta, z in, out
# out. Backward: u, delta, z, dout in, du, ddelta, dz out. B and C are shared by all channels, and
# whether a forward pass leaves states for the backward pass is up to whoever implements them.
SCAN_BYTES = {"forward": 16, "backward": 28}

# CUDA's float32 FMA instructions per clock of a multiprocessor, by compute capability; EX2 are 16
# on all of them. Source: CUDA C++ Programming Guide, throughput of arithmetic instructions.
_FMA_PER_CLOCK = {7: 64, (8, 0): 64, 8: 128, 9: 128, 10: 128, 12: 128}
_EX2_PER_CLOCK = 16


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second; an EX2 rate on a GPU alone."""

    fma: float
    bytes: float
    ex2: float | None = None


@dataclass(frozen=True)
class Work:
    """The least that a call must do, in units of `Rates`."""

    fma: float
    bytes: float
    ex2: float = 0.0

    def seconds(self, rates: Rates) -> tuple[float, str]:
        """The least time, and which limit it is: the pipes and the memory work side by side."""
        least = {"FMA": self.fma / rates.fma, "memory": self.bytes / rates.bytes}
        if self.ex2:
            least["EX2"] = self.ex2 / rates.ex2
        which = max(least, key=least.get)
        return least[which], which

    def __add__(self, other: "Work") -> "Work":
        return Work(self.fma + other.fma, self.bytes + other.bytes, self.ex2 + other.ex2)


def scan_work(batch: int, length: int, dim: int, dstate: int, which: str, device: str) -> Work:
    """Of a selective scan with float32 inputs; which: forward, backward or forward+backward."""
    total = Work(0, 0)
    for part in which.split("+"):
        fma, ex2 = SCAN_OPS[device][part]
        elements = batch * length * dim * dstate
        moved = batch * length * dim * SCAN_BYTES[part]
        total += Work(fma * elements, moved, ex2 * elements)
    return total


def module_work(
    call: Callable[[], object], parameters: int, which: str, device: str
) -> tuple[Work, Work]:
    """Of a call of modules, which runs once: all of it, and its GEMMs alone.

    Matrix products, convolutions and attention count by their shapes and scans by their states;
    elementwise work is left out, as it could be fused into them. Bytes are those of the parameters,
    read once by each pass and their gradients written once, and what the scans move.
    """
    counter = _Counter(device)
    with counter:
        call()
    passes = {"forward": 1, "forward+backward": 3}[which]
    gemms = Work(counter.gemm_flops / 2, 4 * passes * parameters)
    return sum(counter.scans, gemms), gemms


class _Counter(TorchDispatchMode):
    """Counts what runs under it. torch's own FlopCounterMode has no attention on a CPU, and its
    hooks do not go with autograd.grad for leaves."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.gemm_flops = 0
        self.scans: list[Work] = []
        aten = torch.ops.aten
        self.attention = {
            aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop_count,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop_count,
        }
        # op -> its pass and the place of delta among its arguments. A follows delta; the backward
        # pass has the gradients of the outputs and of the last state before all else.
        self.scan_ops = {
            getattr(getattr(torch.ops, backend.namespace), f"{op}_{suffix}"): (which, place)
            for backend in backends.BACKENDS.values()
            if backend.namespace
            for op, streams in (("selective_scan", 1), ("cross_selective_scan", 2))
            if op in backend.ops
            for suffix, which, place in (
                ("fwd", "forward", streams),
                ("bwd", "backward", 2 * streams + 1),
            )
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func.overloadpacket
        if op in self.scan_ops:
            which, place = self.scan_ops[op]
            (batch, steps, dim), (_, dstate) = args[place].shape, args[place + 1].shape
            self.scans.append(scan_work(batch, steps, dim, dstate, which, self.device))
        elif op in self.attention:
            shapes = [x.shape for x in args if isinstance(x, torch.Tensor)]
            count = self.attention[op]
            self.gemm_flops += count(*shapes[: 3 if count is sdpa_flop_count else 4])
        elif op in flop_registry:
            self.gemm_flops += flop_registry[op](*args, **kwargs, out_val=out)
        return out


def rates(threads: int, device: str) -> Rates | None:
    """Of this machine, now; None where the FMA rate cannot be measured."""
    moved = _bandwidth(threads, device)
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        of_major = _FMA_PER_CLOCK[gpu.major]
        fma = _FMA_PER_CLOCK.get((gpu.major, gpu.minor), of_major)
        clocks = gpu.multi_processor_count * 1e3 * gpu.clock_rate  # kHz, the highest
        return Rates(fma * clocks, moved, _EX2_PER_CLOCK * clocks)
    rate = fma_rate(threads)
    return None if rate is None else Rates(rate, moved)


@functools.cache
def _bandwidth(threads: int, device: str, megabytes: int = 256) -> float:
    """Bytes per second of a copy that fits no cache, reads and writes counted."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    source = torch.ones((4 if device == "cuda" else 1) * megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    best = min(measure.once(lambda: target.copy_(source)) for _ in range(5))
    torch.set_num_threads(before)
    return 2 * source.numel() * 4 / best


def fma_rate(threads: int, iterations: int = 4_000_000) -> float | None:
    """Scalar float32 FMA-pipe operations per second of `threads` threads; None without a
    compiler."""
    library = _library()
    if library is None:
        return None
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter lock
        found = list(pool.map(lambda _: library.fma_rate(iterations), range(threads)))
    return sum(found) * library.fma_lanes()


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    folder = Path(tempfile.mkdtemp(prefix="cmimtl-limits-"))
    target = folder / "fma_rate.so"
    source = Path(__file__).with_name("fma_rate.c")
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", target]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    library.fma_rate.restype = ctypes.c_double
    library.fma_rate.argtypes = [ctypes.c_long]
    shutil.rmtree(folder)  # the loaded library stays mapped
    return library
