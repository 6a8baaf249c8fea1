"""What a step sees and how its losses count, however many batches and processes share it."""

import itertools
import math

import pytest
import torch

from cmimtl.data.batches import EpochOrder
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.losses import classification_loss, generation_loss, total_loss
from cmimtl.training.steps import StepBatches
from cmimtl.training.trainer import loss_scales
from tests.model.commands import run, train_arguments


def epoch(count, batch_size, accumulate, processes):
    """[step][batch][process] -> indices."""
    each = [
        list(
            StepBatches(
                EpochOrder(count, seed=3),
                batch_size=batch_size,
                accumulate=accumulate,
                processes=processes,
                process=process,
            )
        )
        for process in range(processes)
    ]
    batches = list(zip(*each, strict=True))
    return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]


# 12 examples a step: batch size, batches, processes.
SHARED_BY = [(12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (2, 2, 3)]


@pytest.mark.parametrize("count", [12, 13, 24, 25, 97, 1184])
def test_a_step_sees_the_same_examples(count):
    """Where batch size * batches * processes is the same, in the same order; and each example of an
    epoch once."""
    order = list(EpochOrder(count, seed=3))
    expected = None
    for batch_size, accumulate, processes in [
        (12, 1, 1),
        (6, 2, 1),
        (6, 1, 2),
        (3, 2, 2),
        (2, 2, 3),
    ]:
        steps = epoch(count, batch_size, accumulate, processes)
        sizes = [len(part) for step in steps for batch in step for part in batch]
        assert 1 <= min(sizes) and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
        seen = [[i for batch in step for part in batch for i in part] for step in steps]
        assert list(itertools.chain(*seen)) == order
        assert len(steps) == math.ceil(count / 12)
        expected = expected or seen
        assert seen == expected
    # Over processes alone also batch by batch, which the contrastive loss compares.
    two, one = epoch(count, 3, 2, 2), epoch(count, 6, 2, 1)
    assert [[list(itertools.chain(*batch)) for batch in step] for step in two] == [
        [batch[0] for batch in step] for step in one
    ]


def test_batches_of_one_and_too_few_examples():
    assert [len(batch[0]) for (batch,) in epoch(5, 1, 1, 1)] == [1] * 5
    assert sorted(len(p) for s in epoch(5, 1, 1, 2) for b in s for p in b) == [1, 1, 1, 2]
    with pytest.raises(ValueError, match=r"each of the 6 batches of a step \(3 per process, 2 pro"):
        epoch(5, 4, 3, 2)


def test_the_loss_of_a_step_is_that_of_one_large_batch():
    """Batches of unequal lengths and numbers of tokens, one without any: the processes' average of
    the scaled losses' means."""
    generator = torch.Generator().manual_seed(0)
    total = 12
    logits = torch.randn(total, 5, generator=generator)
    scores = torch.rand(total, 5, generator=generator)
    words = torch.randn(total, 6, 7, generator=generator)
    labels = torch.randint(0, 7, (total, 6), generator=generator)
    labels[torch.rand(total, 6, generator=generator) < 0.5] = -100
    labels[:3] = -100
    places = torch.arange(total).split([3, 4, 2, 3])
    parts = [places[:2], places[2:]]  # [process][batch]
    counts = torch.tensor(
        [[[len(p), (labels[p] != -100).sum()] for p in process] for process in parts]
    )
    assert counts[0, 0, 1] == 0
    means = torch.zeros(3)
    for process, batches in enumerate(parts):
        scales = loss_scales(counts, process)
        for place, scale in zip(batches, scales, strict=True):
            local = torch.stack(
                [
                    classification_loss(logits[place], scores[place]),
                    torch.tensor(1.0),  # every process has the whole contrastive loss
                    generation_loss(words[place], labels[place]),
                ]
            )
            means += scale * local / len(batches) / len(parts)
    expected = [classification_loss(logits, scores), torch.tensor(1.0)]
    torch.testing.assert_close(means, torch.stack([*expected, generation_loss(words, labels)]))
    one = torch.tensor([[[8, 5]]])
    assert loss_scales(one, 0).tolist() == [[1, 1, 1]]
    assert loss_scales(torch.tensor([[[8, 0]]]), 0).tolist() == [[1, 1, 0]]


def test_total_loss_weighs():
    config = CMIMTLConfig(contrastive_weight=0.5, generation_weight=3.0)
    assert total_loss(config, 1.0, 10.0, 100.0) == 306
    assert total_loss(config, 1.0, None, None) == 1


def test_accumulated_batches_train_as_one(data, tmp_path, monkeypatch, close_weights):
    """Without the contrastive loss, which compares what is in one batch. 1,184 questions make 99
    steps, of 11 or 12."""

    def without_contrast(**options):
        return CMIMTLConfig(**options, contrastive_weight=0.0)

    monkeypatch.setattr("cmimtl.modelling.presets.CMIMTLConfig", without_contrast)
    options = {"max-steps": 4, "save-every": 4}
    one = train_arguments(data, tmp_path / "one", **options, **{"batch-size": 12})
    two = train_arguments(data, tmp_path / "two", **options, **{"batch-size": 4, "accumulate": 3})
    assert run(*one) == 0 and run(*two) == 0
    close_weights(tmp_path / "two", tmp_path / "one")
