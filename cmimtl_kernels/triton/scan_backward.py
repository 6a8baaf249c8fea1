"""The backward scan. A program goes over one sample, a tile of channels and a segment of time, from
the segment's last chunk to its first.

A chunk is the steps between two checkpoints. Each chunk goes through four stages. What one leaves
for the next lies in a scratch of the program's own in global memory, which stays in the caches:

1. over (steps, channels): step sizes d, products d x, and gradients dy before gate and skip;
2. step by step: the states from the checkpoint on, each kept in the scratch;
3. step by step, backwards: the gradients of the state, of A, and the sums over n and over channels;
4. over (steps, channels): the gradients of the inputs.

The first and the last stage are in scan_backward_inputs.py.

With dstate_t the gradient of the state of step t, and carry_t the part of it that comes from the
steps after t:

    dstate_t  = carry_t + C_t dy_t
    carry_t-1 = exp(d_t A) dstate_t
    dB_t      = sum_channels dstate_t d_t x_t
    dC_t      = sum_channels h_t dy_t
    dA        = sum_t d_t carry_t-1 h_t-1
    d(d_t)    = sum_n A carry_t-1 h_t-1 + x_t sum_n dstate_t B_t
    dx_t      = d_t sum_n dstate_t B_t + D dy_t

In stages 2 and 3 a lane (a thread of the one warp) holds 4 channels x 4 states, as a tuple of 16
tensors over the lanes. Four neighbouring lanes share four channels and hold 16 states of each. So a
sum over the states n, or over channels, is three additions in the lane, and then an exchange
between lanes that leaves each lane with another sum (`sum_over_states`, `sum_over_channels`). Each
tile writes one row of sums over its channels, and the caller adds up the rows. So the order is
fixed, and there is no atomic addition.

More than 16 states go in groups of 16, which take turns in each chunk. Between its turns a group's
carry and gradient of A are kept in the results.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import (
    load_four,
    no_states,
    scaled,
    store_four,
    sum_over_channels,
    sum_over_states,
)
from cmimtl_kernels.triton.math import LN2, LOG2E, next_state, valid_steps
from cmimtl_kernels.triton.quads import load_states, store_states, which_states
from cmimtl_kernels.triton.scan_backward_inputs import (
    DSTATE_B,
    DSTEP_SIZE,
    DY,
    ROW,
    SCALED_X,
    STATE,
    STEP_SIZE,
    Y,
    finish_steps,
    prepare_steps,
)
from cmimtl_kernels.triton.streams import pointers


@triton.jit
def _keep(b, m_states, i: tl.constexpr):
    """State i of a lane's 16: b where it exists and 0 elsewhere. Without masks, all exist."""
    if len(m_states) > 0:
        b = tl.where(m_states[i], b, 0.0)
    return b


@triton.jit
def _recompute_states(b_h, b_A, p_row, p_B, s_B, steps, m_n, m_states, LANES: tl.constexpr):
    """Stage 2: keep the state before each step of the chunk in the scratch.

    -> (the state after the last step; p_row and p_B, which point to the step after it)
    """
    for _ in range(0, steps):
        b_step_size = load_four(p_row + STEP_SIZE * LANES)
        b_scaled_x = load_four(p_row + SCALED_X * LANES)
        b_B = load_four(p_B, m_n)
        b_next = ()
        for e in tl.static_range(4):
            store_four(p_row + (STATE + 4 * e) * LANES, b_h[4 * e : 4 * e + 4])
            for i in tl.static_range(4):
                b_h_n = next_state(
                    b_h[4 * e + i], b_A[4 * e + i], b_step_size[e], b_scaled_x[e], b_B[i]
                )
                b_next = b_next + (_keep(b_h_n, m_states, 4 * e + i),)
        b_h = b_next
        p_row += ROW * LANES
        p_B += s_B
    return b_h, p_row, p_B


