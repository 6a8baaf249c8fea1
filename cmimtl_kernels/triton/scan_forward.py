"""The forward scan. A program goes over one sample, a tile of channels and a segment of time.

It goes through time step by step. A lane (a thread of the one warp) holds every state of one or two
channels, as a tuple of tensors over the lanes. So the sum over the states n needs no exchange
between lanes, and B and C are the same in every lane. With two channels a lane loads B and C once
for both; with one there are more warps to hide latency. exp(d A) is computed as exp2(d A') with
A' = A log2(e).

More states than fit into registers go in groups of STATES, each of which goes through all of the
segment. Each group adds its part of <C, h> to what the groups before it have left in `partial`.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import load_four, load_states, no_states, scaled, store_states
from cmimtl_kernels.triton.math import LOG2E, next_state, silu, step_size, valid_steps
from cmimtl_kernels.triton.streams import load, move, pointers, product, store, token


@triton.jit
def _load_weights(x, o_dim, m_channel, LANES: tl.constexpr):
    """Load D or the bias of a lane's channels: -> a tuple, empty where x is None."""
    b = ()
    if x is not None:
        for c in tl.static_range(len(m_channel)):
            b = b + (tl.load(x + o_dim + c * LANES, mask=m_channel[c], other=0.0),)
    return b


@triton.jit
def _load_channels(p, m_channel, LANES: tl.constexpr):
    """Load a value of each channel of a lane from each pointer of the tuple p.

    -> b, of which b[c :: CHANNELS] are the values of channel c.
    """
    b = ()
    for i in tl.static_range(len(p)):
        for c in tl.static_range(len(m_channel)):
            b = b + (load(p[i] + c * LANES, m_channel[c]),)
    return b


@triton.jit
def _load_gates(p_z, m_channel, LANES: tl.constexpr):
    """The gate of each channel of a lane; empty where there is none."""
    CHANNELS: tl.constexpr = len(m_channel)
    b_z = _load_channels(p_z, m_channel, LANES)
    b_gate = ()
    if len(p_z) > 0:
        for c in tl.static_range(CHANNELS):
            b_gate = b_gate + (silu(product(b_z[c::CHANNELS])),)
    return b_gate


