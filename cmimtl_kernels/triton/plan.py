"""How a scan is laid over a GPU: pure functions of its sizes and of the number of multiprocessors.

A program is one warp that goes through time step by step. Few programs leave a GPU waiting for
memory. Splitting a scan over time makes more of them, for about 1.6 times the work (see
`scan_segments`). A split changes the rounding, so it depends on nothing that is measured: the same
sizes on the same device give the same bits.
"""

from collections.abc import Callable, Hashable

# A multiprocessor is busy with so many warps: two for each of its four schedulers.
BUSY_WARPS = 8
# A split is worth its work from so many segments on, and a segment has at least so many steps.
FEWEST_SEGMENTS, FEWEST_STEPS = 3, 64


def segments(warps: int, steps: int, every: int, processors: int) -> tuple[int, int]:
    """How many segments a scan is split into, and how many chunks each has but the last.

    Args:
        warps: number of programs without a split.
        steps: number of steps of the scan.
        every: number of steps of a chunk. A segment is made of whole chunks.
        processors: number of multiprocessors of the device.
    """
    chunks = -(-steps // every)
    most = min(BUSY_WARPS * processors // max(1, warps), steps // FEWEST_STEPS)
    if most < FEWEST_SEGMENTS:
        return 1, chunks
    chunks_per_segment = -(-chunks // most)
    return -(-chunks // chunks_per_segment), chunks_per_segment


def channels(warps: int, processors: int) -> int:
    """How many channels a lane has in the forward scan, 1 or 2.

    `warps` is the number of programs if a lane has 1.
    """
    return 2 if warps >= 2 * BUSY_WARPS * processors else 1


_FASTEST: dict[Hashable, int] = {}


def fastest(key: Hashable, choices: tuple[int, ...], seconds: Callable[[int], float]) -> int:
    """The choice that took the least time when `key` was first seen.

    The choices must all give the same results.
    """
    if key not in _FASTEST:
        _FASTEST[key] = min(choices, key=seconds)
    return _FASTEST[key]
