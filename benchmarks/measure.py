"""How a number comes about: interleaved rounds, medians with their spread, peak memory in a fresh
process."""

import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

# A baseline is called again until it has used this much of a test's time; once at least.
SECONDS_PER_BASELINE = 4.0


@dataclass(frozen=True)
class Timing:
    """Seconds of the rounds of one candidate."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median; 0 for a single round."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return (high - low) / self.median


def once(function: Callable[[], object]) -> float:
    """Seconds of one call, on a GPU with the work that it started."""
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def interleave(
    benchmark, ours: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int
) -> tuple[Timing, dict[str, Timing]]:
    """Time `ours` and every other in turn, round by round: a slow spell of the machine hits all.

    Every candidate is called once before, unmeasured. pytest-benchmark times `ours`; the others run
    in its `setup`, between two of its rounds. What one candidate leaves in the caches the next one
    finds, so that none of them starts with its own inputs there.
    """
    for function in (ours, *others.values()):
        function()
    seconds: dict[str, list[float]] = {name: [] for name in others}

    def others_once():
        gc.collect()
        for name, function in others.items():
            if not seconds[name] or sum(seconds[name]) < SECONDS_PER_BASELINE:
                seconds[name].append(once(function))

    def ours_whole():
        ours()
        _synchronize()

    benchmark.pedantic(ours_whole, setup=others_once, rounds=rounds, iterations=1)
    timing = Timing(tuple(benchmark.stats.stats.data))
    return timing, {name: Timing(tuple(rounds)) for name, rounds in seconds.items()}


def peak_bytes(function: str, **arguments) -> int:
    """Most memory in use at once, above what was there before a call, in a fresh process.

    Args:
        function: "module:name"; called with `arguments` (JSON values) it returns the call to
        measure.
    """
    command = [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"peak_bytes: {function} must run, got exit {result.returncode}: {result.stderr}"
        )
    return int(result.stdout.split()[-1])


def _peak_of(call: Callable[[], object]) -> int:
    call_keeps = None
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the thread pool and the GEMM's buffers
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call_keeps = call()
        torch.cuda.synchronize()
        del call_keeps
        return torch.cuda.max_memory_allocated() - before
    before = _status_kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    call_keeps = call()
    del call_keeps
    return 1024 * (_status_kilobytes("VmHWM") - before)


def _status_kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(
        f"/proc/self/status must have {field}, got none; peaks are measured on Linux alone"
    )


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    torch.set_num_threads(int(os.environ.get("CMIMTL_BENCH_THREADS", torch.get_num_threads())))
    print(_peak_of(getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))))
