"""Which examples a training sees, and in which order, over the end of an epoch."""

import itertools
import json
import os
import shutil
import signal

import pytest

from cmimtl.data.batches import VQACollator
from cmimtl.training.trainer import CMIMTLTrainer
from tests.model.commands import run, train_arguments
from tests.model.training.test_stopping import assert_same_weights

EXAMPLES, BATCH, STEPS = 24, 8, 6  # three steps an epoch, two epochs


@pytest.fixture(scope="module")
def small(data, tmp_path_factory):
    """A phantom set whose training split has so few questions."""
    root = tmp_path_factory.mktemp("small") / "set"
    shutil.copytree(data, root)
    rows = json.loads((data / "train.json").read_text())
    (root / "train.json").write_text(json.dumps(rows[:EXAMPLES]))
    return root


@pytest.fixture
def seen(monkeypatch):
    """The qids of each batch that is put together for the training, in their order."""
    batches, collate = [], VQACollator.__call__

    def kept(self, items):
        batches.append([item["example"].qid for item in items])
        return collate(self, items)

    monkeypatch.setattr(VQACollator, "__call__", kept)
    return batches


def arguments(root, output, **options):
    return train_arguments(root, output, **{"max-steps": STEPS, "batch-size": BATCH} | options)


def test_every_epoch_sees_each_example_once_in_an_order_of_its_own(small, tmp_path, seen):
    whole = tmp_path / "whole"
    assert run(*arguments(small, whole)) == 0
    assert [len(batch) for batch in seen] == [BATCH] * STEPS
    first, second = (list(itertools.chain(*seen[i : i + 3])) for i in (0, 3))
    wanted = sorted(row["qid"] for row in json.loads((small / "train.json").read_text()))
    assert sorted(map(int, first)) == sorted(map(int, second)) == wanted
    file_order = [str(row["qid"]) for row in json.loads((small / "train.json").read_text())]
    assert first != second and first != file_order and second != file_order
    again, uninterrupted = [], list(seen)
    for seed in (0, 1):
        seen.clear()
        assert run(*arguments(small, tmp_path / f"seed {seed}", seed=seed, **{"max-steps": 1})) == 0
        again.append(seen[0])
    assert again[0] == uninterrupted[0] != again[1]

    # Killed in the first step of the second epoch, after the checkpoint of step 2, it goes on in
    # the first epoch, over its end, as if nothing had been.
    seen.clear()
    stopped = tmp_path / "stopped"
    _stop_in_step(4, arguments(small, stopped))
    seen.clear()
    assert run("train", "--output-dir", stopped, "--resume") == 0
    assert seen == uninterrupted[2:]
    assert_same_weights(stopped, whole)


def test_a_run_goes_on_at_the_beginning_of_an_epoch(small, tmp_path, seen):
    """Its checkpoint is of the last step of an epoch."""
    options = {"save-every": 3}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(*arguments(small, whole, **options)) == 0
    uninterrupted = list(seen)
    _stop_in_step(5, arguments(small, stopped, **options))
    seen.clear()
    assert run("train", "--output-dir", stopped, "--resume") == 0
    assert seen == uninterrupted[3:]
    assert_same_weights(stopped, whole)


def _stop_in_step(step: int, command: list[str]) -> None:
    """Run a training that is asked to end in a step, counted from 1."""
    compute_loss = CMIMTLTrainer.compute_loss

    def stopped(self, *given, **options):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CMIMTLTrainer, "compute_loss", stopped)
        assert run(*command) == 143
