"""How scans are laid over a GPU: fixed numbers, no GPU."""

import pytest

from cmimtl_kernels.triton import plan

H100 = 132


@pytest.mark.parametrize(
    ("warps", "steps", "expected"),
    [
        (768, 1154, (1, 73)),  # batch 16, 1536 channels: enough programs
        (192, 1154, (5, 15)),  # batch 4
        (48, 4096, (22, 12)),  # batch 1
        (48, 191, (1, 12)),  # too short
        (48, 192, (3, 4)),
        (1, 100_000, (1042, 6)),
        (0, 64, (1, 4)),
    ],
)
def test_segments(warps, steps, expected):
    assert plan.segments(warps, steps, 16, H100) == expected


@pytest.mark.parametrize("every", [2, 16, 32])
@pytest.mark.parametrize("steps", [0, 1, 63, 64, 577, 1154, 2047, 2048, 2049, 16384])
@pytest.mark.parametrize("warps", [1, 7, 48, 300, 10_000])
def test_segments_cover_all_steps_and_none_is_empty(warps, steps, every):
    segments, chunks_per_segment = plan.segments(warps, steps, every, H100)
    if segments > 1:
        segment = chunks_per_segment * every
        assert (segments - 1) * segment < steps <= segments * segment
        assert segment >= plan.FEWEST_STEPS - every


def test_one_channel_to_a_lane_where_programs_are_few():
    assert plan.channels(768, H100) == 1
    assert plan.channels(4096, H100) == 2


def test_tuning_times_each_choice_once(monkeypatch):
    monkeypatch.setattr(plan, "_FASTEST", {})
    timed = []
    seconds = {1: 2.0, 2: 1.0}

    def time(choice):
        timed.append(choice)
        return seconds[choice]

    assert [plan.fastest("sizes", (1, 2), time) for _ in range(2)] == [2, 2]
    assert timed == [1, 2]
