"""Runs the runs of a study, each a `cmimtl train` and a `cmimtl evaluate` in a process of its own.

A run's folder is named after its arguments. So a run that two studies have in common is made once,
one that was killed is gone on with, and one that is finished is left alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from cmimtl import runs
from cmimtl.experiments.study import Asked, Run
from cmimtl.files import read_json
from cmimtl.progress import Phase

# A server imports these once; each process begins as a copy of it, and not with ten seconds of
# imports.
_PRELOADED = [
    "cmimtl.training.train",
    "cmimtl.evaluation.evaluate",
    "cmimtl.evaluation.probes",
    "cmimtl.experiments.frozen",
]


def processes() -> multiprocessing.context.ForkServerContext:
    """Makes the processes of a study, with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class RunFailed(ValueError):
    """A run of a study failed; the message names it and says why."""


def folder(output: Path, run: Run) -> Path:
    """The folder of a run, under the output folder of the studies."""
    return output / "runs" / run.key


def scores_file(output: Path, run: Run, asked: Asked) -> Path:
    """Where the scores of a run are; the file is written whole or not at all."""
    return folder(output, run) / f"scores-{'-'.join(filter(None, asked))}.json"


def read_scores(output: Path, run: Run, asked: Asked) -> Mapping[str, Any]:
    """What `cmimtl evaluate` wrote of a run.

    Raises:
        ValueError: the file holds something else.
    """
    file = scores_file(output, run, asked)
    return read_json("experiment", "a run's scores must be those of `cmimtl evaluate`", file)


def is_done(output: Path, run: Run, asked: Sequence[Asked]) -> bool:
    """Whether a run is trained, and has been asked all this."""
    return runs.is_finished(folder(output, run)) and all(
        scores_file(output, run, one).is_file() for one in asked
    )


def run_all(
    output: Path, all_runs: Sequence[Run], asked: Sequence[Asked], *, jobs: int, console: Console
) -> None:
    """Run what is not done yet, some runs at a time.

    When a run fails, those beside it come to their end and no other is started. On an interruption
    all of them are asked to end, and the same call goes on with them later.

    Args:
        output: folder of the studies.
        all_runs: the runs; those with equal arguments are run once.
        asked: what each is asked after its training.
        jobs: number of runs at a time; they share the cores evenly.
        console: where the progress is shown.
    Raises:
        RunFailed: a run failed.
    """
    distinct = {run.key: run for run in all_runs}
    left = [run for run in distinct.values() if not is_done(output, run, asked)]
    if not left:
        return
    failures: list[RunFailed] = []
    with (
        Phase(console, "runs", len(distinct)) as phase,
        ThreadPoolExecutor(jobs) as pool,
        _Children(max(1, len(os.sched_getaffinity(0)) // jobs)) as children,
    ):
        phase.advance(len(distinct) - len(left))
        waiting = iter(left)
        running: set[Future[None]] = set()
        while True:
            while len(running) < jobs and not failures and (run := next(waiting, None)):
                running.add(pool.submit(_run, children, output, run, asked))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    future.result()
                    phase.advance()
                except RunFailed as error:
                    failures.append(error)
    if failures:
        raise failures[0]


def _run(children: _Children, output: Path, run: Run, asked: Sequence[Asked]) -> None:
    """Train and evaluate one run, as far as it is not done."""
    place = folder(output, run)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not runs.is_finished(place):
        resume = ["--resume"] if runs.has_run(place) else []
        children.run(run, place, [["train", "--output-dir", str(place), *resume, *_flags(run)]])
    evaluations = []
    for one in asked:
        target = scores_file(output, run, one)
        if not target.is_file():
            probe = ["--probe", one.probe] if one.probe else []
            evaluations.append(
                ["evaluate", str(place), "--split", one.split, *probe, "--json", str(target)]
            )
    if evaluations:
        children.run(run, place, evaluations)


def _flags(run: Run) -> list[str]:
    """The arguments of a run as those of the command line."""
    flags: list[str] = []
    for name, value in run.arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "changes":
            for key, item in value.items():
                flags += ["--set", f"{key}={json.dumps(item)}"]
        elif isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            flags += [flag, str(value)]
    return flags


class _Children:
    """The processes of the runs, all of which end with the body of the ``with`` statement."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._alive: set[Any] = set()
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._lock:
            self._ended = True
            for child in self._alive:
                child.terminate()  # a training that is asked to end can be resumed

    def run(self, run: Run, place: Path, commands: list[list[str]]) -> None:
        """Run commands one after the other in one process, whose output goes to the run's log.

        Raises:
            RunFailed: it failed; the message has the last line that it wrote.
        """
        log = log_file(place)
        with self._lock:
            if self._ended:
                raise RunFailed(f"experiment: {place} must be run, got an end before it.")
            child = processes().Process(target=_command, args=(commands, str(log), self._threads))
            child.start()
            self._alive.add(child)
        child.join()
        with self._lock:
            self._alive.discard(child)
        if child.exitcode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunFailed(
                f"experiment: the run {run.arm}, seed {run.arguments['seed']}, must end well, got"
                f" exit code {child.exitcode} of `cmimtl {commands[0][0]}`; its log {log} ends"
                f" with: {lines[-1] if lines else 'nothing'}"
            )


def _command(commands: list[list[str]], log: str, threads: int) -> None:
    """What a process of a run does: commands up to the first that fails."""
    import torch

    from cmimtl.cli import main

    with open(log, "a", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    torch.set_num_threads(threads)
    for arguments in commands:
        if failed := main(arguments):
            sys.exit(failed)


def log_file(place: Path) -> Path:
    """The log of a run: beside its folder, which must be empty when its training begins."""
    return place.with_name(f"{place.name}.log")
