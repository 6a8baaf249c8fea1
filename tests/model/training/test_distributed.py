"""Two processes train one model: that of one process with twice the batch."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cmimtl.runs import clean
from tests.model.commands import run, train_arguments


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """What two processes left: the folder of a resumed run, that of the whole one, and stderr."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [
            *torchrun,
            "-m",
            "tests.model.training.two_processes",
            data,
            folder / "run",
            folder / "whole",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", folder / "whole", done.stderr


def test_two_processes_train_as_one(two, data, tmp_path, close_weights):
    """Steps of 11 or 12 questions, in four batches or in two.

    The first four steps: the contrastive loss takes the largest of similarities that are nearly
    equal in a new model, and from the fifth step on rounding decides which one it is (the weights
    differ by 2.7e-4 after the sixth).
    """
    one = tmp_path / "one"
    assert run(*train_arguments(data, one, **{"batch-size": 6, "accumulate": 2})) == 0
    close_weights(two[1] / "checkpoint-4", one / "checkpoint-4")
    logs = [
        json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
        for run in (two[1], one)
    ]
    assert len(logs[0]) == len(logs[1]) == 4
    for mine, expected in zip(*logs, strict=True):
        for name, value in expected.items():
            assert mine[name] == pytest.approx(value, rel=1e-4), (name, expected["step"])


def test_a_distributed_run_resumes_to_the_same_bits(two):
    resumed, whole = (load_file(run / "model.safetensors") for run in two[:2])
    for name, tensor in resumed.items():
        assert tensor.equal(whole[name]), name
    states = [torch.load(two[0] / "checkpoint-6" / f"rng_state_{i}.pth", weights_only=False)
              for i in range(2)]  # fmt: skip
    assert not states[0]["cpu"].equal(states[1]["cpu"]), "dropout would be the same in both"


def test_one_process_speaks(two):
    error = two[2]
    assert error.count("the model is in") == 2
    assert error.count("must be new or empty, got") == 1
    assert "Traceback" not in error


def test_a_run_goes_on_with_as_many_processes(two, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(two[1], output)
    (output / "model.safetensors").unlink()
    assert run("train", "--output-dir", output, "--resume") == 2
    assert (
        f"processes must be as many as the run in {output} was started with (2), got 1; start it"
        " with `torchrun --nproc-per-node 2 -m cmimtl`" in capsys.readouterr().err
    )
    (output / "checkpoint-6" / "rng_state_1.pth").unlink()
    assert clean(output, 2).name == "checkpoint-4"


def test_other_commands_are_the_first_processs(trained, tmp_path, monkeypatch):
    """evaluate under torchrun: as without, in one of the processes."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run("evaluate", trained, "--json", tmp_path / "1.json") == 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run("evaluate", trained, "--json", tmp_path / "0.json") == 0
    assert (tmp_path / "0.json").is_file()


def test_mistakes_in_arguments_are_said_once(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run("train", "--seed", "x") == 2
    assert capsys.readouterr().err == ""
