"""Show the progress of long work: as a bar on a terminal, as some lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.utils import logging

LINES = 5  # a phase prints so many lines where the output is no terminal


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Switch off the bars that transformers shows for each file that it reads or writes.

    They say nothing of the work that they are a part of.
    """
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class Phase:
    """A phase of work with a title, its progress, the time it has taken and the time it will take.

    A phase is used in a ``with`` statement; `advance` tells that something is done. On a
    terminal it is a bar. Elsewhere (a file, a log) it is a line now and then, so that there, too,
    one sees that the work goes on.
    """

    def __init__(self, console: Console, title: str, total: int) -> None:
        """Take the console to show it on, what is done, and its number of parts, at least 1."""
        self._console = console
        self._title = title
        self._total = total
        self._done = 0
        self._note = ""
        self._shown = 0
        self._bar: Progress | None = None

    def __enter__(self) -> Phase:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left:"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, note="")
        return self

    def advance(self, parts: int = 1, note: str | None = None) -> None:
        """Tell that `parts` more parts are done; `note` is shown beside their number."""
        self._done += parts
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif self._done * LINES // self._total > self._shown:
            self._shown = self._done * LINES // self._total
            self._line()

    def __exit__(self, kind, error, trace) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line(self) -> None:
        seconds = time.monotonic() - self._started
        note = f"; {self._note}" if self._note else ""
        self._console.print(
            f"{self._title}: {self._done} of {self._total}, {seconds:.0f} s{note}",
            highlight=False,
            soft_wrap=True,
        )