@triton.jit
def _recur(
    b_h, b_A, b_step_size, b_x, p_B, p_C, o_n, first_state, N: tl.constexpr,
    STATES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One step of the recurrence. -> (the new state, the sum of C h over the states).

    A state from N on stays 0, or an infinite input would make it NaN, and the sum with it.
    """
    b_y = ()
    for _ in tl.static_range(CHANNELS):
        b_y = b_y + (0.0,)
    b_new = ()
    for q in tl.static_range(0, STATES, 4):
        m_n = None if N % STATES == 0 else o_n + q < N
        b_B = load_four(p_B + q, m_n)
        b_C = load_four(p_C + q, m_n)
        b_sums = ()
        for c in tl.static_range(CHANNELS):
            b_sum = b_y[c]
            for i in tl.static_range(4):
                b_h_n = next_state(
                    b_h[CHANNELS * q + 4 * c + i], b_A[CHANNELS * q + 4 * c + i],
                    b_step_size[c], b_step_size[c] * b_x[c], b_B[i],
                )  # fmt: skip
                if N % STATES != 0:
                    b_h_n = tl.where(first_state + q + i < N, b_h_n, 0.0)
                b_sum += b_h_n * b_C[i]
                b_new = b_new + (b_h_n,)
            b_sums = b_sums + (b_sum,)
        b_y = b_sums
    return b_new, b_y


@triton.jit
def _store_output(
    p_out, p_partial, b_y, b_x, b_D, b_gate, m_channel, first_state, N: tl.constexpr,
    STATES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write (y + D x) gate, once y is the sum over all states."""
    for c in tl.static_range(len(m_channel)):
        b_out = b_y[c]
        m_out = m_channel[c]
        if p_partial is not None:
            # The same thread wrote this value, so no barrier is needed.
            p_sum = p_partial + c * LANES
            b_out += tl.load(p_sum, mask=m_channel[c] & (first_state > 0), other=0.0)
            m_out = m_channel[c] & (first_state + STATES >= N)
            tl.store(p_sum, b_out, mask=m_channel[c] & (first_state + STATES < N))
        if len(b_D) > 0:
            b_out += b_D[c] * b_x[c]
        if len(b_gate) > 0:
            b_out *= b_gate[c]
        store(p_out + c * LANES, b_out, m_out)


@triton.jit
def _take_step(
    b_h, b_A, b_streams, b_gate, b_D, b_bias, p_delta, p_B, p_C, p_out, p_partial, m_channel, o_n,
    first_state, dim, s_delta_step, s_B_step, s_C_step, N: tl.constexpr, STATES: tl.constexpr,
    SUM: tl.constexpr, SOFTPLUS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Run the step of one token of a pair, and write its output. -> the new state."""
    CHANNELS: tl.constexpr = len(m_channel)
    if SUM:  # the second token in memory
        p_delta += s_delta_step
        p_B += s_B_step
        p_C += s_C_step
        if p_partial is not None:
            p_partial += dim
    b_delta = _load_channels((p_delta,), m_channel, LANES)
    b_step_size = ()
    b_x = ()
    for c in tl.static_range(CHANNELS):
        bias = b_bias[c] if len(b_bias) > 0 else None
        b_step_size = b_step_size + (step_size(b_delta[c], bias, SOFTPLUS),)
        b_x = b_x + (token(b_streams[c::CHANNELS], SUM),)
    b_h, b_y = _recur(b_h, b_A, b_step_size, b_x, p_B, p_C, o_n, first_state, N, STATES, CHANNELS)
    _store_output(
        p_out[1] if SUM else p_out[0], p_partial, b_y, b_x, b_D, b_gate, m_channel, first_state,
        N, STATES, LANES,
    )  # fmt: skip
    return b_h


@triton.jit
def scan_forward(
    x0,  # (batch, length, dim): u, or v of the cross scan
    x1,  # None, or t
    delta,  # (batch, steps, dim)
    A,  # (dim, N), contiguous
    B,  # (batch, steps, ngroups, N)
    C,  # as B
    D,  # (dim,) or None
    z0,  # (batch, length, dim) or None: z, or z_v
    z1,  # as z0: z_t; None in the selective scan
    bias,  # (dim,) or None
    carry,  # (batch, segments, dim, N): the state that enters each segment; None for 0
    lengths,  # (batch,) int64 or None
    out0,  # (batch, length, dim): out, or out_v; steps past `lengths` are not written
    out1,  # None, or out_t
    last,  # (batch, dim, N)
    checkpoints,  # (batch, chunks, dim, N), or None: keep none
    partial,  # (batch, steps, dim) float32, sums so far; None where all states are in one group
    length,
    dim,
    dim_per_group,
    tiles_per_group,
    every,  # number of steps of a chunk; a multiple of 2 in the cross scan
    chunks_per_segment,
    s_x0_batch,  # strides of sample and step, in elements; the stride of the channel is 1
    s_x0_step,
    s_x1_batch,
    s_x1_step,
    s_delta_batch,
    s_delta_step,
    s_B_batch,
    s_B_step,
    s_B_group,
    s_C_batch,
    s_C_step,
    s_C_group,
    s_z0_batch,
    s_z0_step,
    s_z1_batch,
    s_z1_step,
    N: tl.constexpr,
    STATES: tl.constexpr,  # size of a group of states, a multiple of 4; the groups take turns
    CHANNELS: tl.constexpr,  # number of channels of a lane, which are LANES apart
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    LANES: tl.constexpr,  # number of lanes of the one warp
):
    TOKENS: tl.constexpr = 2 if CROSS else 1  # of a pair
    i_sample = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1)
    i_segment = tl.program_id(2)
    i_group = i_tile // tiles_per_group
    o_lane = tl.arange(0, LANES)
    o_channel = i_tile % tiles_per_group * (CHANNELS * LANES) + o_lane  # of the group
    o_dim = i_group * dim_per_group + o_channel  # the lane's first channel, of all
    valid = valid_steps(lengths, i_sample, length)
    i_group = i_group.to(tl.int64)
    m_channel = ()
    for c in tl.static_range(CHANNELS):
        m_channel = m_channel + (o_channel + c * LANES < dim_per_group,)
    b_D = _load_weights(D, o_dim, m_channel, LANES)
    b_bias = _load_weights(bias, o_dim, m_channel, LANES)

    # The segment: its first pair, in the order of the recurrence, and how many it has.
    chunks = (length * TOKENS + every - 1) // every
    pairs_per_chunk = every // TOKENS
    first_pair = i_segment * chunks_per_segment * pairs_per_chunk
    pairs = tl.minimum(chunks_per_segment * pairs_per_chunk, valid - first_pair)
    # Where that pair is in memory, and which way the next one.
    t = (valid - 1 - first_pair if REVERSE else first_pair).to(tl.int64)
    direction = -1 if REVERSE else 1
    first_x = pointers(
        x0, x1, i_sample * s_x0_batch + t * s_x0_step + o_dim,
        i_sample * s_x1_batch + t * s_x1_step + o_dim,
    )  # fmt: skip
    delta += i_sample * s_delta_batch + t * TOKENS * s_delta_step + o_dim
    o_out = (i_sample * length + t) * dim + o_dim
    first_out = pointers(out0, out1, o_out, o_out)
    B += i_sample * s_B_batch + i_group * s_B_group + t * TOKENS * s_B_step + o_lane * 0
    C += i_sample * s_C_batch + i_group * s_C_group + t * TOKENS * s_C_step + o_lane * 0
    first_z = pointers(
        z0, z1, i_sample * s_z0_batch + t * s_z0_step + o_dim,
        i_sample * s_z1_batch + t * s_z1_step + o_dim,
    )  # fmt: skip
    if partial is not None:
        partial += (i_sample * length + t) * TOKENS * dim + o_dim
    s_x, s_z, s_out = (s_x0_step, s_x1_step), (s_z0_step, s_z1_step), (dim, dim)
    o_states = o_dim.to(tl.int64) * N

    for i in range(0, N, STATES):
        first_state = tl.multiple_of(tl.cast(i, tl.int32), 4)  # the interpreter has an int here
        o_n = first_state + tl.arange(0, 4)[None, :] + (o_lane * 0)[:, None]
        b_A = load_states(A + o_states + first_state, o_n, m_channel, N, STATES, LANES)
        b_A = scaled(b_A, LOG2E)
        if carry is None:
            b_h = no_states(STATES * CHANNELS, LANES)
        else:
            o_segment = (i_sample * tl.num_programs(2) + i_segment) * dim * N
            p_carry = carry + (o_segment + o_states + first_state)
            b_h = load_states(p_carry, o_n, m_channel, N, STATES, LANES)

        p_x, p_z, p_delta = first_x, first_z, delta
        p_B, p_C = B + first_state, C + first_state
        p_out, p_partial = first_out, partial
        for k in range(0, (pairs + pairs_per_chunk - 1) // pairs_per_chunk):
            if checkpoints is not None:
                i_chunk = i_segment * chunks_per_segment + k
                o_chunk = (i_sample * chunks + i_chunk) * dim * N
                p_checkpoint = checkpoints + o_chunk + o_states + first_state
                store_states(p_checkpoint, b_h, o_n, m_channel, N, STATES, LANES)
            for _ in range(0, tl.minimum(pairs_per_chunk, pairs - k * pairs_per_chunk)):
                b_streams = _load_channels(p_x, m_channel, LANES)
                b_gate = _load_gates(p_z, m_channel, LANES)
                for turn in tl.static_range(TOKENS):
                    # The product comes before the sum, and after it where time runs backwards.
                    b_h = _take_step(
                        b_h, b_A, b_streams, b_gate, b_D, b_bias, p_delta, p_B, p_C, p_out,
                        p_partial, m_channel, o_n, first_state, dim, s_delta_step, s_B_step,
                        s_C_step, N, STATES, SUM=CROSS and turn != REVERSE, SOFTPLUS=SOFTPLUS,
                        LANES=LANES,
                    )  # fmt: skip
                p_x = move(p_x, direction, s_x)
                p_delta += direction * TOKENS * s_delta_step
                p_B += direction * TOKENS * s_B_step
                p_C += direction * TOKENS * s_C_step
                p_out = move(p_out, direction, s_out)
                p_z = move(p_z, direction, s_z)
                if partial is not None:
                    p_partial += direction * TOKENS * dim

        if i_segment == tl.num_programs(2) - 1:
            p_last = last + i_sample * dim * N + o_states + first_state
            store_states(p_last, b_h, o_n, m_channel, N, STATES, LANES)
