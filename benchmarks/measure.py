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

# A candidate other than ours is called again until it has used this much of a test's time, and has
# been called three times; once where a call takes longer than LONG_CALL.
SECONDS_PER_CANDIDATE = 1.0
LONG_CALL = 2.5

# An OpenMP runtime's threads wait for more work in a loop for some milliseconds (libgomp: 300,000
# turns) and would take a core from the other process.
SECONDS_TO_SETTLE = 0.025


MEMORY_KEPT = 2**31  # bytes that an allocator which keeps its memory has from the start

# Parameters of glibc's mallopt: with the first values it keeps the memory that it has, as jemalloc
# and tcmalloc do; the second are what its defaults come to where large tensors come and go.
_MALLOPT = {  # M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD, M_MMAP_THRESHOLD
    -4: (0, 65536),
    -1: (-1, 2**26),
    -2: (2**26, 2**17),
    -3: (2**25, 2**25),
}


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


@dataclass(frozen=True)
class Elsewhere:
    """A call in another process, which times itself: the way there and back does not count."""

    seconds: Callable[[], float]  # runs it
    result: Callable[[], object]  # of the last run

    def __call__(self) -> object:
        self.seconds()
        return self.result()


class Refused(Exception):
    """Raised by `first` of `interleave`: this candidate gets no row, and this is why."""


def once(function: Callable[[], object], calls: int = 1) -> float:
    """Seconds of a call, the mean of `calls` in a row, behind one that overwrites the caches with
    all threads, which are awake then: every candidate begins alike, whatever ran before it.

    On a GPU between two events, where overwriting also gives the host a start: what is measured is
    the device's time, with the gaps that eager calls leave in it.
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
    """Time every candidate in turn, round by round: a slow spell of the machine hits all.

    pytest-benchmark runs the rounds and shows those of the first candidate, ours; the others run in
    its `setup`, between two of them.

    Args:
        calls_of_round: see `once`; more than one for calls that are shorter than what a first one
            waits for.
        first: the unmeasured first call of each candidate; it may look at the result, and raise
            `Refused`.
    Returns:
        Timings by name, ours first, and the reasons of those that were refused.
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

    # What is here now need not be searched for garbage before each round, which took 0.2 s.
    gc.collect()
    gc.freeze()
    benchmark.pedantic(ours_once, setup=others_once, rounds=rounds, iterations=1)
    gc.unfreeze()
    return {name: Timing(tuple(own)) for name, own in seconds.items()}, refused


def _enough(rounds: list[float], calls_of_round: int) -> bool:
    """Whether a candidate other than ours has been called often enough."""
    if not rounds or calls_of_round * sum(rounds) < SECONDS_PER_CANDIDATE:
        return False
    return len(rounds) >= 3 or calls_of_round * max(rounds) > LONG_CALL


def overwrite_caches() -> None:
    """Write over as many bytes as the last cache holds."""
    _scratch().add_(1)


@functools.cache
def _scratch() -> torch.Tensor:
    if DEVICE == "cuda":
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    else:
        files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        size = max((1024 * int(file.read_text().rstrip("K\n")) for file in files), default=2**25)
    # What a virtual machine reports may be the whole socket's.
    return torch.zeros(min(size, 2**28) // 4, device=DEVICE)


def keep_memory(keep: bool = True) -> None:
    """Make glibc's allocator keep what is freed, or have it back to the system as by default.

    By default a tensor of more than 32 MiB is new memory whenever one is made, and the kernel's
    zeroing of its pages takes up to half of the time of what fills it.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, values in _MALLOPT.items():
            library.mallopt(parameter, values[not keep])
        if keep:
            torch.ones(MEMORY_KEPT // 4)  # and to have been given it before


def peak_bytes(function: str, **arguments) -> int:
    """Most memory in use at once, above what was there before a call, in a fresh process.

    Args:
        function: "module:name"; called with `arguments` (JSON values) it returns the call to
        measure.
    """
    return _in_fresh_process("peak", function, arguments)


def seconds_alone(function: str, rounds: int, **arguments) -> Timing:
    """Rounds of one call in a fresh process whose allocator keeps its memory: what the code takes,
    without the making of new pages for results that are freed at once.

    Args:
        function, arguments: as in `peak_bytes`.
    """
    found = _in_fresh_process(f"rounds={rounds}", function, arguments)
    return Timing(tuple(found))


def value_alone(function: str, **arguments):
    """What `function` gives, a JSON value, in a process as of `seconds_alone`."""
    return _in_fresh_process("value", function, arguments)


def _in_fresh_process(what: str, function: str, arguments: dict):
    command = [sys.executable, "-m", "benchmarks.measure", what, function, json.dumps(arguments)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(
            f"benchmarks: {function} must run, got exit {result.returncode}: {result.stderr}"
        )
    return json.loads(result.stdout.splitlines()[-1])


def rounds_of(call: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round of a call, after one that does not count."""
    call()
    seconds = []
    for _ in range(rounds):
        seconds.append(once(call))
    return seconds


def _peak_of(call: Callable[[], object]) -> int:
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the thread pool and the GEMM's buffers
    importlib.import_module("torch._dynamo")  # torch does at the first backward pass: 40 MB of code
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call_keeps = call()
        torch.cuda.synchronize()
        del call_keeps
        return torch.cuda.max_memory_allocated() - before
    # What making the inputs has freed must not stay with the process, or the call would find it
    # there and its own peak look lower.
    ctypes.CDLL(None).malloc_trim(0)
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


def main() -> None:
    what, function, arguments = sys.argv[1:]
    module, name = function.split(":")
    torch.set_num_threads(int(os.environ.get("CMIMTL_BENCH_THREADS", torch.get_num_threads())))
    keep_memory(what != "peak")
    made = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    if what == "value":
        print(json.dumps(made))
    elif what == "peak":
        print(_peak_of(made))
    else:
        print(rounds_of(made, int(what.removeprefix("rounds="))))


if __name__ == "__main__":
    main()
