"""What a training warns of: each rule at its threshold, once, and again after a resumption."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from cmimtl import runs
from cmimtl.training.signatures import WINDOW, Watch, signature

USUAL = {"loss": 2.0, "grad_norm": 1.0, "classification_loss": 1.0, "generation_loss": 1.0}


def entries(count, **changes):
    return [USUAL | changes for _ in range(count)]


@pytest.mark.parametrize(
    "change, below, words",
    [
        ({"loss": 4.0}, {"loss": 3.99}, "the loss rose to 4, from 2"),
        ({"grad_norm": 10.0}, {"grad_norm": 9.9}, "the gradient's norm rose to 10, from 1"),
    ],
)
def test_a_rise_against_the_median_before_it(change, below, words):
    before = entries(WINDOW)
    assert signature([*before, USUAL | change]) == words
    assert signature([*before, USUAL | below]) is None
    assert signature([*before[1:], USUAL | change]) is None  # too little to compare with
    # One outlier does not hide the next, as it would in a mean.
    assert signature([*before, USUAL | change, USUAL | change]) == words


def test_the_decoder_learns_at_the_classifier_s_cost():
    """WINDOW entries at a classification loss of 1, then WINDOW at 1.2, with a falling generation
    loss; where that does not fall, or the rise is less, nothing is wrong."""
    first = entries(WINDOW)
    assert signature([*first, *entries(WINDOW, classification_loss=1.2, generation_loss=0.9)]) == (
        "the classification loss rose to 1.2, from 1, while the generation loss is at its least,"
        " 0.9"
    )
    for change in (
        {"classification_loss": 1.2, "generation_loss": 1.1},
        {"classification_loss": 1.19, "generation_loss": 0.9},
    ):
        assert signature([*first, *entries(WINDOW, **change)]) is None


def test_a_warning_is_told_once_and_kept(tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=200)
    (tmp_path / "run.json").write_text("{}")

    def watch(history):
        """As the trainer calls it, entry by entry; the last entry is of the whole training."""
        callback = Watch(tmp_path, console, "generation weight 3.0, batch size 8")
        for count in range(1, len(history) + 1):
            state = SimpleNamespace(
                log_history=history[:count], global_step=10 * count, is_world_process_zero=True
            )
            callback.on_log(None, state, None, logs=history[count - 1])

    history = [*entries(WINDOW), *entries(2, loss=9.0), *entries(1), {"train_runtime": 3.0}]
    watch(history)
    warning = "step 110: the loss rose to 9, from 2 (generation weight 3.0, batch size 8)"
    assert out.getvalue() == f"warning: {warning}\n"
    assert runs.read_warnings(tmp_path) == [{"step": 110, "warning": warning}]
    # Killed after step 120, and resumed from step 100: the same steps warn of the same.
    runs.add_warning(tmp_path, 130, "later")
    watch(history)
    assert runs.read_warnings(tmp_path) == [{"step": 110, "warning": warning}]


def test_a_training_watches(trained):
    """The trainer's log has all that the rules read; six steps are too few for a warning."""
    log = json.loads((trained / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert all(USUAL.keys() <= entry.keys() for entry in log if "grad_norm" in entry)
    assert sum("grad_norm" in entry for entry in log) == 6
    assert runs.read_warnings(trained) == []
