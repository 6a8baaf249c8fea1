"""What the machine could do, and the least work of a call: `Work.seconds` is the limit of a row.

The rate of the memory is measured in the same run, and on a CPU that of the FMA pipes. On a GPU the
rates of the FMA and EX2 pipes follow from the number of multiprocessors and their clock.
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

# The fewest FMA and EX2 instructions that a scan needs for one state of one channel at one step.
# CPU, forward 10 FMA: 1 for delta * A, which is folded into the reduction of exp2's argument, 6 for
# exp2's polynomial, 2 for the state, 1 for the output. Backward 18: the forward's 9 before the
# output, and 9 for the gradients of state, A, B, C and delta.
# GPU, forward 4 FMA and 1 EX2: delta * A, the product with u * B, the state, the output. Backward
# 12 FMA and 1 EX2: the forward's 3 before the output, and 9 for the gradients.
SCAN_OPS = {
    "cpu": {"forward": (10, 0), "backward": (18, 0)},
    "cuda": {"forward": (4, 1), "backward": (12, 1)},
}

# The fewest bytes that a scan in float32 moves for one channel at one step. Forward: it reads u,
# delta and z and writes out. Backward: it reads u, delta, z and dout and writes du, ddelta and dz.
# B and C do not count, as all channels share them; nor do checkpoints, which not every scan needs.
SCAN_BYTES = {"forward": 16, "backward": 28}

# Float32 FMA instructions that an NVIDIA multiprocessor does in a cycle, by compute capability; of
# EX2 every one does 16. Source: CUDA C++ Programming Guide, throughput of arithmetic instructions.
_FMA_PER_CLOCK = {7: 64, (8, 0): 64, 8: 128, 9: 128, 10: 128, 12: 128}
_EX2_PER_CLOCK = 16


@dataclass(frozen=True)
class Rates:
    """What the machine does in a second. Only a GPU has an EX2 rate."""

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
        """The least time, as pipes and memory work side by side; and which of them limits it."""
        least = {"FMA": self.fma / rates.fma, "memory": self.bytes / rates.bytes}
        if self.ex2:
            least["EX2"] = self.ex2 / rates.ex2
        which = max(least, key=least.get)
        return least[which], which

    def __add__(self, other: "Work") -> "Work":
        return Work(self.fma + other.fma, self.bytes + other.bytes, self.ex2 + other.ex2)


def scan_work(batch: int, length: int, dim: int, dstate: int, which: str, device: str) -> Work:
    """The least work of a selective scan in float32; which: forward, backward, forward+backward."""
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
    """The least work of a call of modules, and that of its GEMMs alone. The call runs once.

    Matrix products, convolutions and attention count by their shapes, scans by their states.
    Elementwise work could be fused into them and does not count. Each pass reads the parameters
    once, a backward pass writes their gradients once, and scans move their own bytes.
    """
    counter = _Counter(device)
    with counter:
        call()
    passes = {"forward": 1, "forward+backward": 3}[which]
    gemms = Work(counter.gemm_flops / 2, 4 * passes * parameters)
    return sum(counter.scans, gemms), gemms


class _Counter(TorchDispatchMode):
    """Counts the work of all ops that run under it. torch's own FlopCounterMode knows no attention
    on a CPU, and its hooks fail where autograd.grad is asked for gradients of leaves."""

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
        # op -> its pass and the place of delta among its arguments. A comes after delta. The
        # arguments of a backward pass begin with the gradients of the outputs and the last state.
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
    """The rates of this machine now; None where the FMA rate cannot be measured."""
    moved = _bandwidth(threads, device)
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        of_major = _FMA_PER_CLOCK[gpu.major]
        fma = _FMA_PER_CLOCK.get((gpu.major, gpu.minor), of_major)
        clocks = gpu.multi_processor_count * 1e3 * gpu.clock_rate  # kHz, the highest
        return Rates(fma * clocks, moved, _EX2_PER_CLOCK * clocks)
    rate = fma_rate(threads)
    return None if rate is None else Rates(rate, moved)


def fastest(measured: list[Rates]) -> Rates:
    """Of rates that were measured at several times, those with the highest FMA rate."""
    return max(measured, key=lambda rates: rates.fma)


@functools.cache
def _bandwidth(threads: int, device: str, megabytes: int = 256) -> float:
    """Bytes per second of a copy that is too large for any cache; reads and writes count."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    source = torch.ones((4 if device == "cuda" else 1) * megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    best = min(measure.once(lambda: target.copy_(source)) for _ in range(5))
    torch.set_num_threads(before)
    return 2 * source.numel() * 4 / best


def fma_rate(threads: int, iterations: int = 4_000_000) -> float | None:
    """Float32 FMA operations per second of `threads` threads, each element of a vector counted;
    None without a compiler."""
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
