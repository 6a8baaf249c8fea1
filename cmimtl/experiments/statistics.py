"""How sure a study can be: paired differences with intervals, corrected p-values, calibration.

A study trains each arm with several seeds and asks every model the same questions. Two things vary
by chance: which images the questions are about, and with which seed a model was trained.

Images are drawn anew in a bootstrap, as wholes, because the questions of one image are alike. Seeds
are too few for that: of three, drawn with replacement, the interval would be the range of the
three, which holds their mean in three of four cases. So each sample of the bootstrap gets the
deviation that the mean of so few seeds has, spread / sqrt(seeds) times Student's t. With one seed
the interval is that of this one training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 4000
AUROC_RESAMPLES = 1000  # each orders all answers anew


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that holds it with 95 % confidence, and what it was taken from.

    Attributes:
        value: the estimate.
        low, high: the interval.
        p: two-sided p-value of "the number is 0"; 1 where it is no difference.
    """

    value: float
    low: float
    high: float
    p: float = 1.0


def mean(values: np.ndarray, images: Sequence[str], *, seed: int = 0) -> Estimate:
    """The mean of a score over questions and seeds of the training.

    Args:
        values: (seeds, questions) scores; NaN where a question is not counted.
        images: (questions,) keys; questions of one image are drawn together.
        seed: seed of the bootstrap.
    Raises:
        ValueError: nothing is counted.
    """
    drawn, value = _bootstrap(values, images, seed)
    low, high = np.quantile(drawn, _tails())
    return Estimate(value, float(low), float(high))


def difference(a: np.ndarray, b: np.ndarray, images: Sequence[str], *, seed: int = 0) -> Estimate:
    """The mean of a - b over questions and seeds; positive where a is the better one.

    Args:
        a, b: (seeds, questions) scores of two arms, trained with the same seeds and asked the same
            questions; NaN where a question is not counted.
        images, seed: as in `mean`.
    Returns:
        with the p-value of the bootstrap: twice the share of its samples on the other side of 0,
        counted so that it is never 0 (Davison & Hinkley 1997, section 4.4).
    Raises:
        ValueError: the arms differ in shape, or nothing is counted.
    """
    if a.shape != b.shape:
        raise ValueError(f"difference: a and b must have one shape, got {a.shape} and {b.shape}.")
    drawn, value = _bootstrap(a - b, images, seed)
    low, high = np.quantile(drawn, _tails())
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Estimate(value, float(low), float(high), min(1.0, 2 * (least + 1) / (len(drawn) + 1)))


def resampled(values: np.ndarray, images: Sequence[str], *, arm: int, seed: int = 0) -> np.ndarray:
    """Means of RESAMPLES samples, (RESAMPLES,).

    Arms that were asked the same questions get the same samples of the images. So what is computed
    of several arms in each sample has the interval that the quantiles of the result give.

    Args: as of `mean`, and the number of the arm, whose trainings vary on their own.
    """
    return _bootstrap(values, images, seed, arm)[0]


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The interval of something that was computed in each sample of the bootstrap."""
    low, high = np.quantile(drawn, _tails(), method="closest_observation")
    return float(low), float(high)


def _tails() -> list[float]:
    tail = (1 - CONFIDENCE) / 2
    return [tail, 1 - tail]


def _bootstrap(
    values: np.ndarray, images: Sequence[str], seed: int, stream: int = 0
) -> tuple[np.ndarray, float]:
    """RESAMPLES samples of the mean, and the mean itself."""
    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[1] != len(images):
        raise ValueError(
            f"bootstrap: values must have shape (seeds, {len(images)} questions), got"
            f" {values.shape}."
        )
    counted = ~np.isnan(values)
    if not counted.any(1).all():
        raise ValueError("bootstrap: every seed must have a question that is counted, got none.")
    filled = np.where(counted, values, 0.0)
    of_seed = filled.sum(1) / counted.sum(1)
    _, image_of = np.unique(np.asarray(images), return_inverse=True)
    n_images = int(image_of.max()) + 1
    sums = np.bincount(image_of, filled.sum(0), n_images)
    numbers = np.bincount(image_of, counted.sum(0), n_images)
    weights = _drawn_images(n_images, RESAMPLES, seed)
    total, number = weights @ sums, weights @ numbers
    # A sample may leave out every image that counts. It says nothing, and gets the mean.
    value = float(sums.sum() / numbers.sum())
    drawn = np.divide(total, number, out=np.full(RESAMPLES, value), where=number > 0)
    return with_seeds(drawn, of_seed, seed, stream), value


@functools.lru_cache(maxsize=8)  # every measure of a study draws the same images
def _drawn_images(n_images: int, samples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each sample, (samples, n_images), not to be changed."""
    even = np.full(n_images, 1 / n_images)
    return np.random.default_rng(seed).multinomial(n_images, even, size=samples).astype(float)


