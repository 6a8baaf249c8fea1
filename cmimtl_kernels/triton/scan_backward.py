"""The backward scan. A program goes over one sample, a tile of channels and a segment of time, from
the segment's last chunk to its first.

A chunk is the steps between two checkpoints. Each chunk goes through four stages. What one leaves
for the next lies in a scratch of the program's own in global memory, which stays in the caches:

1. over (steps, channels): step sizes d, products d x, and gradients dy before gate and skip;
2. step by step: the states from the checkpoint on, each kept in the scratch;
3. step by step, backwards: the gradients of the state, of A, and the sums over n and over channels;
4. over (steps, channels): the gradients of the inputs, and the output again.

The first and the last stage are in scan_backward_inputs.py.

With g_t the gradient that reaches the state of step t from the steps after it, and dh_t the whole
gradient of that state:

    dh_t    = g_t + C_t dy_t
    g_{t-1} = exp(d_t A) dh_t
    dB_t    = sum_channels dh_t d_t x_t
    dC_t    = sum_channels h_t dy_t
    dA      = sum_t d_t g_{t-1} h_{t-1}
    d(d_t)  = sum_n A g_{t-1} h_{t-1} + x_t sum_n dh_t B_t
    dx_t    = d_t sum_n dh_t B_t + D dy_t

In stages 2 and 3 a lane (a thread of the one warp) holds 4 channels x 4 states, as a tuple of 16
tensors over the lanes. Four neighbouring lanes share four channels and hold 16 states of each. So a
sum over the states n, or over channels, is three additions in the lane, and then an exchange
between lanes that leaves each lane with another sum (`sum_over_states`, `sum_over_channels`). Each
tile writes one row of sums over its channels, and the caller adds up the rows. So the order is
fixed, and there is no atomic addition.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import (
    load_four,
    no_states,
    store_four,
    sum_over_channels,
    sum_over_states,
)
from cmimtl_kernels.triton.math import LN2, LOG2E, valid_steps
from cmimtl_kernels.triton.quads import load_states, store_states
from cmimtl_kernels.triton.scan_backward_inputs import (
    DH_B,
    DSIZE,
    DY,
    ROW,
    SIZE,
    SIZE_X,
    STATE,
    Y,
    finish_steps,
    prepare_steps,
)


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
    out0,  # the forward's outputs, or None
    out1,
    dend,  # (batch, segments, dim, N): the gradient of the state after each segment; None for 0
    dbegin,  # as dend: the gradient of the state before each segment
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
    span,  # number of chunks of a segment
    rows,  # every, rounded up to whole tiles of steps
    x0_batch,  # strides in elements
    x0_step,
    x1_batch,
    x1_step,
    delta_batch,
    delta_step,
    B_batch,
    B_step,
    B_group,
    C_batch,
    C_step,
    C_group,
    z0_batch,
    z0_step,
    z1_batch,
    z1_step,
    dout0_batch,
    dout0_step,
    dout1_batch,
    dout1_step,
    N: tl.constexpr,
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,  # number of steps of x0 in a tile of stages 1 and 4
    LANES: tl.constexpr,  # number of lanes of the one warp, and of channels of a tile
):
    PER: tl.constexpr = 2 if CROSS else 1
    EVEN: tl.constexpr = N % 16 == 0
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    segment = tl.program_id(2)
    group = tile // tiles_per_group
    tile_of_group = tile % tiles_per_group
    origin = tile_of_group * LANES
    lane = tl.arange(0, LANES)
    mask = origin + lane < dim_per_group
    d = group * dim_per_group + origin + lane
    valid = valid_steps(lengths, sample, length)
    steps = valid * PER
    chunks = (length * PER + every - 1) // every
    ngroups = dim // dim_per_group
    group = group.to(tl.int64)

    x0 += sample * x0_batch + d[None, :]
    delta += sample * delta_batch + d[None, :]
    dout0 += sample * dout0_batch + d[None, :]
    dense = sample * length * dim + d[None, :]
    dx0 += dense
    ddelta += sample * length * PER * dim + d[None, :]
    if CROSS:
        x1 += sample * x1_batch + d[None, :]
        dout1 += sample * dout1_batch + d[None, :]
        dx1 += dense
    if z0 is not None:
        z0 += sample * z0_batch + d[None, :]
        dz0 += dense
        if CROSS:
            z1 += sample * z1_batch + d[None, :]
            dz1 += dense
    if out0 is not None:
        out0 += dense
        if CROSS:
            out1 += dense
    program = (sample * tl.num_programs(1) + tile) * tl.num_programs(2) + segment
    scratch += program * rows * ROW * LANES
    # The four states that a lane has of each of its channels, and the row of B and C that it uses.
    part = lane % 4 * 4
    B += sample * B_batch + group * B_group + part
    C += sample * C_batch + group * C_group + part
    # Each lane ends with the sum over channels of the state `mine`: half of the lanes for B, half
    # for C.
    mine = part + lane // 4 % 4
    half = lane // 16 % 2
    of_tile = tl.num_programs(0).to(tl.int64) * length * PER * ngroups * N
    dBC += (half * tiles_per_group + tile_of_group) * of_tile + mine
    dBC += (sample * length * PER * ngroups + group) * N
    # The distances from one processed step to the next.
    B_ahead = -B_step if REVERSE else B_step
    C_ahead = -C_step if REVERSE else C_step
    sums_ahead = -ngroups * N if REVERSE else ngroups * N
    states = group * dim_per_group * N
    of_segment = (sample * tl.num_programs(2) + segment) * dim * N + states

    skip = tl.zeros([1, LANES], dtype=tl.float32)
    if D is not None:
        skip = tl.load(D + d, mask=mask, other=0.0)[None, :]
    shift = None
    if bias is not None:
        shift = tl.load(bias + d, mask=mask, other=0.0)[None, :]
    sum_D = tl.zeros([ROWS, LANES], dtype=tl.float32)
    sum_bias = tl.zeros([ROWS, LANES], dtype=tl.float32)
    # One group of states stays in registers. Several groups take turns, and between its turns each
    # is kept in the results.
    start = tl.cast(0, tl.int32)
    g = no_states(16, LANES)
    sum_A = no_states(16, LANES)
    if N > 16:
        for first_state in range(0, N, 16):
            first = tl.cast(first_state, tl.int32)  # the interpreter has a plain int here
            store_states(dA + of_segment, sum_A, origin, first, dim_per_group, N, lane)
            if dend is not None:
                g = load_states(dend + of_segment, origin, first, dim_per_group, N, lane)
            store_states(dbegin + of_segment, g, origin, first, dim_per_group, N, lane)
    elif dend is not None:
        g = load_states(dend + of_segment, origin, start, dim_per_group, N, lane)

    first_chunk = segment * span
    end_chunk = tl.minimum(first_chunk + span, (steps + every - 1) // every)
    for back in range(0, end_chunk - first_chunk):
        chunk = end_chunk - 1 - back
        count = tl.minimum(every, steps - chunk * every)

        # Stage 1
        first_pair = chunk * (every // PER)
        pairs = count // PER
        prepare_steps(
            x0, x1, delta, dout0, dout1, z0, z1, shift, scratch, first_pair, pairs, valid, mask,
            lane, x0_step, x1_step, delta_step, dout0_step, dout1_step, z0_step, z1_step, CROSS,
            SOFTPLUS, REVERSE, ROWS, LANES,
        )  # fmt: skip
        tl.debug_barrier()

        for first_state in range(0, N, 16):
            first = tl.multiple_of(tl.cast(first_state, tl.int32), 16)
            live = None if EVEN else first + part[:, None] + tl.arange(0, 4)[None, :] < N
            a = load_states(A + states, origin, first, dim_per_group, N, lane)
            for i in tl.static_range(16):
                a = a[:i] + (a[i] * LOG2E,) + a[i + 1 :]
            stored = None if EVEN and LANES == 32 else (lane < 32) & (first + mine < N)
            saved = checkpoints + (sample * chunks + chunk) * dim * N + states
            h = load_states(saved, origin, first, dim_per_group, N, lane)
            if N > 16:
                g = load_states(dbegin + of_segment, origin, first, dim_per_group, N, lane)
                sum_A = load_states(dA + of_segment, origin, first, dim_per_group, N, lane)

            # Stage 2
            quads = scratch + 4 * lane
            at = chunk.to(tl.int64) * every
            at = steps - 1 - at if REVERSE else at
            at_B = B + at * B_step + first
            for _ in range(0, count):
                size = load_four(quads + SIZE * LANES)
                size_x = load_four(quads + SIZE_X * LANES)
                b = load_four(at_B, live)
                after = ()
                for e in tl.static_range(4):
                    store_four(
                        quads + (STATE + 4 * e) * LANES,
                        h[4 * e], h[4 * e + 1], h[4 * e + 2], h[4 * e + 3],
                    )  # fmt: skip
                    for i in tl.static_range(4):
                        decay = tl.exp2(size[e] * a[4 * e + i])
                        after = after + (decay * h[4 * e + i] + size_x[e] * b[i],)
                h = after
                quads += ROW * LANES
                at_B += B_ahead
            tl.debug_barrier()

            # Stage 3
            at = at - (count - 1) if REVERSE else at + (count - 1)
            at_C = C + at * C_step + first
            at_sums = dBC + at * ngroups * N + first
            for _ in range(0, count):
                quads -= ROW * LANES
                at_B -= B_ahead
                size = load_four(quads + SIZE * LANES)
                size_x = load_four(quads + SIZE_X * LANES)
                dy = load_four(quads + DY * LANES)
                b = load_four(at_B, live)
                c = load_four(at_C, live)
                y = ()
                dh_B = ()
                dsize = ()
                h_before = ()
                new = ()
                new_A = ()
                dB = (0.0, 0.0, 0.0, 0.0)
                dC = (0.0, 0.0, 0.0, 0.0)
                # All that reads h comes first, so that the state before h can take its registers.
                for e in tl.static_range(4):
                    y_e = 0.0
                    next_C = ()
                    for i in tl.static_range(4):
                        y_e += c[i] * h[4 * e + i]
                        next_C = next_C + (dC[i] + dy[e] * h[4 * e + i],)
                    dC = next_C
                    y = y + (y_e,)
                for e in tl.static_range(4):
                    before = load_four(quads + (STATE + 4 * e) * LANES)
                    dh_B_e = 0.0
                    dsize_e = 0.0
                    next_B = ()
                    for i in tl.static_range(4):
                        dh = g[4 * e + i] + c[i] * dy[e]
                        dh_B_e += b[i] * dh
                        g_n = tl.exp2(size[e] * a[4 * e + i]) * dh
                        gh = g_n * before[i]
                        dsize_e += a[4 * e + i] * gh
                        new = new + (g_n,)
                        new_A = new_A + (sum_A[4 * e + i] + size[e] * gh,)
                        next_B = next_B + (dB[i] + size_x[e] * dh,)
                    dB = next_B
                    dh_B = dh_B + (dh_B_e,)
                    dsize = dsize + (dsize_e,)
                    h_before = h_before + before
                h = h_before
                g = new
                sum_A = new_A
                tl.store(at_sums, sum_over_channels(dB, dC, lane), mask=stored)
                y_sum = sum_over_states(y, lane)
                dh_B_sum = sum_over_states(dh_B, lane)
                dsize_sum = sum_over_states(dsize, lane) * LN2
                sums = quads - 3 * lane
                if N > 16:
                    more = (lane >= 0) & (first > 0)
                    y_sum += tl.load(sums + Y * LANES, mask=more, other=0.0)
                    dh_B_sum += tl.load(sums + DH_B * LANES, mask=more, other=0.0)
                    dsize_sum += tl.load(sums + DSIZE * LANES, mask=more, other=0.0)
                tl.store(sums + Y * LANES, y_sum)
                tl.store(sums + DH_B * LANES, dh_B_sum)
                tl.store(sums + DSIZE * LANES, dsize_sum)
                at_C -= C_ahead
                at_sums -= sums_ahead

            if N > 16:
                store_states(dbegin + of_segment, g, origin, first, dim_per_group, N, lane)
                store_states(dA + of_segment, sum_A, origin, first, dim_per_group, N, lane)
            tl.debug_barrier()

        # Stage 4
        sum_D, sum_bias = finish_steps(
            x0, x1, dout0, dout1, z0, z1, skip, dx0, dx1, ddelta, dz0, dz1, out0, out1, sum_D,
            sum_bias, scratch, first_pair, pairs, valid, mask, lane, dim, x0_step, x1_step,
            dout0_step, dout1_step, z0_step, z1_step, CROSS, SOFTPLUS, REVERSE, ROWS, LANES,
        )  # fmt: skip
        tl.debug_barrier()

    if N <= 16:
        store_states(dbegin + of_segment, g, origin, start, dim_per_group, N, lane)
        store_states(dA + of_segment, sum_A, origin, start, dim_per_group, N, lane)
    at = (sample * tl.num_programs(2) + segment) * dim + d
    if dD is not None:
        tl.store(dD + at, tl.sum(sum_D, axis=0), mask=mask)
    if dbias is not None:
        tl.store(dbias + at, tl.sum(sum_bias, axis=0), mask=mask)
