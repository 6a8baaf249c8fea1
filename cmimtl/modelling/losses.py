"""The three losses of the objective: classification, contrast of image and question, generation."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def total_loss(config, classification, contrastive, generation):
    """The objective: the sum of the losses, weighted as a CMIMTLConfig says.

    A loss that is None is left out.
    """
    parts = (
        (config.classification_weight, classification),
        (config.contrastive_weight, contrastive),
        (config.generation_weight, generation),
    )
    return sum(weight * part for weight, part in parts if part is not None)


def classification_loss(logits: Tensor, answer_scores: Tensor) -> Tensor:
    """Binary cross-entropy against soft scores, summed over classes, mean over samples.

    Args:
        logits, answer_scores: (batch, classes); scores in [0, 1].
    """
    loss = F.binary_cross_entropy_with_logits(
        logits.float(), answer_scores.float(), reduction="sum"
    )
    return loss / logits.shape[0]


def contrastive_loss(
    queries: Tensor,
    question: Tensor,
    temperature: Tensor,
    *,
    image_index: Tensor | None = None,
    question_index: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric cross-entropy between images and questions over the batch of all processes.

        similarity(i, j) = max over queries of <queries[i], question[j]> / temperature

    Samples with the same image or the same question are positives of each other.

    Args:
        queries: (batch, num_queries, dim), normalised: the Q-Former's outputs for the image alone.
        question: (batch, dim), normalised.
        temperature: scalar.
        image_index, question_index: (batch,) integers, equal for the same image or question across
            processes. An index that is None makes each sample a positive of itself alone.
        label_smoothing: share of the target that is spread over all samples.
    """
    queries, question = gather(queries), gather(question)
    similarity = (
        torch.einsum("iqd,jd->iqj", queries.float(), question.float()).amax(1) / temperature
    )
    positive = torch.eye(len(question), dtype=torch.bool, device=question.device)
    for index in (image_index, question_index):
        if index is not None:
            index = gather(index)
            positive = positive | (index[:, None] == index)
    return (
        _cross_entropy(similarity, positive, label_smoothing)
        + _cross_entropy(similarity.T, positive.T, label_smoothing)
    ) / 2


def _cross_entropy(logits: Tensor, positive: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of each row of logits against the uniform distribution over its positives.

    The target is smoothed; the mean over the rows is returned.
    """
    target = positive.float() / positive.sum(1, keepdim=True)
    target = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
    return -(target * logits.log_softmax(1)).sum(1).mean()


def gather(x: Tensor) -> Tensor:
    """Concatenate the batches of all processes, with gradient. Their lengths may differ."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """Concatenation over processes; the gradient of a row is summed over all that used it.

    torch.distributed.nn.functional.all_gather is not used. Over gloo, its backward pass sends
    gradients that are not contiguous as if they were, and the rows arrive mixed up.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        lengths = x.new_zeros(dist.get_world_size(), dtype=torch.long)
        lengths[dist.get_rank()] = len(x)
        dist.all_reduce(lengths)
        ctx.lengths = lengths.tolist()
        # all_gather takes tensors of one length, so each batch is filled up to the longest one.
        longest = max(ctx.lengths)
        mine = torch.cat((x, x.new_zeros(longest - len(x), *x.shape[1:])))
        parts = [torch.empty_like(mine) for _ in ctx.lengths]
        dist.all_gather(parts, mine)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.lengths, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.split(ctx.lengths)[dist.get_rank()]


def generation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens, mean over tokens; 0 where there are no tokens.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length), -100 where no token is wanted.
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (labels != -100).sum().clamp(min=1)
