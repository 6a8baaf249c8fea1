"""The record of a run, and the options of `pytest benchmarks/`."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import limits, measure, peers

FORMAT = 1


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks")
    group.addoption(
        "--record", type=Path, default=Path("benchmark-record.json"), help="where the record goes"
    )
    group.addoption(
        "--bench-threads", type=int, default=None, help="threads; all cores where not given"
    )
    group.addoption(
        "--peers",
        default=os.environ.get(peers.VARIABLE),
        help="the Python of an environment with benchmarks/peers.txt",
    )


def pytest_configure(config):
    # Garbage is collected between the rounds, by `measure.interleave`.
    config.option.benchmark_disable_gc = True
    threads = config.getoption("--bench-threads") or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    config.pluginmanager.register(Durations(), "cmimtl-durations")
    os.environ["CMIMTL_BENCH_THREADS"] = str(threads)
    if interpreter := config.getoption("--peers"):
        os.environ[peers.VARIABLE] = interpreter


class Machine:
    """What the machine could do during one test; other work on it changes its rates."""

    def __init__(self, before: limits.Rates | None):
        self.before, self.after = before, None

    def best(self) -> limits.Rates | None:
        """The faster of the rates before and after, so that no share of a limit is flattered."""
        if self.before is None or self.after is None:
            return self.before
        return max(self.before, self.after, key=lambda rates: rates.fma)

    def limit(self, work: limits.Work, timing: measure.Timing) -> dict:
        """The fields of a row that say how near its limit it is."""
        if (rates := self.best()) is None:
            return {"limit": "not measured: no C compiler"}
        seconds, which = work.seconds(rates)
        return {
            "fma": work.fma,
            "bytes": work.bytes,
            "limit": which,
            "limit_seconds": seconds,
            "share_of_limit": seconds / timing.median,
        }


class Record:
    """The rows of one run and what they were measured on. benchmarks/README.md has the format."""

    def __init__(self, threads: int):
        self.threads = threads
        self.rows: list[dict] = []
        self.measured: list[limits.Rates] = []

    @contextlib.contextmanager
    def rates(self):
        """The machine's rates, taken before and after what runs inside."""
        machine = Machine(self._now())
        yield machine
        machine.after = self._now()

    def _now(self) -> limits.Rates | None:
        rates = limits.rates(self.threads, measure.DEVICE)
        if rates is not None:
            self.measured.append(rates)
        return rates

    def add(self, suite: str, name: str, timing: measure.Timing | None = None, **fields) -> dict:
        """One row. `seconds` is the median, `spread` the interquartile range as a share of it."""
        row = {"suite": suite, "name": name, **fields}
        if timing is not None:
            row |= {"seconds": timing.median, "spread": timing.spread, "rounds": len(timing.rounds)}
        self.rows.append(row)
        return row

    def write(self, path: Path, durations: dict[str, float]) -> None:
        best = max(self.measured, key=lambda rates: rates.fma, default=None)
        record = {
            "format": FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "device": _device(),
            "device_type": measure.DEVICE,
            "threads": self.threads,
            "versions": _versions(),
            "limits": best
            and {
                "fma_per_second": best.fma,
                "bytes_per_second": best.bytes,
                "ex2_per_second": best.ex2,
            },
            "seconds": {name: round(own, 1) for name, own in durations.items()},
            "rows": self.rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.replace(path)


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=measure.ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    commit = git("rev-parse", "HEAD") or "unknown"
    return commit + (
        "+changes" if git("status", "--porcelain", "--", "csrc", "cmimtl_kernels") else ""
    )


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("cmimtl", "torch", "triton", "transformers", "mambapy", "mamba_ssm"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name in ("intel_extension_for_pytorch", "ggml_python"):
        if found := peers.version(name):
            versions[name] = found
    return versions


class Durations:
    """Seconds that each file took, set-up included; shown at the end of the run."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report):
        file = Path(report.location[0]).stem
        self.seconds[file] = self.seconds.get(file, 0.0) + report.duration

    def pytest_terminal_summary(self, terminalreporter):
        parts = [f"{file} {seconds:.0f} s" for file, seconds in self.seconds.items()]
        total = sum(self.seconds.values())
        terminalreporter.write_line(f"took {total:.0f} s: {', '.join(parts)}")


@pytest.fixture(scope="session")
def record(request):
    """Collects the rows; the file is written when the run ends, also a failed one."""
    result = Record(torch.get_num_threads())
    yield result
    if result.rows:
        durations = request.config.pluginmanager.get_plugin("cmimtl-durations")
        result.write(request.config.getoption("--record"), durations.seconds)
