"""A small model of each fusion and a batch for it; a small phantom set and one run on it."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmimtl.data import AnswerVocabulary, write_phantom
from cmimtl.modelling.presets import PRESETS, build_model, build_processor
from tests.model.commands import run, train_arguments

QUESTIONS = [
    "Is there a lesion?",
    "Which organ is shown on the left side?",
    "Describe the finding.",
]
ANSWERS = ["yes", "lung", "large dark lesion in the left lung"]


@pytest.fixture(scope="session")
def processor():
    return build_processor(PRESETS["tiny"], QUESTIONS, ANSWERS)


@pytest.fixture(scope="session")
def make_model(processor):
    def make(fusion="cross-mamba", **sizes):
        torch.manual_seed(0)
        vocabulary = AnswerVocabulary(["yes", "no", "lung"])
        preset = dataclasses.replace(PRESETS["tiny"], config=PRESETS["tiny"].config | sizes)
        return build_model(preset, vocabulary=vocabulary, processor=processor, fusion=fusion)

    return make


@pytest.fixture
def batch(processor):
    """Three samples; the first question is closed."""
    size = PRESETS["tiny"].config["image_size"]
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    batch = dict(processor(images=list(pictures), text=QUESTIONS, answers=ANSWERS))
    batch["labels"][0] = -100
    batch["answer_scores"] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    batch["image_index"], batch["question_index"] = torch.tensor([0, 1, 1]), torch.arange(3)
    return batch


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", n_images=200)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A finished run. Not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert run(*train_arguments(data, output)) == 0
    return output


@pytest.fixture(scope="session")
def close_weights():
    """A check that two folders hold the same weights, to rounding.

    The worst that was measured is 1.3e-5, after four steps at learning rate 1e-3, which have moved
    them by up to 3e-3: Adam divides a gradient by its own size, and those of the contrastive loss
    are small in a new model.
    """

    def check(run_folder, expected_folder):
        expected = load_file(expected_folder / "model.safetensors")
        actual = load_file(run_folder / "model.safetensors")
        assert actual.keys() == expected.keys()
        for name, tensor in actual.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=5e-5, msg=name)

    return check
