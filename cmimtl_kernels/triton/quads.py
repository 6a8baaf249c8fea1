"""The tile of the backward scan: a lane has 4 channels x 4 states, and four lanes share 4 channels.

Slot s of lane l belongs to channel s ^ (l % 4) of the four, so that `lanes.sum_over_states` needs
no selecting. The states of lane l are state 4 (l % 4) and the three after it.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import join_four, load_four, split_four, store_four


@triton.jit
def _four_states(p, slot, first_channel, first_state, dim_per_group, N: tl.constexpr, o_lane):
    """Where the four states of a slot are: -> (pointer to the first, mask [LANES, 4])."""
    o_channel = first_channel + o_lane // 4 * 4 + ((o_lane ^ slot) & 3)
    o_n = first_state + o_lane % 4 * 4
    m = (o_channel < dim_per_group)[:, None] & (o_n[:, None] + tl.arange(0, 4)[None, :] < N)
    if N % 16 == 0:
        m = (o_channel < dim_per_group)[:, None]
    return p + o_channel.to(tl.int64) * N + o_n, m


@triton.jit
def which_states(first_channel, first_state, dim_per_group, N: tl.constexpr, o_lane):
    """Which of each lane's 16 states exist: masks in the order of `load_states`.

    The others compute with zeros, of which an infinity in B, C or the channel would make NaN, and
    so they must be kept out of the sums over channels and states.
    """
    m = ()
    for slot in tl.static_range(4):
        o_channel = first_channel + o_lane // 4 * 4 + ((o_lane ^ slot) & 3)
        for i in tl.static_range(4):
            m = m + ((o_channel < dim_per_group) & (first_state + o_lane % 4 * 4 + i < N),)
    return m


@triton.jit
def load_states(p, first_channel, first_state, dim_per_group, N: tl.constexpr, o_lane):
    """Load each lane's 16 states, slot by slot, from (dim_per_group, N) at p."""
    b = ()
    for slot in tl.static_range(4):
        p_four, m = _four_states(p, slot, first_channel, first_state, dim_per_group, N, o_lane)
        b = b + load_four(p_four, m)
    return b


@triton.jit
def store_states(p, b, first_channel, first_state, dim_per_group, N: tl.constexpr, o_lane):
    """The inverse of `load_states`."""
    for slot in tl.static_range(4):
        p_four, m = _four_states(p, slot, first_channel, first_state, dim_per_group, N, o_lane)
        store_four(p_four, b[4 * slot : 4 * slot + 4], m)


@triton.jit
def store_quads(p_row, b, m_step):
    """Store each lane's four channels in the order of its slots.

    p_row: [ROWS, 1]; b: [ROWS, LANES]; m_step: [ROWS, 1], whether the step exists.
    """
    ROWS: tl.constexpr = b.shape[0]
    LANES: tl.constexpr = b.shape[1]
    b_0, b_1, b_2, b_3 = split_four(tl.reshape(b, [ROWS, LANES // 4, 2, 2]))
    # Lanes 2 and 3 have the halves of lanes 0 and 1, which are in registers already.
    p_lane = p_row[:, :, None] + tl.arange(0, LANES // 4)[None, :, None] * 16
    p_four = p_lane + tl.arange(0, 4)[None, None, :]
    p_two = p_lane + tl.arange(0, 2)[None, None, :]
    m = m_step[:, :, None]
    tl.store(p_four, tl.reshape(join_four(b_0, b_1, b_2, b_3), [ROWS, LANES // 4, 4]))
    tl.store(p_two + 8, tl.join(b_2, b_3), mask=m)
    tl.store(p_two + 10, tl.join(b_0, b_1), mask=m)
    p_four += 4
    tl.store(p_four, tl.reshape(join_four(b_1, b_0, b_3, b_2), [ROWS, LANES // 4, 4]))
    tl.store(p_two + 12, tl.join(b_3, b_2), mask=m)
    tl.store(p_two + 14, tl.join(b_1, b_0), mask=m)
