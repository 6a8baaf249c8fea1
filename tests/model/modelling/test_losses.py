"""The losses against their formulas, written out."""

import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from cmimtl.modelling.losses import classification_loss, contrastive_loss, generation_loss


def test_classification_sums_over_classes_and_averages_over_samples():
    logits = torch.tensor([[0.5, -1.0, 3.0], [2.0, 0.0, 1.0]])
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.0, 1.0]])

    def term(x, y):
        p = 1 / (1 + math.exp(-x))
        return -(y * math.log(p) + (1 - y) * math.log(1 - p))

    first = term(0.5, 1) + term(-1, 0) + term(3, 0)
    expected = (first + term(2, 0.3) + term(0, 0) + term(1, 1)) / 2
    assert classification_loss(logits, scores).item() == pytest.approx(expected, rel=1e-6)


def test_losses_of_narrow_logits_are_summed_in_float32():
    torch.manual_seed(0)
    narrow, scores = torch.randn(8, 300).bfloat16(), torch.rand(8, 300)
    wide = narrow.double()
    expected = -(scores * F.logsigmoid(wide) + (1 - scores) * F.logsigmoid(-wide)).sum() / 8
    assert classification_loss(narrow, scores).item() == pytest.approx(expected.item(), rel=1e-6)
    labels = torch.randint(300, (1, 8))
    expected = -wide.log_softmax(-1).gather(1, labels.T).mean()
    assert generation_loss(narrow[None], labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_generation_ignores_what_is_not_wanted():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, 2, -100], [-100, -100, -100]])
    log_p = logits.log_softmax(-1)
    expected = -(log_p[0, 0, 1] + log_p[0, 1, 2]) / 2
    torch.testing.assert_close(generation_loss(logits, labels), expected)
    assert generation_loss(logits, torch.full((2, 3), -100)) == 0


def _unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_contrast_takes_the_best_query_and_smooths():
    queries, question = _unit(3, 2, 4), _unit(3, 4, seed=1)
    loss = contrastive_loss(queries, question, torch.tensor(0.1), label_smoothing=0.1)
    total = 0.0
    sim = [[max(float(q @ w) for q in image) / 0.1 for w in question] for image in queries]
    for rows in (sim, list(zip(*sim, strict=True))):
        for i, row in enumerate(rows):
            log_sum = math.log(sum(math.exp(x) for x in row))
            for j, x in enumerate(row):
                target = 0.9 * (i == j) + 0.1 / 3
                total -= target * (x - log_sum)
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_the_same_image_or_question_is_a_positive():
    """With all pairs positive the target is uniform: the loss is that of smoothing by 1."""
    queries, question = _unit(4, 2, 4), _unit(4, 4, seed=1)
    args = queries, question, torch.tensor(0.1)
    alone = contrastive_loss(*args)
    distinct = contrastive_loss(*args, image_index=torch.arange(4), question_index=torch.arange(4))
    torch.testing.assert_close(distinct, alone)
    same = torch.zeros(4, dtype=torch.long)
    uniform = contrastive_loss(*args, label_smoothing=1.0)
    torch.testing.assert_close(contrastive_loss(*args, image_index=same), uniform)
    torch.testing.assert_close(contrastive_loss(*args, question_index=same), uniform)
    assert not torch.allclose(alone, uniform)


def _one_process(rank, port, folder):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queries = _unit(4, 2, 4)[2 * rank : 2 * rank + 2].clone().requires_grad_()
    question = _unit(4, 4, seed=1)[2 * rank : 2 * rank + 2].clone().requires_grad_()
    index = torch.tensor([0, 1, 1, 2])[2 * rank : 2 * rank + 2]
    loss = contrastive_loss(queries, question, torch.tensor(0.1), image_index=index)
    loss.backward()
    torch.save((loss.detach(), queries.grad, question.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_see_the_whole_batch(tmp_path):
    """Loss and gradients are those of one process with both batches.

    Each of the two has the whole loss, and training averages over them, hence the factor 2.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_one_process, (port, str(tmp_path)), nprocs=2)
    queries, question = _unit(4, 2, 4).requires_grad_(), _unit(4, 4, seed=1).requires_grad_()
    index = torch.tensor([0, 1, 1, 2])
    loss = contrastive_loss(queries, question, torch.tensor(0.1), image_index=index)
    loss.backward()
    for rank in range(2):
        part, dqueries, dquestion = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(part, loss.detach())
        rows = slice(2 * rank, 2 * rank + 2)
        torch.testing.assert_close(dqueries / 2, queries.grad[rows])
        torch.testing.assert_close(dquestion / 2, question.grad[rows])
