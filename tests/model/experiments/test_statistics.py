"""Intervals, p-values and calibration, against values worked out by hand."""

import math

import numpy as np
import pytest

from cmimtl.experiments import statistics
from cmimtl.experiments.statistics import auroc, calibration_error, difference, holm, mean


def test_images_are_drawn_as_wholes():
    """Of images "a", with scores 1 and 1, and "b", with score 0, a sample has a twice in one of
    four cases (mean 1), b twice in one of four (0), and both else (2/3)."""
    estimate = mean(np.array([[1.0, 0.0, 1.0]]), ["a", "b", "a"])
    assert estimate.value == pytest.approx(2 / 3)
    assert (estimate.low, estimate.high) == (0, 1)
    drawn = statistics.resampled(np.array([[1.0, 0.0, 1.0]]), ["a", "b", "a"], arm=0)
    shares = [np.isclose(drawn, value).mean() for value in (0, 2 / 3, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_a_question_that_is_not_counted_changes_nothing():
    values = np.array([[1.0, 0.0, 1.0, 0.0]])
    more = np.insert(values, 2, np.nan, axis=1)
    assert mean(more, ["a", "b", "c", "c", "d"]) == mean(values, ["a", "b", "c", "d"])
    # Where an image counts in no way, a sample of it alone says nothing: it gets the mean.
    lonely = mean(np.array([[1.0, np.nan]]), ["a", "b"])
    assert (lonely.value, lonely.low, lonely.high) == (1, 1, 1)


def test_the_spread_of_seeds_is_students():
    """Two seeds with means 0 and 1, and images that do not differ: the mean is 1/2, and its error
    is sqrt(1/2) / sqrt(2) = 1/2, times the 97.5 % quantile of Student's t with one degree of
    freedom, 12.706."""
    values = np.array([[0.0] * 4, [1.0] * 4])
    drawn = statistics.resampled(values, list("abcd"), arm=0)
    assert np.median(drawn) == pytest.approx(0.5, abs=0.05)
    # The quartiles of Student's t with one degree of freedom are -1 and 1.
    assert np.quantile(drawn, [0.25, 0.75]) == pytest.approx([0.0, 1.0], abs=0.08)
    low, high = mean(values, list("abcd")).low, mean(values, list("abcd")).high
    assert (0.5 - low) / 0.5 == pytest.approx(12.706, rel=0.3)
    assert (high - 0.5) / 0.5 == pytest.approx(12.706, rel=0.3)


def test_arms_share_the_images_and_not_the_seeds():
    rng = np.random.default_rng(0)
    one, images = rng.random((1, 50)), [str(i) for i in range(50)]
    same = [statistics.resampled(one, images, arm=arm) for arm in range(2)]
    np.testing.assert_array_equal(*same)
    three = rng.random((3, 50))
    apart = [statistics.resampled(three, images, arm=arm) for arm in range(2)]
    assert not np.array_equal(*apart)


def test_a_sure_difference_and_none():
    ones, images = np.ones((2, 6)), list("aabbcc")
    sure = difference(ones, 0 * ones, images)
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)
    # No sample is on the other side; 2 (0 + 1) / (samples + 1).
    assert sure.p == pytest.approx(2 / (statistics.RESAMPLES + 1))
    assert difference(0 * ones, ones, images).value == -1
    assert difference(ones, ones, images).p == 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """With three seeds and 40 images of three questions, in 200 studies of arms that do not differ,
    whichever of the two varies more. 95 % of 200 are 190, and 180 is 3.2 deviations below."""
    rng = np.random.default_rng(0)
    images = [str(i) for i in np.repeat(np.arange(40), 3)]
    for of_seeds, of_images in ((0.0, 0.3), (0.1, 0.1)):
        held = found = 0
        for _ in range(200):
            values = (
                rng.normal(0, of_seeds, (3, 1))
                + np.repeat(rng.normal(0, of_images, 40), 3)
                + rng.normal(0, 0.3, (3, 120))
            )
            estimate = difference(values, np.zeros_like(values), images)
            held += estimate.low <= 0 <= estimate.high
            found += estimate.p < 0.05
        assert held >= 180
        assert found <= 20


def test_holm():
    # 3 * 0.01; 2 * 0.03; 1 * 0.04, which must not fall below the one before it
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_calibration_error():
    # Bins of a fifth. 0.9 and 0.9: one of two right, gap 0.4; 0.1: wrong, gap 0.1; 0.2, on an edge,
    # belongs to the bin of 0.1: together |1 - 0.3| = 0.7.
    assert calibration_error([0.9, 0.9, 0.1], [1, 0, 0], bins=5) == pytest.approx((0.8 + 0.1) / 3)
    assert calibration_error([0.1, 0.2], [0, 1], bins=5) == pytest.approx(0.7 / 2)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0
    with pytest.raises(ValueError, match="must lie in"):
        calibration_error([1.1], [1])
    with pytest.raises(ValueError, match="one length"):
        calibration_error([], [])


def test_auroc():
    # Wrong answers at 3 and 1, right ones at 2 and 1: of four pairs, two are in order, one is not,
    # and one is equal.
    assert auroc([3, 1, 2, 1], [1, 1, 0, 0]) == (2 + 0.5) / 4
    assert auroc([2, 1], [1, 0]) == 1
    assert auroc([1, 2], [1, 0]) == 0
    for wrong in ([0, 0], [1, 1], [1]):
        with pytest.raises(ValueError, match="wrong and right answers"):
            auroc([1, 2], wrong)


def test_what_does_not_fit_together():
    with pytest.raises(ValueError, match=r"a and b must have one shape, got \(1, 2\) and \(1, 3\)"):
        difference(np.ones((1, 2)), np.ones((1, 3)), ["a", "b"])
    with pytest.raises(ValueError, match=r"values must have shape \(seeds, 1 questions\)"):
        mean(np.ones((1, 2)), ["a"])
    with pytest.raises(ValueError, match="a question that is counted"):
        mean(np.full((1, 2), math.nan), ["a", "b"])
