"""The options of `pytest benchmarks/`, and the record that a run writes."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import limits, measure, peers
from cmimtl.files import write_json

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
    """What the machine could do during one test; other work on the machine changes its rates."""

    def __init__(self):
        self.measured: list[limits.Rates] = []  # before the test and after it

    def limit(self, work: limits.Work, timing: measure.Timing) -> dict:
        """The fields of a row that say how near it is to its limit, by the faster rates: so no
        share of a limit is flattered."""
        if not self.measured:
            return {"limit": "not measured: no C compiler"}
        seconds, which = work.seconds(limits.fastest(self.measured))
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
        """The machine's rates, measured before and after the body."""
        machine = Machine()
        self._measure(machine)
        yield machine
        self._measure(machine)

    def _measure(self, machine: Machine) -> None:
        if (rates := limits.rates(self.threads, measure.DEVICE)) is not None:
            machine.measured.append(rates)
            self.measured.append(rates)

    def add(self, suite: str, name: str, timing: measure.Timing | None = None, **fields) -> dict:
        """Add a row and return it; its `seconds` and `spread` are the timing's."""
        row = {"suite": suite, "name": name, **fields}
        if timing is not None:
            row |= {"seconds": timing.median, "spread": timing.spread, "rounds": len(timing.rounds)}
        self.rows.append(row)
        return row

    def write(self, path: Path, durations: dict[str, float]) -> None:
        best = limits.fastest(self.measured) if self.measured else None
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
        write_json(path, record)


def _commit() -> str:
    def git(*arguments: str) -> str:
        options = dict(cwd=measure.ROOT, capture_output=True, text=True, check=False)
        return subprocess.run(["git", *arguments], **options).stdout.strip()

    changes = git("status", "--porcelain", "--", "csrc", "cmimtl_kernels")
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if changes else "")


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
    """How many seconds each file took, fixtures included; shown at the end of the run."""

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
    """Collects the rows of the run. The file is written when the run ends, also a failed run."""
    result = Record(torch.get_num_threads())
    yield result
    if result.rows:
        durations = request.config.pluginmanager.get_plugin("cmimtl-durations")
        result.write(request.config.getoption("--record"), durations.seconds)
