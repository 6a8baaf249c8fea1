"""The commands from end to end on a small phantom set, and what they answer to mistakes."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from cmimtl.data import load_dataset
from cmimtl.demo import run_demo
from cmimtl.evaluation import metrics
from tests.model.commands import run, train_arguments


def test_a_run_leaves_what_it_says(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"run.json", "reader_report.json", "config.json", "model.safetensors", "runs"} <= names
    assert {"checkpoint-4", "checkpoint-6"} <= names and "checkpoint-2" not in names
    assert json.loads((trained / "run.json").read_text())["arguments"]["max_steps"] == 6
    assert any((trained / "runs").rglob("events.out.tfevents.*"))


def test_a_child_of_multiprocessing_runs_no_command(monkeypatch):
    """It imports the main module of its parent under this name, before its own work."""
    assert "main" in runpy.run_module("cmimtl.__main__", run_name="__mp_main__")
    monkeypatch.setattr(sys, "argv", ["cmimtl", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("cmimtl.__main__", run_name="__main__")


def test_evaluate(trained, data, tmp_path):
    assert run("evaluate", trained, "--json", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    expected = {
        "questions", "overall", "open", "closed", "question_only", "shuffled_images",
        "blank_images", "majority", "exact_match", "token_f1", "out_of_vocabulary_share",
        "intervals", "by_content_type",
    }  # fmt: skip
    assert expected <= set(scores)
    test = load_dataset("phantom", data, "test")
    assert scores["questions"] == len(test)
    for name in ("overall", "open", "closed", "question_only", "majority"):
        assert 0 <= scores[name] <= 1
    low, high = scores["intervals"]["overall"]
    assert low <= scores["overall"] <= high
    assert len(scores["predictions"]) == len(test)
    for split in ("descriptions", "compositional"):
        assert run("evaluate", trained, "--split", split, "--json", tmp_path / "c.json") == 0
        scores = json.loads((tmp_path / "c.json").read_text())
        examples = load_dataset("phantom", data, split)
        assert {"exact_match", "token_f1", "classifier", "question_only"} <= set(scores)
        assert [row["qid"] for row in scores["predictions"]] == [e.qid for e in examples]


def test_answer(trained, data, tmp_path, capsys):
    example = load_dataset("phantom", data, "test")[0]
    picture = tmp_path / "answer.png"
    assert (
        run("answer", trained, example.image, "Which body part is shown?", "--output", picture) == 0
    )
    printed = capsys.readouterr().out
    assert "classifier:" in printed and "decoder:" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def _start(arguments):
    command = [sys.executable, "-c", "import sys; from cmimtl.cli import main; sys.exit(main())"]
    return subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL)


def test_a_killed_run_resumes_to_the_same_bits(data, tmp_path):
    """SIGKILL at the first sign of a second checkpoint, then --resume: a whole run's weights."""
    options = {"max-steps": 12, "augmentation": ""}
    arguments = [a for a in train_arguments(data, tmp_path / "whole", **options) if a]
    assert run(*arguments) == 0
    killed = tmp_path / "killed"
    process = _start([a for a in train_arguments(data, killed, **options) if a])
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint-4").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    assert run("train", "--output-dir", killed, "--resume") == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in load_file(killed / "model.safetensors").items():
        assert tensor.equal(expected[name]), name


def test_resume_ignores_what_a_kill_left_half_written(trained, data, tmp_path, capfd):
    """A checkpoint without its last file is deleted and the one before is taken."""
    output = tmp_path / "run"
    assert run(*train_arguments(data, output)) == 0
    (output / "model.safetensors").unlink()
    (output / "checkpoint-6" / "scheduler.pt").unlink()
    assert run("train", "--output-dir", output, "--resume") == 0
    expected = load_file(trained / "model.safetensors")
    for name, tensor in load_file(output / "model.safetensors").items():
        assert tensor.equal(expected[name]), name
    said = "".join(capfd.readouterr())
    assert not [noise for noise in NOISE if noise in said], said


