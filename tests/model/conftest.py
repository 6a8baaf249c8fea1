"""A small model of each fusion, and a batch with open and closed questions."""

import dataclasses

import numpy as np
import pytest
import torch

from cmimtl.data import AnswerVocabulary
from cmimtl.presets import PRESETS, build_model, build_processor

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
        preset = dataclasses.replace(PRESETS["tiny"], sizes=PRESETS["tiny"].sizes | sizes)
        return build_model(preset, vocabulary=vocabulary, processor=processor, fusion=fusion)

    return make


@pytest.fixture
def batch(processor):
    """Three samples; the first question is closed."""
    size = PRESETS["tiny"].sizes["image_size"]
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    batch = dict(processor(images=list(pictures), text=QUESTIONS, answers=ANSWERS))
    batch["labels"][0] = -100
    batch["answer_scores"] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    batch["image_index"], batch["question_index"] = torch.tensor([0, 1, 1]), torch.arange(3)
    return batch
