"""What is shown of long work, on a terminal and elsewhere."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers.utils import logging

from cmimtl.progress import LINES, Phase, without_bars
from cmimtl.training.progress import TrainingPhase

ESCAPE = "\x1b"


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def printed(shown):
    return shown.file.getvalue()


@pytest.mark.parametrize("total", [1, 3, 40, 1000])
def test_elsewhere_some_lines_and_no_bar(total):
    shown = console(terminal=False)
    with Phase(shown, "reading", total) as phase:
        for number in range(total):
            phase.advance(note=f"note {number}")
    lines = printed(shown).splitlines()
    assert len(lines) == min(total, LINES)
    assert all(line.startswith("reading: ") for line in lines)
    assert f"{total} of {total}, 0 s; note {total - 1}" in lines[-1]
    assert ESCAPE not in printed(shown) and "\r" not in printed(shown)


def test_a_note_stays_until_the_next():
    shown = console(terminal=False)
    with Phase(shown, "reading", 5) as phase:
        phase.advance(2, "half")
        phase.advance(3)
    first, last = printed(shown).splitlines()
    assert first == "reading: 2 of 5, 0 s; half" and last == "reading: 5 of 5, 0 s; half"


def test_a_long_line_is_one_line():
    shown = Console(file=io.StringIO(), force_terminal=False, width=30)
    with Phase(shown, "reading", 1) as phase:
        phase.advance(note="a note that is longer than this console is wide")
    assert printed(shown).count("\n") == 1


def test_a_bar_on_a_terminal():
    shown = console(terminal=True)
    with Phase(shown, "reading", 8) as phase:
        phase.advance(8, "note")
        assert phase._bar.live.is_started
    assert not phase._bar.live.is_started
    text = printed(shown)
    assert ESCAPE in text and "reading" in text and "8/8" in text and "note" in text
    assert "left:" in text


def test_a_bar_ends_where_the_work_fails():
    shown = console(terminal=True)
    with pytest.raises(KeyError), Phase(shown, "reading", 8) as phase:
        raise KeyError
    assert not phase._bar.live.is_started and printed(shown).rstrip(ESCAPE + "[?25h").endswith("\n")


def state(step=0, *, main=True):
    return SimpleNamespace(is_world_process_zero=main, max_steps=10, global_step=step)


def test_training_shows_steps_and_losses():
    shown = console(terminal=False)
    training = TrainingPhase(shown)
    training.on_train_begin(None, state(4), None)  # a run that is taken up again
    for step in range(5, 11):
        training.on_step_end(None, state(step), None)
        training.on_log(None, state(step), None, logs={"contrastive_loss": step / 4, "epoch": 1})
    training.on_log(None, state(10), None, logs={"train_loss": 3.0})
    training.on_train_end(None, state(10), None)
    lines = printed(shown).splitlines()
    assert lines[0] == "training: 4 of 10, 0 s"
    assert lines[-1] == "training: 10 of 10, 0 s; loss: contrastive 2.25"


def test_one_process_of_several_shows_it():
    shown = console(terminal=False)
    training = TrainingPhase(shown)
    training.on_train_begin(None, state(main=False), None)
    training.on_step_end(None, state(10, main=False), None)
    training.on_log(None, state(10, main=False), None, logs={"contrastive_loss": 1.0})
    training.close()
    assert printed(shown) == ""


def test_a_training_that_failed_is_closed():
    shown = console(terminal=True)
    training = TrainingPhase(shown)
    training.on_train_begin(None, state(), None)
    bar = training._phase._bar
    assert bar.live.is_started
    training.close()
    assert not bar.live.is_started
    training.close()  # and again, as at its end


@pytest.mark.parametrize("enabled", [True, False])
def test_bars_of_transformers_are_off_within_and_as_they_were_behind(enabled):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
    try:
        with pytest.raises(KeyError), without_bars():
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert logging.is_progress_bar_enabled() == enabled
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
