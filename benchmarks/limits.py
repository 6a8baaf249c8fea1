"""What the machine could do: the rate of its FMA pipes and of its memory, measured in the same
run."""

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

# FMA-pipe instructions (multiply, add, fused) that one state of one channel and step needs.
# Forward: delta * A folded into the reduction 1, polynomial of exp2 6, state 2, output 1.
# Backward: the forward's again without the output, the gradients of state, A, B, C and delta.
FMA_OPS = {"forward": 10, "backward": 18}


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


def fma_rate(threads: int, iterations: int = 4_000_000) -> float | None:
    """Scalar float32 FMA-pipe operations per second of `threads` threads; None without a
    compiler."""
    library = _library()
    if library is None:
        return None
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter lock
        rates = list(pool.map(lambda _: library.fma_rate(iterations), range(threads)))
    return sum(rates) * library.fma_lanes()


def bandwidth(threads: int, megabytes: int = 256) -> float:
    """Bytes per second of a copy that fits no cache, reads and writes counted."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * source.numel() * 4 / best


def scan_seconds(elements: int, which: str, rate: float) -> float:
    """The least time of a pass over `elements` = batch * length * dim * dstate states."""
    return elements * FMA_OPS[which] / rate
