"""Where a curve of accuracies bends."""

import numpy as np
import pytest

from cmimtl.experiments.weights import knee


def test_the_knee_of_a_broken_stick():
    """Curves that are flat up to 3 and then fall, with any level and slope, and one with noise."""
    weights = np.array([0.3, 1, 3, 10, 30])
    fall = np.maximum(0, np.log(weights / 3))
    curves = np.stack([0.8 - 0.1 * fall, 0.3 - 0.01 * fall])
    # The places that are tried are 8 % apart.
    assert knee(weights, curves) == pytest.approx([3, 3], rel=0.09)
    noisy = curves[0] + np.array([0.004, -0.004, 0.004, -0.004, 0.004])
    assert knee(weights, noisy[None]) == pytest.approx([3], rel=0.3)


def test_no_knee():
    weights = [0.3, 1, 3, 10]
    rising = np.array([[0.5, 0.6, 0.7, 0.8], [0.5, 0.5, 0.5, 0.5]])
    assert np.isinf(knee(weights, rising)).all()
    # What falls from the first weight on bends there.
    assert knee(weights, np.array([[0.8, 0.7, 0.6, 0.5]])) == pytest.approx([0.3], rel=0.1)
