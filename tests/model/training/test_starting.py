"""How commands start: everything is checked before anything is written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils.data import get_worker_info

from cmimtl.data.batches import VQADataset
from cmimtl.evaluation import evaluate
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.training import train
from tests.model.commands import run, train_arguments

NEW = ["train", "--output-dir", "{tmp}/above/new"]
PHANTOM = ["--data", "phantom", "--root", "{data}"]
BASE = [*NEW, *PHANTOM, "--preset", "base"]
FAILING = {
    "root": ([*NEW, "--data", "slake", "--root", "{tmp}/none"], "{tmp}/none with no such folder"),
    "data": ([*NEW, "--data", "vqa-rad", "--root", "{data}"], "root must hold"),
    "preset": ([*NEW, *PHANTOM, "--preset", "huge"], "preset must be one of base, tiny"),
    "weights": ([*BASE, "--weights", "{tmp}/none"], "{tmp}/none without vision, text, decoder"),
    "no weights": ([*NEW, *PHANTOM, "--weights", "{tmp}"], "weights must be left out with the"),
    "hub": (BASE, "the pretrained text 'FacebookAI/roberta-base' must be on the hub"),
    "seed": ([*NEW, *PHANTOM, "--seed", "5000000000"], "seed must be a whole number from 0 to 42"),
    "set": ([*NEW, *PHANTOM, "--set", "layers=2"], "changes must name one of max_question_length,"),
    "set no field": ([*NEW, *PHANTOM, "--set", "text_config=2"], "got 'text_config'"),
    "set no value": ([*NEW, *PHANTOM, "--set", "fusion_layers"], "must have the form NAME=VALUE"),
    "set too small": ([*NEW, *PHANTOM, "--set", "num_queries=0"], "num_queries must be positive"),
    "set below 0": (
        [*NEW, *PHANTOM, "--set", "generation_weight=-1"],
        "generation_weight must be a number of at least 0, got -1",
    ),
    "set text": ([*NEW, *PHANTOM, "--set", "num_queries=many"], "num_queries"),
    "decoder answers": ([*NEW, *PHANTOM, "--decoder-answers", "none"], "one of own, shuffled"),
    "accumulate": ([*NEW, *PHANTOM, "--accumulate", "9999"], "an example for each of the 9999"),
    "no picture": (
        [*NEW, "--data", "phantom", "--root", "{tmp}/broken"],
        "source.jpg must be a readable image",
    ),
    "file": (
        ["train", "--output-dir", "{data}/phantom.json/new", *PHANTOM],
        "{data}/phantom.json is no folder",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_train_that_fails_leaves_nothing(data, tmp_path, capsys, name):
    if name == "no picture":
        shutil.copytree(data, tmp_path / "broken")
        next((tmp_path / "broken" / "imgs").glob("*/source.jpg")).write_text("no picture")
    arguments, message = FAILING[name]
    before = set(tmp_path.iterdir())
    assert run(*(text.format(tmp=tmp_path, data=data) for text in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message.format(tmp=tmp_path, data=data) in error[-1], error
    assert set(tmp_path.iterdir()) == before


def test_questions_that_are_longer_than_what_is_read_are_told(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "long")
    file = tmp_path / "long" / "train.json"
    rows = json.loads(file.read_text())
    for row, words in zip(rows, (30, 31, 50), strict=False):  # and two marks
        row["question"] = "lesion " * words
    file.write_text(json.dumps(rows))
    arguments = train_arguments(tmp_path / "long", tmp_path / "run", **{"max-steps": 1})
    assert run(*arguments) == 0
    line = next(x for x in capsys.readouterr().err.splitlines() if "that are read of one" in x)
    assert line.startswith("2 questions have more than the 32 tokens"), line
    assert line.rstrip().endswith("the longest has 52: " + "lesion " * 49 + "lesion"), line


@pytest.mark.parametrize(
    "given, message",
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 4294967295, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number from 1"),
        ({"workers": -1}, "workers must be a whole number from 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a number greater than 0, got 0.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be a number of at least 0, got nan"),
        ({"lr": 1.0}, "arguments must be known, got lr"),
    ],
)
def test_values_out_of_range(data, tmp_path, given, message):
    """The command line has checks of its own; these are for who calls the function."""
    with pytest.raises(ValueError, match=message):
        train.train(tmp_path / "new", data="phantom", root=data, **given)
    assert not (tmp_path / "new").exists()


def test_bf16_where_the_gpu_has_none(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    arguments = {"bf16": True}
    train._check_device(arguments)  # on the CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="bf16 must be off on a GPU without bfloat16, got an old"):
        train._check_device(arguments)


def test_bf16_on_a_cpu(data, tmp_path):
    seen = []

    class Watched(train.CMIMTLTrainer):
        def compute_loss(self, *arguments, **options):
            handle = self.model.contrast_visual.register_forward_hook(
                lambda module, inputs, output: seen.append(output.dtype)
            )
            try:
                return super().compute_loss(*arguments, **options)
            finally:
                handle.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "CMIMTLTrainer", Watched)
        flags = train_arguments(data, tmp_path / "run", **{"max-steps": 2})
        assert run(*flags, "--bf16") == 0
    log = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    # A new model finds each of some 420 answers as likely as not: ln 2 for each.
    assert 0 < log["log_history"][-1]["classification_loss"] < 500
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("cause", ["step", "worker", "interruption"])
def test_a_first_step_that_fails_leaves_nothing(data, tmp_path, monkeypatch, capsys, cause):
    """Whatever the cause, the corrected command runs."""

    def fails(*arguments, **options):
        raise KeyboardInterrupt if cause == "interruption" else ValueError("train: no step")

    def dies(self, index):
        assert get_worker_info() is not None
        os._exit(1)

    output = tmp_path / "above" / "run"
    arguments = train_arguments(data, output, **{"max-steps": 1})
    with monkeypatch.context() as patch:
        if cause == "worker":
            patch.setattr(VQADataset, "__getitem__", dies)
            assert run(*arguments, "--workers", 1) == 2
            message = "train: workers must be as many as can run, got this: DataLoader worker"
        else:
            patch.setattr(CMIMTLForVisualQuestionAnswering, "forward", fails)
            assert run(*arguments) == (130 if cause == "interruption" else 2)
            message = "cmimtl: interrupted." if cause == "interruption" else "train: no step"
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last and "--resume" not in last
    assert list(tmp_path.iterdir()) == []
    if cause == "worker":
        assert run(*arguments, "--workers", 1) == 0
        assert (output / "model.safetensors").is_file()


def test_a_run_that_was_killed_before_it_saved_is_started_anew(trained, data, tmp_path):
    """And one that holds anything else is not."""
    output = tmp_path / "run"
    (output / ".checkpoint-being-written").mkdir(parents=True)
    shutil.copytree(trained / "runs", output / "runs")
    for name in ("run.json", "reader_report.json", ".lock"):
        shutil.copy(trained / name, output)
    (output / "notes.txt").touch()
    arguments = train_arguments(data, output, **{"max-steps": 1})
    assert run(*arguments) == 2
    (output / "notes.txt").unlink()
    assert run(*arguments) == 0
    assert json.loads((output / "run.json").read_text())["arguments"]["max_steps"] == 1
    assert len(list((output / "runs").rglob("events.*"))) == 1


def test_split_is_checked_before_anything_is_loaded(trained, data, monkeypatch, capsys):
    def load(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(evaluate.QuestionAnswerer, "from_run", load)
    arguments = ["evaluate", trained, "--data", "slake", "--root", data]
    assert run(*arguments, "--split", "compositional") == 2
    assert "split must be one of 'train', 'validation', 'test', got" in capsys.readouterr().err
    assert run("evaluate", trained, "--split", "tset") == 2
    names = "train, validation, test, descriptions, compositional"
    assert f"--split must be one of {names}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        run("evaluate", "--help")
    words = " ".join(capsys.readouterr().out.split())
    said = "--split NAME train, validation, test; of phantom also descriptions, compositional"
    assert f"{said} (test)" in words


# Without the extras

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
# Not NumPy, the want of which PyTorch itself warns of.
OF_MODELS = {
    "PIL", "accelerate", "einops", "gdcm", "matplotlib", "pydicom", "rich", "sentencepiece",
    "tensorboard", "timm", "torchvision", "transformers",
}  # fmt: skip


@pytest.fixture
def without(tmp_path):
    """Run Python in an environment that lacks some packages."""

    def python(names, *arguments):
        (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(names=names))
        path = os.pathsep.join([str(tmp_path), os.getcwd()])
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    return python


COMMANDS = [
    ["demo"],
    ["train", "--data", "slake", "--root", "data", "--output-dir", "run"],
    ["train", "--output-dir", "run", "--resume"],
    ["evaluate", "run"],
    ["answer", "run", "image", "question"],
    ["bench", "report", "--help"],
    ["bench", "static", "--help"],
]


def test_a_missing_extra_is_named(without):
    """By every command, in one line; help and version need none."""
    code = f"""