@triton.jit
def _output_sums(b_h, b_C, b_dy):
    """What reads the state after a step: -> (<C, h> of each slot, dC of each of four states)."""
    b_y = ()
    b_dC = (0.0, 0.0, 0.0, 0.0)
    for e in tl.static_range(4):
        b_sum = 0.0
        b_new_dC = ()
        for i in tl.static_range(4):
            b_sum += b_C[i] * b_h[4 * e + i]
            b_new_dC = b_new_dC + (b_dC[i] + b_dy[e] * b_h[4 * e + i],)
        b_dC = b_new_dC
        b_y = b_y + (b_sum,)
    return b_y, b_dC


@triton.jit
def _step_back(b_h, b_carry, b_dA, b_A, p_row, p_B, p_C, m_n, m_states, LANES: tl.constexpr):
    """Stage 3 of one step, with the state after it and the carry into it.

    State i of slot e is value 4 e + i of a tuple of 16. The sums are a lane's own.

    -> (the state before the step, the carry out of it, dA so far; <C, h>, <dstate, B> and
    <A, carry h> of each slot; dB and dC of each of the four states)
    """
    b_step_size = load_four(p_row + STEP_SIZE * LANES)
    b_scaled_x = load_four(p_row + SCALED_X * LANES)
    b_dy = load_four(p_row + DY * LANES)
    b_B = load_four(p_B, m_n)
    b_C = load_four(p_C, m_n)
    # All that reads h comes first, so that the state before h can take its registers.
    b_y, b_dC = _output_sums(b_h, b_C, b_dy)
    b_dB = (0.0, 0.0, 0.0, 0.0)
    b_dstate_B = ()
    b_dstep_size = ()
    b_before = ()
    b_new_carry = ()
    b_new_dA = ()
    for e in tl.static_range(4):
        b_before_e = load_four(p_row + (STATE + 4 * e) * LANES)
        b_dstate_B_e = 0.0
        b_dstep_size_e = 0.0
        b_new_dB = ()
        for i in tl.static_range(4):
            b_dstate = b_carry[4 * e + i] + b_C[i] * b_dy[e]
            b_dstate = _keep(b_dstate, m_states, 4 * e + i)
            b_dstate_B_e += b_B[i] * b_dstate
            b_carry_n = tl.exp2(b_step_size[e] * b_A[4 * e + i]) * b_dstate
            b_carry_n = _keep(b_carry_n, m_states, 4 * e + i)
            b_carry_h = b_carry_n * b_before_e[i]
            b_dstep_size_e += b_A[4 * e + i] * b_carry_h
            b_new_carry = b_new_carry + (b_carry_n,)
            b_new_dA = b_new_dA + (b_dA[4 * e + i] + b_step_size[e] * b_carry_h,)
            b_new_dB = b_new_dB + (b_dB[i] + b_scaled_x[e] * b_dstate,)
        b_dB = b_new_dB
        b_dstate_B = b_dstate_B + (b_dstate_B_e,)
        b_dstep_size = b_dstep_size + (b_dstep_size_e,)
        b_before = b_before + b_before_e
    return b_before, b_new_carry, b_new_dA, b_y, b_dstate_B, b_dstep_size, b_dB, b_dC


@triton.jit
def _store_sums(p_row, b_y, b_dstate_B, b_dstep_size, first_state, o_lane, N: tl.constexpr,
                LANES: tl.constexpr):  # fmt: skip
    """Write a step's sums over the states to the scratch; later groups of states add theirs."""
    b_y_sum = sum_over_states(b_y, o_lane)
    b_dstate_B_sum = sum_over_states(b_dstate_B, o_lane)
    b_dstep_size_sum = sum_over_states(b_dstep_size, o_lane) * LN2
    p = p_row - 3 * o_lane
    if N > 16:
        m_later = (o_lane >= 0) & (first_state > 0)
        b_y_sum += tl.load(p + Y * LANES, mask=m_later, other=0.0)
        b_dstate_B_sum += tl.load(p + DSTATE_B * LANES, mask=m_later, other=0.0)
        b_dstep_size_sum += tl.load(p + DSTEP_SIZE * LANES, mask=m_later, other=0.0)
    tl.store(p + Y * LANES, b_y_sum)
    tl.store(p + DSTATE_B * LANES, b_dstate_B_sum)
    tl.store(p + DSTEP_SIZE * LANES, b_dstep_size_sum)


