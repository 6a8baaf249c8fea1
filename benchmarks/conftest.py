"""The record of a run, and the options of `pytest benchmarks/`."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import limits, measure


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks")
    group.addoption(
        "--record", type=Path, default=Path("benchmark-record.json"), help="where the record goes"
    )
    group.addoption(
        "--bench-threads", type=int, default=None, help="threads; all cores where not given"
    )


def pytest_configure(config):
    # One round must not be split into a calibrated number of loops: rounds are interleaved by hand.
    config.option.benchmark_disable_gc = True
    threads = config.getoption("--bench-threads") or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    os.environ["CMIMTL_BENCH_THREADS"] = str(threads)


class Record:
    """The rows of one run and what they were measured on."""

    def __init__(self, threads: int):
        self.threads = threads
        self.rows: list[dict] = []
        self.fma_rates: list[float] = []
        self.bandwidth = limits.bandwidth(threads)

    def fma_rate(self) -> float | None:
        """The FMA rate now; measured beside each row, as other work on the machine changes it."""
        rate = limits.fma_rate(self.threads)
        if rate is not None:
            self.fma_rates.append(rate)
        return rate

    def add(self, suite: str, name: str, timing: measure.Timing | None = None, **fields) -> dict:
        """One row. `seconds` is the median, `spread` the interquartile range as a share of it."""
        row = {"suite": suite, "name": name, **fields}
        if timing is not None:
            row |= {"seconds": timing.median, "spread": timing.spread, "rounds": len(timing.rounds)}
        self.rows.append(row)
        return row

    def write(self, path: Path) -> None:
        best = max(self.fma_rates, default=None)
        record = {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "device": _device(),
            "threads": self.threads,
            "versions": _versions(),
            "limits": {"fma_per_second": best, "bytes_per_second": self.bandwidth},
            "rows": self.rows,
        }
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
    return versions


@pytest.fixture(scope="session")
def record(request):
    """Collects the rows; the file is written when the run ends, also a failed one."""
    result = Record(torch.get_num_threads())
    yield result
    if result.rows:
        result.write(request.config.getoption("--record"))