import sys
from cmimtl.cli import main
for arguments in {COMMANDS}:
    try:
        print(main(arguments), file=sys.stderr)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
try:
    import cmimtl
    cmimtl.CMIMTLConfig
except ModuleNotFoundError as error:
    print(error, file=sys.stderr)
"""
    done = without(OF_MODELS, "-c", code)
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(COMMANDS) + 1 and done.stdout == "", done.stderr
    for command, line, exit_code in zip(COMMANDS, lines[::2], lines[1::2], strict=False):
        name = " ".join(command[: 2 if command[0] == "bench" else 1])
        assert line.startswith(f"cmimtl {name}: ") and exit_code == "2"
    assert lines[-1].startswith("cmimtl.CMIMTLConfig: ")
    for line in (*lines[::2][: len(COMMANDS)], lines[-1]):
        assert "must be installed, got none; `pip install 'cmimtl[models]'`, or" in line
        assert "`pip install -e '.[models]'` in a checkout" in line
    for module in ("cmimtl", "cmimtl.cli"):
        shown = without(OF_MODELS | {"torch"}, "-m", module, "--help")
        assert shown.returncode == 0 and shown.stdout.startswith("usage: cmimtl [-h]")
    shown = without(OF_MODELS | {"torch"}, "-m", "cmimtl", "--version")
    assert shown.stdout.startswith("cmimtl ") and f"torch {torch.__version__[:4]}" in shown.stdout


def test_what_is_missing_decides_which_extra(without):
    done = without({"triton"}, "-c", "from cmimtl.messages import *\n"
        "try: import triton\nexcept ImportError as error: print(missing('x', error))")  # fmt: skip
    assert done.stdout.startswith("x: triton must be installed, got none; `pip install 'cmimtl[tr")


def test_a_preset_with_changes(data, tmp_path):
    """They reach the model, are kept with the run, and cannot be others when it is resumed."""
    changes = ["fusion_layers=2", "generation_weight=0", "vision_options.depth=1"]
    flags = [word for change in changes for word in ("--set", change)]
    output = tmp_path / "run"
    arguments = train_arguments(data, output, **{"max-steps": 2})
    assert run(*arguments, *flags, "--decoder-answers", "shuffled") == 0
    kept = json.loads((output / "run.json").read_text())["arguments"]
    assert kept["changes"] == {
        "fusion_layers": 2, "generation_weight": 0, "vision_options.depth": 1,
    }  # fmt: skip
    model = CMIMTLForVisualQuestionAnswering.from_pretrained(output)
    assert len(model.fusion.layers) == 2 and len(model.vision.vit.blocks) == 1
    assert model.config.vision_options["num_heads"] == 4  # the preset's, beside what was changed
    logs = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    entry = next(entry for entry in logs if "loss" in entry)
    expected = entry["classification_loss"] + 0.2 * entry["contrastive_loss"]
    assert entry["generation_loss"] > 1 and entry["loss"] == pytest.approx(expected, rel=1e-3)
    assert run("train", "--output-dir", output, "--resume", *flags) == 0
    assert run("train", "--output-dir", output, "--resume", "--set", "fusion_layers=3") == 2
