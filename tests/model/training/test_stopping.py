"""How a training stops, what is said then, and how it goes on."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from cmimtl.modelling.presets import PRESETS
from cmimtl.modelling.processor import CMIMTLProcessor
from cmimtl.runs import how_to_go_on, locking
from cmimtl.training.trainer import CMIMTLTrainer
from tests.model.commands import largest_file, run, train_arguments

CURSOR_SHOWN = "\x1b[?25h"  # the end of a bar on a terminal


def assert_same_weights(run_folder, expected_folder):
    expected = load_file(expected_folder / "model.safetensors")
    actual = load_file(run_folder / "model.safetensors")
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.equal(expected[name]), name


def learning_rates(checkpoint):
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}


# Signals


@pytest.mark.parametrize(
    "number, code, word",
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "asked to end")],
)
def test_a_signal(trained, data, tmp_path, monkeypatch, capsys, number, code, word):
    """In step 4, after the checkpoint of step 2. The resumed run is that which was never
    stopped."""
    output, compute_loss = tmp_path / "run", CMIMTLTrainer.compute_loss

    def stopped(self, *arguments, **options):
        if self.state.global_step == 3:
            os.kill(os.getpid(), number)
        return compute_loss(self, *arguments, **options)

    before = signal.getsignal(signal.SIGTERM)
    # A shell has what it starts in the background ignore SIGINT.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(CMIMTLTrainer, "compute_loss", stopped)
            assert run(*train_arguments(data, output)) == code
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGTERM) == before
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        f"cmimtl: {word}. `cmimtl train --output-dir {output} --resume` goes on after step 2."
    )
    if number == signal.SIGTERM:
        assert run("train", "--output-dir", output, "--resume") == 0
        assert_same_weights(output, trained)


def test_a_signal_to_all_processes(data, tmp_path):
    """One that loads data ends by it too, which is an error in the training's process."""
    output = tmp_path / "run"
    options = {"max-steps": 2000, "save-every": 4, "workers": 1}
    command = [sys.executable, "-m", "cmimtl", *train_arguments(data, output, **options)]
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (output / "checkpoint-4").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate()[1].strip().splitlines()[-1]
    assert process.returncode == 143, said
    assert said.startswith("cmimtl: asked to end. `cmimtl train --output-dir"), said


def test_only_what_can_go_on_is_said_to(trained, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cmimtl.evaluation.evaluate.evaluate_run", interrupted)
    assert run("evaluate", trained) == 130
    assert capsys.readouterr().err == "cmimtl: interrupted.\n"
    assert how_to_go_on(trained) is None
    monkeypatch.setattr("cmimtl.demo.run_demo", interrupted)
    assert run("demo", "--output-dir", tmp_path) == 130
    assert capsys.readouterr().err == "cmimtl: interrupted.\n"
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "run.json", tmp_path / "run")
    assert run("demo", "--output-dir", tmp_path) == 130
    assert capsys.readouterr().err == "cmimtl: interrupted. The same command goes on with it.\n"
    assert "goes on from the first step; none was saved" in how_to_go_on(tmp_path / "run")


# The lock


def test_one_process_at_a_time(trained, data, tmp_path, capsys):
    """While one trains, --resume and a second start say who it is and leave all as it is."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for output, arguments in (
        (trained, ["train", "--output-dir", trained, "--resume"]),
        (trained, train_arguments(data, trained)),
        (fresh, train_arguments(data, fresh)),
    ):
        before = sorted(output.iterdir())
        with locking.lock(output):
            assert run(*arguments) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            f"output_dir must not be in use, got {output}, where process {os.getpid()} on" in line
        )
        assert sorted({*output.iterdir()} - {output / ".lock"}) == [
            path for path in before if path.name != ".lock"
        ]
    assert run("train", "--output-dir", trained, "--resume") == 0
    assert "holds a finished run; nothing to do" in capsys.readouterr().err


def test_a_second_start_that_was_overtaken(data, tmp_path, monkeypatch, capsys):
    """Another process makes the folder while this one reads its data."""
    output = tmp_path / "run"
    with contextlib.ExitStack() as other:

        def overtake(*arguments):
            monkeypatch.undo()
            output.mkdir()
            (output / "run.json").write_text("the other's")
            other.enter_context(locking.lock(output))

        monkeypatch.setattr("cmimtl.training.train.draw_missing", overtake)
        assert run(*train_arguments(data, output)) == 2
    assert "must not be in use" in capsys.readouterr().err
    assert (output / "run.json").read_text() == "the other's"


# A full disk


@pytest.mark.parametrize("size", [200, 1_000_000, 6_000_000], ids=["run", "weights", "optimizer"])
def test_no_space(trained, data, tmp_path, capsys, size):
    """For what describes the run: it leaves nothing. For a checkpoint's weights (5 MB, written by
    safetensors) or optimizer (10 MB, by PyTorch): the run goes on when there is space."""
    output = tmp_path / "run"
    with largest_file(size):
        assert run(*train_arguments(data, output)) == 2
    lines = [x for x in capsys.readouterr().err.replace("\r", "\n").splitlines() if "must be" in x]
    assert len(lines) == 1 and "must be written, got this: " in lines[0]
    if size == 200:
        assert "File too large" in lines[0]
        assert not output.exists()
        return
    assert f"train: {output}/.checkpoint-being-written must be written" in lines[0]
    assert f"`cmimtl train --output-dir {output} --resume` goes on from the first step" in lines[0]
    assert not (output / ".checkpoint-being-written").exists()
    if size == 6_000_000:
        assert run("train", "--output-dir", output, "--resume") == 0
        assert_same_weights(output, trained)


def test_no_space_at_the_end_or_for_the_log(trained, data, tmp_path, monkeypatch, capsys):
    """The model is saved when there is space, and nothing else is done for it again."""
    output = tmp_path / "run"

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CMIMTLProcessor, "save_pretrained", full)
        assert run(*train_arguments(data, output)) == 2
    error = capsys.readouterr().err
    assert f"train: {output} must be written, got this: No space left on device (" in error
    assert "goes on after step 6" in error
    with monkeypatch.context() as patch:
        patch.setattr(CMIMTLTrainer, "training_step", full)
        assert run("train", "--output-dir", output, "--resume") == 0
    assert_same_weights(output, trained)

    with monkeypatch.context() as patch:
        patch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        assert run(*train_arguments(data, tmp_path / "other")) == 2
    error = capsys.readouterr().err
    assert "must be written, got this: No space left on device" in error.splitlines()[-1]
    assert "Traceback" not in error


# A longer run


def test_a_loss_that_is_not_finite(data, tmp_path, monkeypatch, capsys):
    """It ends the training, and what is said of it has a line of its own below the bar."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # a bar, as on a terminal
    arguments = train_arguments(data, tmp_path / "run", **{"learning-rate": 1e30, "save-every": 1})
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    message = error.index("train: every loss must be finite, got")
    assert error.index("use a lower learning rate", message)
    assert "training" in error[:message]
    assert CURSOR_SHOWN in error[:message]
    assert error[:message].rpartition("\n")[2] in ("", CURSOR_SHOWN)


