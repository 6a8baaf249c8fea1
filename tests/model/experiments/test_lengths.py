"""Costs by length: fits of made-up times, and one fusion that is measured."""

import pytest

from cmimtl.experiments import lengths


def measured(times):
    """Tokens -> ms, with equal rounds."""
    return [
        {"visual": n // 2, "text": n // 2, "ms": list(ms), "memory_mb": 1.0}
        for n, ms in times.items()
    ]


def test_the_exponent_of_a_power_law():
    square = measured({n: [3e-4 * n**2] * 3 for n in (64, 256, 1024)})
    assert lengths.exponent(square) == pytest.approx({"value": 2, "low": 2, "high": 2})
    # Two rounds whose exponents are 1 and 1.5: their mean has an error of a quarter, and the
    # interval is wide, because two are few.
    found = lengths.exponent(measured({n: [n, n**1.5] for n in (16, 64, 256)}))
    assert found["value"] == pytest.approx(1.25)
    assert found["low"] < 0 and found["high"] > 2.5


def test_what_a_length_would_take():
    """By the growth of the two before it, from linear to square."""
    for times, seconds in (
        ({100: [1.0]}, 4e-3),  # of one size, a square law
        ({100: [1.0], 200: [2.0]}, 4e-3),  # linear
        ({100: [1.0], 200: [4.0]}, 16e-3),  # square
        ({100: [1.0], 200: [0.5]}, 1e-3),  # not below linear
        ({100: [1.0], 200: [9.0, 64.0, 64.0]}, 256e-3),  # not above square, from the median
    ):
        tokens = 2 * list(times)[-1]
        assert lengths.expected(measured(times), tokens) == pytest.approx(seconds)


def test_from_where_on_one_is_quicker():
    slow = measured({10: [1.0], 20: [4.0], 40: [16.0]})
    assert lengths.crossing(measured({10: [2.0], 20: [3.0], 40: [5.0], 80: [9.0]}), slow) == 20
    assert lengths.crossing(measured({10: [0.5], 20: [5.0], 40: [6.0]}), slow) == 40
    assert lengths.crossing(slow, slow) is None


def test_a_fusion_is_measured(monkeypatch):
    """In this process: the times of each round, and a length that would take too long left out."""
    sent = []
    sender = type("Sender", (), {"send": staticmethod(sent.append)})
    monkeypatch.setattr(lengths, "LONGEST_STEP", 60.0)
    lengths._measure("cross-mamba", [(4, 4), (8, 8), (2**20, 2**20)], 2, sender)
    (found,) = sent
    assert [(one["visual"], one["text"], len(one["ms"])) for one in found] == [(4, 4, 2), (8, 8, 2)]
    assert all(ms > 0 for one in found for ms in one["ms"])
    rows = lengths.table({"cross-mamba": found, "none": found[:1]})
    assert rows[0][1:] == ["cross-mamba: ms, MB", "none: ms, MB"]
    assert [row[0] for row in rows[1:]] == ["4 + 4", "8 + 8"] and rows[2][2] == "-"
