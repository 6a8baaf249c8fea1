"""How a number comes about: interleaved rounds, medians with their spread, peak memory in a fresh
process."""

import ctypes
import functools
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
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# A candidate other than ours is called until its calls have taken this long together and are three,
# or one of them has taken longer than LONG_CALL. Ours is called in every round.
SECONDS_PER_CANDIDATE = 1.0
LONG_CALL = 2.5

# After a call the threads of an OpenMP runtime wait in a loop for more work, some milliseconds
# (libgomp: 300,000 turns). They would take cores from a candidate that runs in another process.
SECONDS_TO_SETTLE = 0.025

MEMORY_KEPT = 2**31  # bytes that the allocator owns from the start under `keep_memory`

# Parameters of glibc's mallopt. With the first values glibc keeps the memory that is freed, as
# jemalloc and tcmalloc do. Its defaults come to the second values where large tensors come and go.
_MALLOPT = {  # M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD, M_MMAP_THRESHOLD
    -4: (0, 65536),
    -1: (-1, 2**26),
    -2: (2**26, 2**17),
    -3: (2**25, 2**25),
}


@dataclass(frozen=True)
class Timing:
    """The seconds that one candidate took in each round."""

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


@dataclass(frozen=True)
class Elsewhere:
    """A call that another process runs and times; the way there and back does not count."""

    seconds: Callable[[], float]  # runs it
    result: Callable[[], object]  # of the last run

    def __call__(self) -> object:
        self.seconds()
        return self.result()


class Refused(Exception):
    """Raised where `interleave` calls `first`: why a candidate gets no row."""


def once(function: Callable[[], object], calls: int = 1) -> float:
    """Seconds of a call: the mean of `calls` in a row.

    First all threads overwrite the caches, so that every candidate begins alike, whatever ran
    before it. On a GPU the calls lie between two events; the overwriting gives the host time to
    queue them. What is measured is the device's time, with the gaps that eager calls leave in it.
    """
    overwrite_caches()
    if isinstance(function, Elsewhere):
        time.sleep(SECONDS_TO_SETTLE)
        seconds = sum(function.seconds() for _ in range(calls))
        time.sleep(SECONDS_TO_SETTLE)
        return seconds / calls
    if DEVICE == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end) / calls


def interleave(
    benchmark,
    calls: dict[str, Callable[[], object]],
    rounds: int,
    first: Callable[[str, Callable[[], object]], object] = lambda name, call: call(),
    calls_of_round: int = 1,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time every candidate in turn, round by round, so that a slow spell of the machine hits all.

    pytest-benchmark runs the rounds of the first candidate, ours, and shows them. The others run
    between two of them, in its `setup`.

    Args:
        first: makes the first call of each candidate, which is not measured; it may look at the
            result and raise `Refused`.
        calls_of_round: calls in a row, as for `once`; more than one for calls that are shorter than
            what a first call waits for.
    Returns:
        The timings by name, ours first; and by name why the others were refused.
    """
    timed, refused = {}, {}
    for name, call in calls.items():
        try:
            first(name, call)
        except Refused as reason:
            refused[name] = str(reason)
        else:
            timed[name] = call
    ours = next(iter(calls))
    if ours in refused:
        raise AssertionError(f"{ours}: {refused[ours]}")
    seconds: dict[str, list[float]] = {name: [] for name in timed}

    def others_once():
        gc.collect()
        for name, own in seconds.items():
            if name != ours and not _enough(own, calls_of_round):
                own.append(once(timed[name], calls_of_round))

    def ours_once():
        seconds[ours].append(once(timed[ours], calls_of_round))

    # Before each round garbage is collected. To search what is here now would take 0.2 s each time.
    gc.collect()
    gc.freeze()
    benchmark.pedantic(ours_once, setup=others_once, rounds=rounds, iterations=1)
    gc.unfreeze()
    return {name: Timing(tuple(own)) for name, own in seconds.items()}, refused


def _enough(rounds: list[float], calls_of_round: int) -> bool:
    """Whether a candidate other than ours has been called often enough: see above."""
    if not rounds or calls_of_round * sum(rounds) < SECONDS_PER_CANDIDATE:
        return False
    return len(rounds) >= 3 or calls_of_round * max(rounds) > LONG_CALL


def overwrite_caches() -> None:
    """Write over as many bytes as the last-level cache holds."""
    _scratch().add_(1)


@functools.cache
def _scratch() -> torch.Tensor:
    if DEVICE == "cuda":
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    else:
        files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        size = max((1024 * int(file.read_text().rstrip("K\n")) for file in files), default=2**25)
    # A virtual machine may report the cache of the whole socket.
    return torch.zeros(min(size, 2**28) // 4, device=DEVICE)


def keep_memory(keep: bool = True) -> None:
    """Make glibc's allocator keep the memory that is freed, or give it back as by default.

    By default every tensor of more than 32 MiB is new memory, and the operating system's zeroing of
    its pages takes up to half of the time of the code that fills it.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, values in _MALLOPT.items():
            library.mallopt(parameter, values[not keep])
        if keep:
            torch.ones(MEMORY_KEPT // 4)  # and to have been given it before


def peak_bytes(function: str, **arguments) -> int:
    """Most bytes in use at once during a call, above those in use before it, in a fresh process.

    Args:
        function: "module:name" of a function that makes the call from `arguments`, JSON values.
    """
    return _in_fresh_process("peak", function, arguments)


def value_alone(function: str, **arguments):
    """What a function returns, a JSON value, in a fresh process whose allocator keeps its memory:
    so calls take no time for new pages of results that are freed at once.

    Args:
        function: "module:name"; it takes `arguments`, JSON values.
    """
    return _in_fresh_process("value", function, arguments)


def _in_fresh_process(what: str, function: str, arguments: dict):
    command = [sys.executable, "-m", "benchmarks.measure", what, function, json.dumps(arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(
            f"benchmarks: {function} must run, got exit {result.returncode}: {result.stderr}"
        )
    return json.loads(result.stdout.splitlines()[-1])


def rounds_of(call: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round of a call, after a first call that does not count."""
    call()
    return [once(call) for _ in range(rounds)]


def _peak_of(call: Callable[[], object]) -> int:
    # What a first call brings does not count: the thread pool, the buffers of the GEMMs, and 40 MB
    # of code that torch imports at the first backward pass.
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    importlib.import_module("torch._dynamo")
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before
    # Memory that was freed while the inputs were made goes back to the system. The call would use
    # it again, and its peak would look lower.
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    kept = call()
    del kept
    return 1024 * (_status_kilobytes("VmHWM") - before)


def _status_kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(
        f"/proc/self/status must have {field}, got none; peaks are measured on Linux alone"
    )


def main() -> None:
    what, function, arguments = sys.argv[1:]
    module, name = function.split(":")
    torch.set_num_threads(int(os.environ.get("CMIMTL_BENCH_THREADS", torch.get_num_threads())))
    keep_memory(what != "peak")
    made = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    print(json.dumps(_peak_of(made) if what == "peak" else made))


if __name__ == "__main__":
    main()