def test_a_finished_run_becomes_longer(trained, data, tmp_path, capsys):
    """Its learning rates from there on are those of a run of that length."""
    output = tmp_path / "run"
    assert run(*train_arguments(data, output, **{"max-steps": 4})) == 0
    short = load_file(output / "model.safetensors")
    resumed = ["train", "--output-dir", output, "--resume"]
    for flags, message in (
        (["--max-steps", 3], "max_steps must be left out for the run in {}, which has max_steps 4"),
        (["--epochs", 9], "epochs must be left out for the run in {}, which has max_steps 4, got"),
    ):
        assert run(*resumed, *flags) == 2
        assert message.format(output) in capsys.readouterr().err
    assert run(*resumed, "--max-steps", 6) == 0
    rates, whole = (learning_rates(r / "checkpoint-6") for r in (output, trained))
    assert {step: rates[step] for step in (5, 6)} == {step: whole[step] for step in (5, 6)}
    assert rates[4] != whole[4]
    record = json.loads((output / "run.json").read_text())
    assert record["arguments"]["max_steps"] == 6
    assert record["lengthened"] == [{"after_step": 4, "max_steps": [4, 6]}]
    longer = load_file(output / "model.safetensors")
    assert not all(tensor.equal(short[name]) for name, tensor in longer.items())
    assert run(*resumed, "--max-steps", 6) == 0
    assert "holds a finished run; nothing to do" in capsys.readouterr().err
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert run(*resumed, "--max-steps", 8) == 2
    assert "output_dir must hold a checkpoint for a finished run to become longer" in (
        capsys.readouterr().err
    )
    assert (output / "model.safetensors").is_file()


def test_epochs_become_more(data, tmp_path, capsys):
    """Of a run that is counted in them; 64 questions are two steps of 32."""
    small, output = tmp_path / "small", tmp_path / "run"
    shutil.copytree(data, small)
    rows = json.loads((data / "train.json").read_text())
    (small / "train.json").write_text(json.dumps(rows[:64]))
    arguments = train_arguments(small, output, **{"batch-size": 32, "epochs": 1})
    del arguments[arguments.index("--max-steps") : arguments.index("--max-steps") + 2]
    assert run(*arguments) == 0
    assert (output / "checkpoint-2").is_dir()
    resumed = ["train", "--output-dir", output, "--resume"]
    assert run(*resumed, "--max-steps", 9) == 2
    assert "max_steps must be left out for the run in" in capsys.readouterr().err
    assert run(*resumed, "--epochs", 2) == 0
    # A warm-up of one step, then down to 0 after step 4.
    rates, most = learning_rates(output / "checkpoint-4"), PRESETS["tiny"].training.learning_rate
    assert rates[3] == pytest.approx(2 / 3 * most) and rates[4] == pytest.approx(1 / 3 * most)


@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", 1000),
        ("optimizer.pt", 1000),
        ("scheduler.pt", 0),
        ("rng_state.pth", 100),
        ("trainer_state.json", 50),
        ("trainer_state.json", b'{"global_step": 5}'),
        ("trainer_state.json", b'{"global_steps": 6}'),
    ],
)
def test_a_damaged_checkpoint_is_named(trained, tmp_path, capsys, name, content):
    """content: the file's, or how many of its bytes are left."""
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    (output / "model.safetensors").unlink()
    path = output / "checkpoint-6" / name
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    assert run("train", "--output-dir", output, "--resume") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(("train: a checkpoint must be", "from_pretrained: weights must be"))
    assert f"got {path}: " in last
    shutil.rmtree(path.parent)  # as the message says
    assert run("train", "--output-dir", output, "--resume") == 0
