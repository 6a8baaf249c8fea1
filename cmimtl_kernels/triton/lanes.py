"""Values of which each lane has one: loads and stores of four at a time, and sums over lanes.

A lane is a thread of the one warp that runs a program. A tensor [LANES] has one element in each
lane, so a tuple of such tensors is a set of registers. `tl.gather` between lanes is one shuffle.

`load_states` and `store_states` are for kernels in which a lane has all states of its channels.
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
def scaled(b, factor):
    """Multiply each of a lane's values by the same factor."""
    products = ()
    for i in tl.static_range(len(b)):
        products = products + (b[i] * factor,)
    return products


@triton.jit
def split_four(b):
    """Take [..., 2, 2] apart into four [...]."""
    even, odd = tl.split(b)
    b_0, b_2 = tl.split(even)
    b_1, b_3 = tl.split(odd)
    return b_0, b_1, b_2, b_3


@triton.jit
def join_four(b_0, b_1, b_2, b_3):
    """The inverse of `split_four`."""
    return tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3))


@triton.jit
def load_four(p, m=None):
    """Load the four elements from p on, for each lane.

    p: [LANES]; m: [LANES], [LANES, 4] or None.
    """
    LANES: tl.constexpr = p.shape[0]
    p = p[:, None] + tl.arange(0, 4)[None, :]
    if m is None:
        b = tl.load(p)
    else:
        b = tl.load(p, mask=m, other=0.0)
    return split_four(tl.reshape(b.to(tl.float32), [LANES, 2, 2]))


@triton.jit
def store_four(p, b, m=None):
    """The inverse of `load_four`; b is a tuple of four."""
    LANES: tl.constexpr = p.shape[0]
    p = p[:, None] + tl.arange(0, 4)[None, :]
    b_four = tl.reshape(join_four(b[0], b[1], b[2], b[3]), [LANES, 4])
    if m is None:
        tl.store(p, b_four)
    else:
        tl.store(p, b_four, mask=m)


@triton.jit
def _states_mask(m_channel, o_n, N: tl.constexpr, STATES: tl.constexpr):
    """Which of four states exist, in a lane whose channel exists."""
    m = m_channel[:, None]
    if N % STATES != 0:
        m = m & (o_n < N)
    return m


@triton.jit
def load_states(p, o_n, m_channel, N: tl.constexpr, STATES: tl.constexpr, LANES: tl.constexpr):
    """Load STATES states of each channel of a lane: four of each channel, four more of each, …

    Args:
        p: [LANES], to the first of these states of the lane's first channel, in (dim, N). The
            channels of a lane are LANES apart.
        o_n: [LANES, 4], the numbers of the first four states.
        m_channel: tuple of [LANES], whether each channel of the lane exists.
    """
    b = ()
    for q in tl.static_range(0, STATES, 4):
        for c in tl.static_range(len(m_channel)):
            m = _states_mask(m_channel[c], o_n + q, N, STATES)
            b = b + load_four(p + c * LANES * N + q, m)
    return b


@triton.jit
def store_states(p, b, o_n, m_channel, N: tl.constexpr, STATES: tl.constexpr, LANES: tl.constexpr):
    """The inverse of `load_states`."""
    CHANNELS: tl.constexpr = len(m_channel)
    for q in tl.static_range(0, STATES, 4):
        for c in tl.static_range(CHANNELS):
            m = _states_mask(m_channel[c], o_n + q, N, STATES)
            b_four = b[CHANNELS * q + 4 * c : CHANNELS * q + 4 * c + 4]
            store_four(p + c * LANES * N + q, b_four, m)


@triton.jit
def sum_over_states(b, o_lane):
    """Add up values over four neighbouring lanes; b[s] of lane l belongs to channel s ^ (l % 4).

    -> in lane l, the sum of channel l % 4. This order of the slots lets each lane keep its even
    slots and give its odd ones away, without selecting. That takes 3 exchanges; a butterfly would
    take 8.
    """
    even = b[0] + tl.gather(b[1], o_lane ^ 1, 0)
    odd = b[2] + tl.gather(b[3], o_lane ^ 1, 0)
    return even + tl.gather(odd, o_lane ^ 2, 0)


@triton.jit
def _fold(low, high, o_lane, BIT: tl.constexpr):
    """Add up values of lane and lane ^ BIT: `high` in the lane with the bit, else `low`."""
    m_upper = (o_lane & BIT) > 0
    keep = tl.where(m_upper, high, low)
    return keep + tl.gather(tl.where(m_upper, low, high), o_lane ^ BIT, 0)


@triton.jit
def _fold_four(b, o_lane):
    """Add up four values over the lanes l that differ in bits 2 and 3 of l.

    -> in lane l, the sum of b[l // 4 % 4].
    """
    return _fold(_fold(b[0], b[1], o_lane, 4), _fold(b[2], b[3], o_lane, 4), o_lane, 8)


@triton.jit
def sum_over_channels(b_low, b_high, o_lane):
    """Add up four values b_low, and four b_high, over all lanes l with the same l % 4.

    -> in lane l, the sum of b_low[l // 4 % 4], or of b_high[l // 4 % 4] where l // 16 is odd.
    """
    total = _fold(_fold_four(b_low, o_lane), _fold_four(b_high, o_lane), o_lane, 16)
    if o_lane.shape[0] == 64:
        total += tl.gather(total, o_lane ^ 32, 0)
    return total
