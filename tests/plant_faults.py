"""Plants small faults in the packages, one at a time, and reports which the tests notice.

    python -m tests.plant_faults cmimtl/evaluation --count 40 --seed 1 --report faults.jsonl

draws faults from the Python files named, starts the tests of each file (`tests_of`) in a process in
which the module has the fault, and prints the share that is caught and every fault that is not. No
file is changed: an import hook gives the module its source. The report is a line of JSON per fault;
those that it holds already are not run again. Survivors that change nothing are listed, with the
reason, in `faults_that_change_nothing.json`.

With `--coverage .coverage`, of a run with pytest-cov's `--cov --cov-context=test`, the tests that
run the fault's lines follow on those of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import pytest

from tests.small_faults import ROOT, Fault, faults_of

HARMLESS = Path(__file__).with_name("faults_that_change_nothing.json")
TIMEOUT = 240  # seconds; a test that hangs for so long has noticed
MOST = 60  # tests by name, before their files
# Quick ones that import what most do.
USUAL = [f"tests/{name}.py" for name in ("model/evaluation/test_evaluate", "kernels/test_meta")]

# Tests


# Where a room's tests are many, those of a module; the quickest first.
_KERNELS = {
    "ops": ("errors", "scan", "meta"),
    "registration": ("scan", "raw_calls", "meta", "torch_func", "transforms"),
    "block": ("block", "errors", "replaced_modules", "meta"),
    "submodules": ("replaced_modules", "block"),
    "resample": ("resample", "block"),
    "reference": ("reference", "values", "scan"),
    "precision": ("block",),
    "checks": ("errors", "scan"),
    "_library": ("install_report", "packaging"),
    "__main__": ("install_report",),
    "backends": ("install_report", "scan", "causal_conv1d_package"),
    "testing": ("testing",),
}


def tests_of(file: str) -> list[str]:
    """The tests of a module: the files of its room that name it, or the whole room."""
    path = Path(file)
    if path.parts[:-1] == ("cmimtl_kernels",) and path.stem in _KERNELS:
        return [f"tests/kernels/test_{name}.py" for name in _KERNELS[path.stem]]
    if "triton" in path.parts:
        own = [f"tests/triton/test_{path.stem}.py"] if path.stem in ("plan", "checks") else []
        return [*own, "tests/triton/interpreted"]
    package, *rooms, _ = path.parts
    room = ROOT / "tests" / ("model" if package == "cmimtl" else "kernels")
    room = room.joinpath(*rooms) if room.joinpath(*rooms).is_dir() else room
    files = sorted(room.glob("test_*.py"))
    module = ".".join(path.with_suffix("").parts)
    own = [f for f in files if f.stem == f"test_{path.stem}"]
    named = [f for f in files if module in f.read_text() or f".{path.stem} " in f.read_text()]
    chosen = list(dict.fromkeys(own + named)) or files
    return [f.relative_to(ROOT).as_posix() for f in chosen]


class Coverage:
    """Which tests run a line, from a record of pytest-cov."""

    def __init__(self, record: Path) -> None:
        from coverage import CoverageData

        self.data = CoverageData(str(record))
        self.data.read()
        self.lines: dict[str, dict[str, set[int]]] = {}  # module -> test -> lines of it

    def _lines(self, file: str) -> dict[str, set[int]]:
        if file not in self.lines:
            found = self.lines[file] = {}
            for measured in self.data.measured_files():
                if Path(measured).parts[-len(Path(file).parts) :] == Path(file).parts:
                    for line, contexts in self.data.contexts_by_lineno(measured).items():
                        for context in filter(None, contexts):
                            found.setdefault(context.rpartition("|")[0], set()).add(line)
        return self.lines[file]

    def tests_of(self, fault: Fault) -> list[str]:
        """The tests that run the fault's lines, or of a line that is run on import the module; then
        their files, as tests share fixtures. Those first that run the least of the module, which
        are the quickest."""
        every = self._lines(fault.file)
        lines = set(range(fault.line, fault.last + 1))
        tests = [test for test, run in every.items() if run & lines] or list(every)
        tests.sort(key=lambda test: len(every[test]))
        return tests[:MOST] + list(dict.fromkeys(test.split("::")[0] for test in tests))


class _Planted(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module another source."""

    def __init__(self, module: str, path: Path, text: str) -> None:
        self.module, self.path, self.text = module, str(path), text

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        package = Path(self.path).name == "__init__.py"
        places = [str(Path(self.path).parent)] if package else None
        return importlib.util.spec_from_file_location(
            name, self.path, loader=self, submodule_search_locations=places
        )

    def get_filename(self, name):
        return self.path

    def get_data(self, path):
        return self.text.encode()


class _Beats:
    """Tells the parent, through a pipe, that a test begins."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def pytest_runtest_logstart(self) -> None:
        os.write(self.pipe, b".")


def run(tests: list[str], beat: int) -> NoReturn:
    """What the copy of the process does."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    os._exit(int(pytest.main([*options, *tests], plugins=[_Beats(beat)])))


