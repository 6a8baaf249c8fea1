"""How a scan is laid over a GPU: pure functions of its sizes and of the number of multiprocessors.

A program is one warp that walks through time; few of them leave a GPU waiting for memory. A split
over time makes more, for about 1.6 times the work (`scan_segments`). It changes the rounding, so it
depends on nothing that is measured: the same sizes on the same device give the same bits.
"""

from collections.abc import Callable, Hashable

# Warps on a multiprocessor with which it is busy: two for each of its four schedulers.
BUSY_WARPS = 8
# Fewest segments that a split is worth, and fewest steps of one.
FEWEST_SEGMENTS, FEWEST_STEPS = 3, 64


def segments(warps: int, steps: int, every: int, processors: int) -> tuple[int, int]:
    """-> (segments, chunks of each but the last).

    Args:
        warps: programs without a split.
        steps: of the scan.
        every: steps of a chunk; a segment is made of whole ones.
        processors: of the device.
    """
    chunks = -(-steps // every)
    most = min(BUSY_WARPS * processors // max(1, warps), steps // FEWEST_STEPS)
    if most < FEWEST_SEGMENTS:
        return 1, chunks
    span = -(-chunks // most)
    return -(-chunks // span), span


def channels(warps: int, processors: int) -> int:
    """Channels of a lane in the forward scan, of 1 and 2; `warps` are the programs with 1."""
    return 2 if warps >= 2 * BUSY_WARPS * processors else 1


_FASTEST: dict[Hashable, int] = {}


def fastest(key: Hashable, choices: tuple[int, ...], seconds: Callable[[int], float]) -> int:
    """The choice that took the least time when `key` was first seen. It must not change results."""
    if key not in _FASTEST:
        _FASTEST[key] = min(choices, key=seconds)
    return _FASTEST[key]