def with_seeds(
    drawn: np.ndarray, of_seed: np.ndarray, seed: int = 0, stream: int = 0
) -> np.ndarray:
    """Samples that vary as the mean of so few seeds does too.

    Args:
        drawn: (samples,) of the mean over the seeds.
        of_seed: (seeds,) values; of one seed nothing is known of how they vary.
    """
    n_seeds = len(of_seed)
    if n_seeds == 1:
        return drawn
    spread = of_seed.std(ddof=1) / math.sqrt(n_seeds)
    noise = np.random.default_rng([seed, 1 + stream]).standard_t(n_seeds - 1, len(drawn))
    return drawn + spread * noise


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected so that all of them together keep the level.

    The smallest is multiplied by the number of comparisons, the next by one less, …; none becomes
    smaller than one before it, nor greater than 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = largest
    return corrected


def calibration_error(
    probabilities: Sequence[float], correct: Sequence[float], *, bins: int = 15
) -> float:
    """Expected calibration error: how far confidence is from accuracy, in [0, 1].

    Answers are put into bins of equal width by their probability. The error is the mean over the
    bins, weighted by their answers, of |accuracy - mean probability|.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        probabilities: of each answer, in [0, 1].
        correct: 1 where it was right, else 0.
        bins: number of bins.
    Raises:
        ValueError: lengths differ or are 0, or a probability lies outside.
    """
    p, right = np.asarray(probabilities, float), np.asarray(correct, float)
    if p.shape != right.shape or not p.size:
        raise ValueError(
            "calibration_error: probabilities and correct must have one length of at least 1, got"
            f" {p.size} and {right.size}."
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"calibration_error: probabilities must lie in [0, 1], got {p.min()} to {p.max()}."
        )
    # A probability on the edge of two bins belongs to the lower one, and 0 to the first.
    which = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.abs(np.bincount(which, right - p, minlength=bins))
    return float(gaps.sum() / p.size)


def auroc(scores: Sequence[float], wrong: Sequence[float]) -> float:
    """The chance that a random wrong answer has a higher score than a random right one.

    Equal scores count half. 0.5 is no warning at all. It is the Mann-Whitney statistic over the
    number of pairs.

    Raises:
        ValueError: lengths differ, or all answers are right, or all are wrong.
    """
    s, w = np.asarray(scores, float), np.asarray(wrong, bool)
    if s.shape != w.shape or w.all() or not w.any():
        raise ValueError(
            "auroc: scores and wrong must have one length, with wrong and right answers, got"
            f" {s.size} scores, {int(w.sum())} wrong of {w.size}."
        )
    return float(_aurocs(s, w, np.ones((1, len(s))))[0])


def _aurocs(s: np.ndarray, w: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`auroc` with each answer as often as its weight says, (samples,) of (samples, answers).

    It is NaN where only right or only wrong answers have a weight.
    """
    order = np.argsort(s, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(s[order]) > 0])  # of equal scores
    sorted_ = weights[:, order]
    wrong = np.add.reduceat(sorted_ * w[order], begins, axis=1)
    right = np.add.reduceat(sorted_ * ~w[order], begins, axis=1)
    below = np.cumsum(right, axis=1) - right / 2  # right answers below, and half of the equal ones
    pairs = wrong.sum(1) * right.sum(1)
    return np.divide(
        (wrong * below).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0
    )


def auroc_samples(
    scores: np.ndarray, wrong: np.ndarray, images: Sequence[str], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`auroc` of each seed, and in samples of the images its mean over the seeds.

    Args:
        scores, wrong: (seeds, answers).
        images: (answers,) keys; answers about one image are drawn together.
    Returns:
        (seeds,) and (AUROC_RESAMPLES,); the samples of several scores of the same answers are of
        the same images, so that the difference of two has an interval too. See `with_seeds`.
    Raises:
        ValueError: as `auroc`.
    """
    of_seed = np.array([auroc(s, w) for s, w in zip(scores, wrong, strict=True)])
    _, image_of = np.unique(np.asarray(images), return_inverse=True)
    weights = _drawn_images(int(image_of.max()) + 1, AUROC_RESAMPLES, seed)
    drawn = np.empty((len(of_seed), AUROC_RESAMPLES))
    for number, (s, w) in enumerate(zip(scores, np.asarray(wrong, bool), strict=True)):
        for first in range(0, AUROC_RESAMPLES, 50):  # of 30,000 answers, 12 MB at a time
            chunk = slice(first, first + 50)
            drawn[number, chunk] = _aurocs(s, w, weights[chunk][:, image_of])
    # A sample may have only right answers. It says nothing, and gets the value.
    drawn = np.where(np.isnan(drawn), of_seed[:, None], drawn)
    return of_seed, drawn.mean(0)