def fails(prepare: Callable[[], None], tests: list[str], budget: float, start=run) -> bool:
    """Whether one of the tests fails, or hangs, in a copy of this process that is prepared so.

    Args:
        tests: arguments of pytest.
        budget: seconds; a fault that lives so long has survived.
        start: `run`, or what runs the tests in its place.
    """
    beats, beat = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        prepare()
        start(tests, beat)
    os.close(beat)
    try:
        until = time.monotonic() + budget
        while time.monotonic() < until:
            ready, _, _ = select.select([beats], [], [], TIMEOUT)
            if not ready or not os.read(beats, 1024):  # it hangs, or has ended
                break
        else:
            return False
        if not ready:
            return True
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise ValueError(f"fails: tests must be there, got {tests}")
        return code != 0
    finally:
        os.close(beats)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def caught(fault: Fault, text: str, tests: list[str], budget: float = 600) -> bool:
    """Whether one of the test files fails where the module has the text."""
    parts = Path(fault.file).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    planted = _Planted(module, ROOT / fault.file, text)

    def in_the_interpreter(tests: list[str], beat: int) -> NoReturn:
        """Triton decides when it is imported whether to interpret, so a new process takes over."""
        os.set_inheritable(beat, True)
        code = f"""
import sys
from tests import plant_faults as p
sys.meta_path.insert(0, p._Planted({module!r}, {planted.path!r}, {text!r}))
p.run({tests!r}, {beat})
"""
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        os.execve(sys.executable, [sys.executable, "-c", code], environment)

    start = in_the_interpreter if "tests/triton/interpreted" in tests else run
    return fails(lambda: sys.meta_path.insert(0, planted), tests, budget, start)


def harmless() -> dict[tuple[str, str, str], str]:
    """The faults that change nothing, with the reason."""
    rows = json.loads(HARMLESS.read_text())
    return {(row["file"], row["was"], row["now"]): row["reason"] for row in rows}


def import_what_tests_do() -> None:
    """Imports what tests of the packages import beside them, which takes longer than most tests.

    Another process finds out what that is: this one, whose copies have faults in the packages, must
    not import them.
    """
    ask = f"""
import sys, pytest
assert pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *{USUAL}]) == 0
print("MODULES", *(name for name, module in sys.modules.items() if hasattr(module, "__file__")))
"""
    command = [sys.executable, "-c", ask]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in asked.stdout.rpartition("MODULES")[2].split():
        if name.partition(".")[0] not in ("cmimtl", "cmimtl_kernels", "tests", "benchmarks"):
            with contextlib.suppress(Exception):  # such as a part of a package that names it else
                importlib.import_module(name)


def parser(description: str) -> argparse.ArgumentParser:
    """The options of a script that plants faults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=40, help="number of faults (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="JSON lines, which are gone on with")
    parser.add_argument("--budget", type=float, default=600, help="seconds a fault (%(default)s)")
    return parser


def report(faults: list[Fault], notice: Callable[[Fault], bool], file: Path | None) -> int:
    """Asks of every fault whether it is noticed, and prints those that are not and the share.

    -> the number of those that are not
    """
    known = {}
    if file and file.is_file():
        for row in map(json.loads, file.read_text().splitlines()):
            known[row["file"], row["was"], row["now"]] = row["caught"]
    reasons, survivors = harmless(), 0
    faults = [fault for fault in faults if fault.key not in reasons]
    for fault in faults:
        if fault.key not in known:
            known[fault.key] = notice(fault)
            if file:
                with file.open("a") as rows:
                    print(json.dumps(asdict(fault) | {"caught": known[fault.key]}), file=rows)
        if not known[fault.key]:
            survivors += 1
            print(f"{fault.file}:{fault.line}\n  - {fault.was}\n  + {fault.now}", flush=True)
    seen = len(faults) - survivors
    print(f"caught {seen} of {len(faults)} ({100 * seen / max(1, len(faults)):.0f} %)")
    return survivors


def main(arguments: list[str]) -> int:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("paths", nargs="+", help="files or folders of the packages")
    options.add_argument("--coverage", type=Path, help="a record of coverage by test")
    given = options.parse_args(arguments)
    files = [
        file
        for path in map(Path, given.paths)
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    every = [pair for file in files for pair in faults_of(file.resolve())]
    drawn = dict(random.Random(given.seed).sample(every, min(given.count, len(every))))
    coverage = Coverage(given.coverage) if given.coverage else None
    import_what_tests_do()

    def notice(fault: Fault) -> bool:
        own, others = tests_of(fault.file), coverage.tests_of(fault) if coverage else []
        # Those of the module's own tests that run the line, all of its own, all that run the line.
        tests = [test for test in others if test.split("::")[0] in own and "::" in test]
        tests += own + others
        return caught(fault, drawn[fault](), list(dict.fromkeys(tests)), given.budget)

    return 1 if report(list(drawn), notice, given.report) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
