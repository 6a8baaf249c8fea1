"""Values of which each lane has one: loads and stores of four at a time, and sums over lanes.

A lane is a thread of the one warp that runs a program. A tensor [LANES] has one element in each
lane, so a tuple of such tensors is a set of registers. `tl.gather` between lanes is one shuffle.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl


@triton.jit
def no_states(COUNT: tl.constexpr, LANES: tl.constexpr):
    """COUNT states of a lane, all 0."""
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros([LANES], dtype=tl.float32),)
    return zeros


@triton.jit
def load_four(pointer, mask=None):
    """Load the four elements from `pointer` on, for each lane.

    pointer: [LANES]; mask: [LANES], [LANES, 4] or None.
    """
    LANES: tl.constexpr = pointer.shape[0]
    pointer = pointer[:, None] + tl.arange(0, 4)[None, :]
    if mask is None:
        quad = tl.load(pointer)
    else:
        quad = tl.load(pointer, mask=mask, other=0.0)
    even, odd = tl.split(tl.reshape(quad.to(tl.float32), [LANES, 2, 2]))
    q0, q2 = tl.split(even)
    q1, q3 = tl.split(odd)
    return q0, q1, q2, q3


@triton.jit
def store_four(pointer, q0, q1, q2, q3, mask=None):
    """The inverse of `load_four`."""
    LANES: tl.constexpr = pointer.shape[0]
    pointer = pointer[:, None] + tl.arange(0, 4)[None, :]
    quad = tl.reshape(tl.join(tl.join(q0, q2), tl.join(q1, q3)), [LANES, 4])
    if mask is None:
        tl.store(pointer, quad)
    else:
        tl.store(pointer, quad, mask=mask)


@triton.jit
def sum_over_states(v, lane):
    """Add up values over four neighbouring lanes; v[s] of lane l belongs to channel s ^ (l % 4).

    -> in lane l, the sum of channel l % 4. This order of the slots lets each lane keep its even
    slots and give its odd ones away, without selecting. That takes 3 exchanges; a butterfly would
    take 8.
    """
    even = v[0] + tl.gather(v[1], lane ^ 1, 0)
    odd = v[2] + tl.gather(v[3], lane ^ 1, 0)
    return even + tl.gather(odd, lane ^ 2, 0)


@triton.jit
def _fold(low, high, lane, BIT: tl.constexpr):
    """Add up values of lane and lane ^ BIT: `high` in the lane with the bit, else `low`."""
    upper = (lane & BIT) > 0
    keep = tl.where(upper, high, low)
    return keep + tl.gather(tl.where(upper, low, high), lane ^ BIT, 0)


@triton.jit
def sum_over_channels(v, w, lane):
    """Add up v[0] … v[3], and w[0] … w[3], over all lanes l with the same l % 4.

    -> in lane l, the sum of v[l // 4 % 4], or of w[l // 4 % 4] where l // 16 is odd.
    """
    v = _fold(_fold(v[0], v[1], lane, 4), _fold(v[2], v[3], lane, 4), lane, 8)
    w = _fold(_fold(w[0], w[1], lane, 4), _fold(w[2], w[3], lane, 4), lane, 8)
    total = _fold(v, w, lane, 16)
    if lane.shape[0] == 64:
        total += tl.gather(total, lane ^ 32, 0)
    return total