def test_resume_refuses_weights_of_another_model(data, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(*train_arguments(data, output, **{"max-steps": 2})) == 0
    (output / "model.safetensors").unlink()
    file = output / "checkpoint-2" / "model.safetensors"
    weights = load_file(file)
    for changed, message in (
        ({"classifier.layers.1.bias": None}, f"got {file} without classifier.layers.1.bias."),
        (
            {"classifier.layers.9.bias": weights["temperature"].clone()},
            f"got {file} with classifier.layers.9.bias, which the model has not.",
        ),
    ):
        save_file({k: v for k, v in (weights | changed).items() if v is not None}, file)
        assert run("train", "--output-dir", output, "--resume") == 2
        assert message in capsys.readouterr().err


def test_a_demo(tmp_path, capfd):
    """Few steps and pictures, to see that it runs and what it says: to learn takes minutes."""
    output = tmp_path / "demo"
    scores = run_demo(output, json_path=tmp_path / "demo.json", max_steps=3, n_images=200)
    assert {path.name for path in output.iterdir()} == {
        "answers.png", "data", "predictions.jsonl", "run", "scores.json"
    }  # fmt: skip
    written = json.loads((output / "scores.json").read_text())
    assert written == json.loads((tmp_path / "demo.json").read_text()) == scores
    assert written["seconds"]["all"] > written["seconds"]["train"] > 0 and written["seed"] == 0

    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    splits = {
        split: load_dataset("phantom", output / "data", split)
        for split in ("test", "descriptions", "compositional")
    }
    for split, examples in splits.items():
        of_split = [row for row in rows if row["split"] == split]
        assert [(row["qid"], row["question"], row["image"]) for row in of_split] == [
            (e.qid, e.question, e.image_id) for e in examples
        ]
        part = scores if split == "test" else scores[split]
        key = "overall" if split == "test" else "classifier"
        expected = part[key] if split == "test" else part[key]["exact_match"]
        right = [metrics.exact_match(row["classified"], row["answer"]) for row in of_split]
        assert sum(right) / len(right) == pytest.approx(expected, abs=1e-12)
        assert all(
            (row["generated"] is None) == (row["answer_type"] == "closed") for row in of_split
        )
        pairs = [
            (row["generated"], row["answer"]) for row in of_split if row["generated"] is not None
        ]
        f1 = [metrics.token_f1(*pair) for pair in pairs]
        assert sum(f1) / len(f1) == pytest.approx(part["token_f1"], abs=1e-12)
    assert len(rows) == sum(map(len, splits.values()))

    said = "".join(capfd.readouterr())
    for noise in NOISE:
        assert noise not in said, said
    for phase, total in (("drawing the pictures", 200), ("training", 3)):
        assert f"{phase}: {total} of {total}, " in said, said
    asked = re.findall(r"answering test questions: (\d+) of (\d+), ", said)
    assert asked and asked[-1][0] == asked[-1][1]  # what was announced is what was asked
    _, told = said.split("Three questions, drawn at random:\n")
    closed, short, description = told.splitlines()[:3]
    assert "classifier: " in closed and "decoder: " not in closed
    assert "decoder: " in short and "decoder: " in description
    assert any(description.strip().startswith(e.question) for e in splits["compositional"])


# What libraries write of themselves, and nobody has asked for.
NOISE = (
    "Pre-processing sequences", "pin_memory", "{'loss'", "MISSING", "missing keys", "transformers",
    "Loading weights", "Writing model shards", "Warning", "\x1b", "\r",
)  # fmt: skip


PHANTOM = ["--data", "phantom", "--root", "{tmp}"]
MISTAKES = [
    ([], "COMMAND"),
    (["train"], "--output-dir must name the folder of the run, got none"),
    (["train", "--output-dir", "{tmp}/n"], "train: data must be given for a new run"),
    (["train", "--output-dir", "{tmp}/n", "--data", "mnist"], "--data must be one of phantom"),
    (["train", "--output-dir", "{tmp}/n", "--max-steps", "0"], "must be a whole number of at"),
    (["train", "--output-dir", "{tmp}/n", "--learning-rate", "-1"], "must be a number greater"),
    (["train", "--output-dir", "{tmp}/n", "--data", "slake", "--root", "{tmp}/o"], "{tmp}/o"),
    (["train", "--output-dir", "{tmp}/n", "--resume"], "run must be a folder that `cmimtl train"),
    (["train", "--output-dir", "{tmp}/n", *PHANTOM, "--preset", "x"], "one of base, tiny, got 'x'"),
    (["train", "--output-dir", "{run}", *PHANTOM], "--resume goes on"),
    (["train", "--output-dir", "{run}", "--resume", "--seed", "5"], "seed must be what the run in"),
    (["evaluate", "{tmp}"], "run must be a folder that `cmimtl train` made"),
    (["evaluate", "{run}", "--json", "{tmp}"], "which is a folder"),
    (["evaluate", "{run}", "--split", "dev"], "--split must be one of train, validation, test, de"),
    (["answer", "{run}", "{tmp}/none.png", "What?"], "none.png must be accessible"),
    (["answer", "{run}", "{run}/run.json", "What?"], "source must hold an image or DICOM"),
    (["answer", "{run}", "{run}/run.json", "?", "--output", "{tmp}/a.xyz"], "must end in one of"),
    (["answer", "{run}", "{run}/run.json", "?", "--frame", "-1"], "must be a whole number of at"),
]


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_mistakes(trained, tmp_path, capsys, arguments, message):
    """One line on stderr, exit code 2."""
    code = run(*(a.format(tmp=tmp_path, run=trained) for a in arguments))
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message.format(tmp=tmp_path) in error[-1], error
    assert not any("Traceback" in line for line in error)


def test_answer_says_which_frame(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "cmimtl.evaluation.explain.answer_and_draw",
        lambda *arguments, **named: asked.append((arguments, named)),
    )
    assert run("answer", "run", "scan.dcm", "What?", "--frame", "7") == 0
    assert run("answer", "run", "scan.dcm", "What?") == 0
    assert asked == [
        (("run", "scan.dcm", "What?"), {"frame": frame, "output": None}) for frame in (7, None)
    ]


def test_bench_runs_the_tools_of_the_checkout(tmp_path, capfd):
    assert run("bench", "report", "--help") == 0
    assert "usage: cmimtl bench report" in capfd.readouterr().out
    assert run("bench", "plot") == 2
    assert "TOOL must be one of report, static, got 'plot'" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("bench", "static")
    assert "the following arguments are required: --json" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("bench", "report", tmp_path / "none.json", "--page", tmp_path / "page.html")
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"cmimtl bench report: {tmp_path}/none.json must be accessible, got No such file or"
        " directory."
    )