@triton.jit
def _go_back(
    b_h, b_carry, b_dA, b_A, p_row, p_B, p_C, p_dBC, s_B, s_C, s_dBC, steps, first_state, m_n,
    m_states, m_dBC, o_lane, N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Stage 3: go back through the chunk. -> (the carry out of it, the gradient of A so far).

    p_row and p_B point to the step after the last one, p_C and p_dBC to the last one.
    """
    for _ in range(0, steps):
        p_row -= ROW * LANES
        p_B -= s_B
        b_h, b_carry, b_dA, b_y, b_dstate_B, b_dstep_size, b_dB, b_dC = _step_back(
            b_h, b_carry, b_dA, b_A, p_row, p_B, p_C, m_n, m_states, LANES
        )
        tl.store(p_dBC, sum_over_channels(b_dB, b_dC, o_lane), mask=m_dBC)
        _store_sums(p_row, b_y, b_dstate_B, b_dstep_size, first_state, o_lane, N, LANES)
        p_C -= s_C
        p_dBC -= s_dBC
    return b_carry, b_dA


@triton.jit
def scan_backward(
    x0,  # the inputs of the forward scan, as in scan_forward
    x1,
    delta,
    A,
    B,
    C,
    D,
    z0,
    z1,
    bias,
    lengths,
    checkpoints,  # (batch, chunks, dim, N)
    dout0,  # (batch, length, dim)
    dout1,
    dx0,  # results, contiguous; steps past `lengths` are not written
    dx1,
    ddelta,
    dz0,
    dz1,
    carry_in,  # (batch, segments, dim, N): the gradient of the state after each segment; None for 0
    carry_out,  # as carry_in: the gradient of the state before each segment
    dA,  # (batch, segments, dim, N)
    dD,  # (batch, segments, dim) or None
    dbias,  # (batch, segments, dim) or None
    dBC,  # (2, tiles_per_group, batch, steps, ngroups, N): the gradients of B, then those of C
    scratch,  # (programs, rows, ROW, LANES) float32
    length,
    dim,
    dim_per_group,
    tiles_per_group,
    every,
    chunks_per_segment,
    rows,  # every, rounded up to whole tiles of steps
    s_x0_batch,  # strides in elements
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
    s_dout0_batch,
    s_dout0_step,
    s_dout1_batch,
    s_dout1_step,
    N: tl.constexpr,
    WHOLE: tl.constexpr,  # whether every lane of every tile has a channel
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,  # number of pairs in a tile of stages 1 and 4
    LANES: tl.constexpr,  # number of lanes of the one warp, and of channels of a tile
):
    TOKENS: tl.constexpr = 2 if CROSS else 1  # of a pair
    EVEN: tl.constexpr = N % 16 == 0
    i_sample = tl.program_id(0).to(tl.int64)
    i_tile = tl.program_id(1)
    i_segment = tl.program_id(2)
    i_group = i_tile // tiles_per_group
    i_tile_of_group = i_tile % tiles_per_group
    first_channel = i_tile_of_group * LANES  # of the group
    o_lane = tl.arange(0, LANES)
    m_channel = first_channel + o_lane < dim_per_group
    o_dim = i_group * dim_per_group + first_channel + o_lane
    valid = valid_steps(lengths, i_sample, length)
    steps = valid * TOKENS
    chunks = (length * TOKENS + every - 1) // every
    ngroups = dim // dim_per_group
    i_group = i_group.to(tl.int64)

    # Stages 1 and 4: pointers [1, LANES] to the sample's first step.
    o_column = o_dim[None, :]
    o_result = i_sample * length * dim + o_column
    p_x = pointers(x0, x1, i_sample * s_x0_batch + o_column, i_sample * s_x1_batch + o_column)
    p_delta = delta + (i_sample * s_delta_batch + o_column)
    p_dout = pointers(
        dout0, dout1, i_sample * s_dout0_batch + o_column, i_sample * s_dout1_batch + o_column
    )
    p_z = pointers(z0, z1, i_sample * s_z0_batch + o_column, i_sample * s_z1_batch + o_column)
    p_dx = pointers(dx0, dx1, o_result, o_result)
    p_ddelta = ddelta + (i_sample * length * TOKENS * dim + o_column)
    p_dz = pointers(dz0, dz1, o_result, o_result)
    s_x, s_z = (s_x0_step, s_x1_step), (s_z0_step, s_z1_step)
    s_dout = (s_dout0_step, s_dout1_step)
    i_program = (i_sample * tl.num_programs(1) + i_tile) * tl.num_programs(2) + i_segment
    scratch += i_program * rows * ROW * LANES

    # Stages 2 and 3. A lane uses four states of B and C. It ends with the sum over channels of one
    # state: half of the lanes for B, half for C.
    o_four = o_lane % 4 * 4
    o_own = o_four + o_lane // 4 % 4
    B += i_sample * s_B_batch + i_group * s_B_group + o_four
    C += i_sample * s_C_batch + i_group * s_C_group + o_four
    o_half = o_lane // 16 % 2
    of_tile = tl.num_programs(0).to(tl.int64) * length * TOKENS * ngroups * N
    dBC += (o_half * tiles_per_group + i_tile_of_group) * of_tile + o_own
    dBC += (i_sample * length * TOKENS * ngroups + i_group) * N
    # The distances from one processed step to the next.
    s_B = -s_B_step if REVERSE else s_B_step
    s_C = -s_C_step if REVERSE else s_C_step
    s_dBC = -ngroups * N if REVERSE else ngroups * N
    o_states = i_group * dim_per_group * N
    o_segment = (i_sample * tl.num_programs(2) + i_segment) * dim * N + o_states

    b_D = None
    if D is not None:
        b_D = tl.load(D + o_dim, mask=m_channel, other=0.0)[None, :]
    b_bias = None
    if bias is not None:
        b_bias = tl.load(bias + o_dim, mask=m_channel, other=0.0)[None, :]
    b_dD = tl.zeros([ROWS, LANES], dtype=tl.float32)
    b_dbias = tl.zeros([ROWS, LANES], dtype=tl.float32)
    # One group of states stays in registers. Several take turns.
    start = tl.cast(0, tl.int32)
    b_carry = no_states(16, LANES)
    b_dA = no_states(16, LANES)
    if N > 16:
        for i in range(0, N, 16):
            first_state = tl.cast(i, tl.int32)  # the interpreter has a plain int here
            store_states(dA + o_segment, b_dA, first_channel, first_state, dim_per_group, N, o_lane)
            if carry_in is not None:
                b_carry = load_states(
                    carry_in + o_segment, first_channel, first_state, dim_per_group, N, o_lane
                )
            store_states(
                carry_out + o_segment, b_carry, first_channel, first_state, dim_per_group, N, o_lane
            )
    elif carry_in is not None:
        b_carry = load_states(carry_in + o_segment, first_channel, start, dim_per_group, N, o_lane)

    first_chunk = i_segment * chunks_per_segment
    end_chunk = tl.minimum(first_chunk + chunks_per_segment, (steps + every - 1) // every)
    for back in range(0, end_chunk - first_chunk):
        i_chunk = end_chunk - 1 - back
        chunk_steps = tl.minimum(every, steps - i_chunk * every)

        # Stage 1
        first_pair = i_chunk * (every // TOKENS)
        pairs = chunk_steps // TOKENS
        prepare_steps(
            p_x, p_delta, p_dout, p_z, b_bias, scratch, first_pair, pairs, valid, m_channel,
            o_lane, s_x, s_delta_step, s_dout, s_z, SOFTPLUS, REVERSE, ROWS, LANES,
        )  # fmt: skip
        tl.debug_barrier()

        for i in range(0, N, 16):
            first_state = tl.multiple_of(tl.cast(i, tl.int32), 16)
            m_n = None if EVEN else first_state + o_four[:, None] + tl.arange(0, 4)[None, :] < N
            b_A = load_states(A + o_states, first_channel, first_state, dim_per_group, N, o_lane)
            b_A = scaled(b_A, LOG2E)
            m_states = ()
            if not (EVEN and WHOLE):
                m_states = which_states(first_channel, first_state, dim_per_group, N, o_lane)
            m_dBC = None
            if not (EVEN and LANES == 32):
                m_dBC = (o_lane < 32) & (first_state + o_own < N)
            p_states = checkpoints + (i_sample * chunks + i_chunk) * dim * N + o_states
            b_h = load_states(p_states, first_channel, first_state, dim_per_group, N, o_lane)
            if N > 16:
                b_carry = load_states(
                    carry_out + o_segment, first_channel, first_state, dim_per_group, N, o_lane
                )
                b_dA = load_states(
                    dA + o_segment, first_channel, first_state, dim_per_group, N, o_lane
                )

            # Stage 2, from the chunk's first step
            t = i_chunk.to(tl.int64) * every
            t = steps - 1 - t if REVERSE else t
            p_row = scratch + 4 * o_lane
            p_B = B + t * s_B_step + first_state
            b_h, p_row, p_B = _recompute_states(
                b_h, b_A, p_row, p_B, s_B, chunk_steps, m_n, m_states, LANES
            )
            tl.debug_barrier()

            # Stage 3, from its last step
            t = t - (chunk_steps - 1) if REVERSE else t + (chunk_steps - 1)
            p_C = C + t * s_C_step + first_state
            p_dBC = dBC + t * ngroups * N + first_state
            b_carry, b_dA = _go_back(
                b_h, b_carry, b_dA, b_A, p_row, p_B, p_C, p_dBC, s_B, s_C, s_dBC, chunk_steps,
                first_state, m_n, m_states, m_dBC, o_lane, N, LANES,
            )  # fmt: skip
            if N > 16:
                store_states(
                    carry_out + o_segment, b_carry, first_channel, first_state, dim_per_group, N,
                    o_lane,
                )  # fmt: skip
                store_states(
                    dA + o_segment, b_dA, first_channel, first_state, dim_per_group, N, o_lane
                )
            tl.debug_barrier()

        # Stage 4
        b_dD, b_dbias = finish_steps(
            p_x, p_dout, p_z, p_dx, p_ddelta, p_dz, b_D, b_dD, b_dbias, scratch, first_pair,
            pairs, valid, m_channel, o_lane, dim, s_x, s_dout, s_z, SOFTPLUS, REVERSE, ROWS, LANES,
        )  # fmt: skip
        tl.debug_barrier()

    if N <= 16:
        store_states(carry_out + o_segment, b_carry, first_channel, start, dim_per_group, N, o_lane)
        store_states(dA + o_segment, b_dA, first_channel, start, dim_per_group, N, o_lane)
    o_sums = (i_sample * tl.num_programs(2) + i_segment) * dim + o_dim
    if dD is not None:
        tl.store(dD + o_sums, tl.sum(b_dD, axis=0), mask=m_channel)
    if dbias is not None:
        tl.store(dbias + o_sums, tl.sum(b_dbias, axis=0), mask=m_channel)
