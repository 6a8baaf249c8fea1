"""The scans split over time: segments are computed side by side, once their carry is known.

The carry is the state that goes from one segment to the next, or in the backward scan the gradient
of the state, which goes from the last segment to the first. Both recurrences are linear. So a
segment does two things to the carry that enters it: it multiplies it by exp(A sum d), and it adds
what a scan of its own inputs gives that starts from 0. The two are the segment's summary.

`segment_summary` computes it for all segments at once, and `segment_carry` goes from segment to
segment with it. Then the scans run, each segment from its carry. The order is fixed, so the bits
are the same on every run.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import load_four, load_states, no_states, scaled, store_states
from cmimtl_kernels.triton.math import LOG2E, next_state, silu, step_size, valid_steps
from cmimtl_kernels.triton.streams import load, load_pair, move, pointers, product, token


@triton.jit
def _summarize_step(
    b_h, b_step_sum, b_A, b_pair, b_gate, b_bias, p_delta, p_M, m_channel, o_n, s_delta_step,
    s_M_step, N: tl.constexpr, STATES: tl.constexpr, SUM: tl.constexpr, SOFTPLUS: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """One step of either recurrence, without a carry. -> (the new h, the sum of step sizes).

    h is the state, and with GRADIENT its gradient.
    """
    if SUM:  # the second token in memory
        p_delta += s_delta_step
        p_M += s_M_step
    b_step_size = step_size(load(p_delta, m_channel), b_bias, SOFTPLUS)
    b_step_sum += b_step_size
    if GRADIENT:
        b_x = b_pair[1] if SUM else b_pair[0]
        if b_gate is not None:
            b_x *= b_gate
    else:
        b_x = token(b_pair, SUM) * b_step_size
    b_new = ()
    for q in tl.static_range(0, STATES, 4):
        b_M = load_four(p_M + q, None if N % STATES == 0 else o_n + q < N)
        for i in tl.static_range(4):
            if GRADIENT:
                b_decay = tl.exp2(b_step_size * b_A[q + i])
                b_new = b_new + (b_decay * (b_h[q + i] + b_x * b_M[i]),)
            else:
                b_new = b_new + (next_state(b_h[q + i], b_A[q + i], b_step_size, b_x, b_M[i]),)
    return b_new, b_step_sum


@triton.jit
def segment_summary(
    x0,  # (batch, length, dim): u or v; with GRADIENT the gradient of out or out_v
    x1,  # None, or t; with GRADIENT the gradient of out_t
    delta,  # (batch, steps, dim)
    A,  # (dim, N), contiguous
    M,  # (batch, steps, ngroups, N): the map B, with GRADIENT C
    z0,  # (batch, length, dim): with GRADIENT the gates, or None
    z1,
    bias,  # (dim,) or None
    lengths,  # (batch,) int64 or None
    carry,  # (batch, segments, dim, N): what each segment adds to the carry
    step_sums,  # (batch, segments, dim): the sum of the step sizes of each segment
    length,
    dim,
    dim_per_group,
    tiles_per_group,
    steps_per_segment,  # a multiple of 2 in the cross scan
    s_x0_batch,  # strides in elements
    s_x0_step,
    s_x1_batch,
    s_x1_step,
    s_delta_batch,
    s_delta_step,
    s_M_batch,
    s_M_step,
    s_M_group,
    s_z0_batch,
    s_z0_step,
    s_z1_batch,
    s_z1_step,
    N: tl.constexpr,
    STATES: tl.constexpr,  # as in scan_forward
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    # Whether the recurrence is that of the gradient, from the last step to the first:
    # carry_{t-1} = exp(d A) (carry_t + C dy).
    GRADIENT: tl.constexpr,
    LANES: tl.constexpr,
):
    TOKENS: tl.constexpr = 2 if CROSS else 1  # of a pair
    BACKWARDS: tl.constexpr = REVERSE != GRADIENT  # whether it goes back in time
    i_sample = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1)
    i_segment = tl.program_id(2)
    i_group = i_tile // tiles_per_group
    o_lane = tl.arange(0, LANES)
    o_channel = i_tile % tiles_per_group * LANES + o_lane
    m_channel = o_channel < dim_per_group
    o_dim = i_group * dim_per_group + o_channel
    valid = valid_steps(lengths, i_sample, length)
    i_group = i_group.to(tl.int64)
    b_bias = None
    if bias is not None:
        b_bias = tl.load(bias + o_dim, mask=m_channel, other=0.0)

    # The segment's pair that is processed first, and how many it has.
    first_pair = i_segment * (steps_per_segment // TOKENS)
    pairs = tl.minimum(steps_per_segment // TOKENS, valid - first_pair)
    if GRADIENT:
        first_pair += tl.maximum(pairs, 1) - 1
    t = (valid - 1 - first_pair if REVERSE else first_pair).to(tl.int64)
    direction = -1 if BACKWARDS else 1
    first_x = pointers(
        x0, x1, i_sample * s_x0_batch + t * s_x0_step + o_dim,
        i_sample * s_x1_batch + t * s_x1_step + o_dim,
    )  # fmt: skip
    first_z = pointers(
        z0, z1, i_sample * s_z0_batch + t * s_z0_step + o_dim,
        i_sample * s_z1_batch + t * s_z1_step + o_dim,
    )  # fmt: skip
    delta += i_sample * s_delta_batch + t * TOKENS * s_delta_step + o_dim
    M += i_sample * s_M_batch + i_group * s_M_group + t * TOKENS * s_M_step + o_lane * 0
    s_x, s_z = (s_x0_step, s_x1_step), (s_z0_step, s_z1_step)
    o_segment = i_sample * tl.num_programs(2) + i_segment

    for i in range(0, N, STATES):
        first_state = tl.multiple_of(tl.cast(i, tl.int32), 4)  # the interpreter has an int here
        o_n = first_state + tl.arange(0, 4)[None, :] + (o_lane * 0)[:, None]
        p_A = A + o_dim.to(tl.int64) * N + first_state
        b_A = scaled(load_states(p_A, o_n, (m_channel,), N, STATES, LANES), LOG2E)
        b_h = no_states(STATES, LANES)
        b_step_sum = tl.zeros([LANES], dtype=tl.float32)
        p_x, p_z, p_delta, p_M = first_x, first_z, delta, M + first_state
        for _ in range(0, pairs):
            b_pair = load_pair(p_x, m_channel)
            b_gate = None
            if z0 is not None:
                b_gate = silu(product(load_pair(p_z, m_channel)))
            for turn in tl.static_range(TOKENS):
                b_h, b_step_sum = _summarize_step(
                    b_h, b_step_sum, b_A, b_pair, b_gate, b_bias, p_delta, p_M, m_channel, o_n,
                    s_delta_step, s_M_step, N, STATES, SUM=CROSS and turn != BACKWARDS,
                    SOFTPLUS=SOFTPLUS, GRADIENT=GRADIENT,
                )  # fmt: skip
            p_x = move(p_x, direction, s_x)
            p_z = move(p_z, direction, s_z)
            p_delta += direction * TOKENS * s_delta_step
            p_M += direction * TOKENS * s_M_step
        p_carry = carry + (o_segment * dim + o_dim) * N + first_state
        store_states(p_carry, b_h, o_n, (m_channel,), N, STATES, LANES)
        tl.store(step_sums + o_segment * dim + o_dim, b_step_sum, mask=m_channel)


@triton.jit
def segment_carry(
    carry,  # (batch, segments, dim, N): what each segment adds; becomes what enters it
    step_sums,  # (batch, segments, dim)
    A,  # (dim, N), contiguous
    first_carry,  # (batch, dim, N): what enters the first segment, or None for 0
    dim,
    segments,
    N: tl.constexpr,
    GRADIENT: tl.constexpr,  # whether to go from the last segment to the first
    BLOCK: tl.constexpr,
):
    i_sample = tl.program_id(0).to(tl.int64)
    o_state = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # of dim x N
    m_state = o_state < dim * N
    b_A = tl.load(A + o_state, mask=m_state, other=0.0) * LOG2E
    if first_carry is None:
        b_carry = tl.zeros([BLOCK], dtype=tl.float32)
    else:
        b_carry = tl.load(first_carry + i_sample * dim * N + o_state, mask=m_state, other=0.0)
    for turn in range(0, segments):
        o_segment = i_sample * segments + (segments - 1 - turn if GRADIENT else turn)
        p_carry = carry + o_segment * dim * N + o_state
        b_added = tl.load(p_carry, mask=m_state, other=0.0)
        b_step_sum = tl.load(step_sums + o_segment * dim + o_state // N, mask=m_state, other=0.0)
        tl.store(p_carry, b_carry, mask=m_state)
        b_carry = tl.exp2(b_step_sum * b_A) * b_carry + b_added
