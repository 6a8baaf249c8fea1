"""The backward scan: one program is one sample and a tile of channels, from the last chunk to the
first.

A chunk is the steps between two checkpoints. Each goes through four stages, which meet in a scratch
of the program's own in global memory (it stays in the caches):

1. over (steps, channels): step sizes d, products d x, and gradients dy before gate and skip;
2. step by step: the states from the checkpoint on, each kept in the scratch;
3. step by step, backwards: the gradients of the state, of A, and the sums over n and over channels;
4. over (steps, channels): the gradients of the inputs, and the output again.

In stages 2 and 3 the states are a tuple of (channels, LANES) tensors: a thread holds several
channels and several states, so that both kinds of sum, over n for d, x and over channels for B, C,
are done mostly in registers. Sums over channels end in one row for each tile, which the caller adds
up: the order is fixed and there is no atomic.

With dh_t = g_t + C_t dy_t and g_{t-1} = exp(d_t A) dh_t, the gradient of the state before step t:

    dB_t = sum_channels dh_t d_t x_t        dC_t = sum_channels h_t dy_t
    dA   = sum_t d_t g_{t-1} h_{t-1}        d(d_t) = sum_n A g_{t-1} h_{t-1} + x_t sum_n dh_t B_t
    dx_t = d_t sum_n dh_t B_t + D dy_t
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.math import (
    LN2,
    LOG2E,
    sigmoid,
    silu_and_derivative,
    step_size,
    valid_steps,
)

# Slots of the scratch, each (every, BLOCK); the states follow, (every, GROUPS_OF_LANES, LANES,
# BLOCK).
SIZE = tl.constexpr(0)  # d
SIZE_X = tl.constexpr(1)  # d x
DY = tl.constexpr(2)
Y = tl.constexpr(3)  # sum_n C h
DH_B = tl.constexpr(4)  # sum_n dh B
DSIZE = tl.constexpr(5)  # sum_n A g h
SLOTS = tl.constexpr(6)


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
    carry,  # (batch, dim, N): the gradient of the last state; becomes that of the first
    dA,  # (batch, dim, N), 0 at first
    dD,  # (batch, dim) or None
    dbias,  # (batch, dim) or None
    dB,  # (tiles_per_group, batch, steps, ngroups, N)
    dC,  # as dB
    scratch,  # (programs, SLOTS + STATES * LANES, every, BLOCK) float32
    length,
    dim,
    dim_per_group,
    tiles_per_group,
    every,
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
    STATES: tl.constexpr,  # tensors of LANES states
    LANES: tl.constexpr,
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,  # steps of x0 at a time in stages 1 and 4
    BLOCK: tl.constexpr,
):
    PER: tl.constexpr = 2 if CROSS else 1
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    group = tile // tiles_per_group
    tile_of_group = (tile % tiles_per_group).to(tl.int64)
    lane_of_channel = tl.arange(0, BLOCK)
    channel = tile % tiles_per_group * BLOCK + lane_of_channel
    mask = channel < dim_per_group
    d = group * dim_per_group + channel
    valid = valid_steps(lengths, sample, length)
    steps = valid * PER
    chunks = (length * PER + every - 1) // every
    ngroups = dim // dim_per_group
    group = group.to(tl.int64)

    x0 += sample * x0_batch + d[None, :]
    delta += sample * delta_batch + d[None, :]
    dout0 += sample * dout0_batch + d[None, :]
    own = sample * length * dim + d[None, :]
    dx0 += own
    ddelta += sample * length * PER * dim + d[None, :]
    B += sample * B_batch + group * B_group
    C += sample * C_batch + group * C_group
    if CROSS:
        x1 += sample * x1_batch + d[None, :]
        dout1 += sample * dout1_batch + d[None, :]
        dx1 += own
    if z0 is not None:
        z0 += sample * z0_batch + d[None, :]
        dz0 += own
        if CROSS:
            z1 += sample * z1_batch + d[None, :]
            dz1 += own
    if out0 is not None:
        out0 += own
        if CROSS:
            out1 += own
    program = sample * tl.num_programs(1) + tile
    slot = every * BLOCK
    scratch += program * (SLOTS + STATES * LANES) * slot
    # The same element for every lane: one layout for all that the loops over steps touch.
    tile_of_scratch = scratch + lane_of_channel[:, None] + tl.zeros([1, LANES], dtype=tl.int32)
    kept = scratch + SLOTS * slot + lane_of_channel[:, None]
    row_of_maps = ((tile_of_group * tl.num_programs(0) + sample) * length * PER * ngroups) * N
    dB += row_of_maps + group * N
    dC += row_of_maps + group * N
    states = d.to(tl.int64)[:, None] * N

    skip = tl.zeros([1, BLOCK], dtype=tl.float32)
    if D is not None:
        skip = tl.load(D + d, mask=mask, other=0.0)[None, :]
    shift = None
    if bias is not None:
        shift = tl.load(bias + d, mask=mask, other=0.0)[None, :]
    sum_D = tl.zeros([BLOCK], dtype=tl.float32)
    sum_bias = tl.zeros([BLOCK], dtype=tl.float32)

    used = (steps + every - 1) // every
    for back in range(0, used):
        chunk = used - 1 - back
        count = tl.minimum(every, steps - chunk * every)

        # Stage 1
        for begin in range(0, count // PER, ROWS):
            r = begin + tl.arange(0, ROWS)[:, None]
            live = (r < count // PER) & mask[None, :]
            q = chunk * (every // PER) + r
            step = (valid - 1 - q if REVERSE else q).to(tl.int64)
            stream0 = tl.load(x0 + step * x0_step, mask=live, other=0.0).to(tl.float32)
            if CROSS:
                stream1 = tl.load(x1 + step * x1_step, mask=live, other=0.0).to(tl.float32)
            gate = tl.full([ROWS, BLOCK], 1.0, dtype=tl.float32)
            if z0 is not None:
                gate = tl.load(z0 + step * z0_step, mask=live, other=0.0).to(tl.float32)
                if CROSS:
                    gate *= tl.load(z1 + step * z1_step, mask=live, other=0.0).to(tl.float32)
                gate *= sigmoid(gate)
            for part in tl.static_range(PER):
                if CROSS and part == 1:
                    x = stream0 + stream1
                    dout = tl.load(dout1 + step * dout1_step, mask=live, other=0.0)
                elif CROSS:
                    x = stream0 * stream1
                    dout = tl.load(dout0 + step * dout0_step, mask=live, other=0.0)
                else:
                    x = stream0
                    dout = tl.load(dout0 + step * dout0_step, mask=live, other=0.0)
                j = r * PER + (PER - 1 - part if REVERSE else part)
                s = step * PER + part
                size = tl.load(delta + s * delta_step, mask=live, other=0.0).to(tl.float32)
                size = tl.where(live, step_size(size, shift, SOFTPLUS), 0.0)
                at = scratch + j * BLOCK + lane_of_channel[None, :]
                inside = j < count
                tl.store(at + SIZE * slot, size, mask=inside)
                tl.store(at + SIZE_X * slot, size * x, mask=inside)
                tl.store(at + DY * slot, dout.to(tl.float32) * gate, mask=inside)
        tl.debug_barrier()

        for first_state in range(0, N, STATES * LANES):
            first = tl.cast(first_state, tl.int32) + tl.arange(0, LANES)[None, :]
            mine = sample * dim * N + states + first
            a = ()
            h = ()
            g = ()
            sum_A = ()
            for i in tl.static_range(STATES):
                live = mask[:, None] & (first + i * LANES < N)
                a = a + (tl.load(A + states + first + i * LANES, mask=live, other=0.0) * LOG2E,)
                saved = (sample * chunks + chunk) * dim * N + states + first + i * LANES
                h = h + (tl.load(checkpoints + saved, mask=live, other=0.0),)
                g = g + (tl.load(carry + mine + i * LANES, mask=live, other=0.0),)
                sum_A = sum_A + (tl.load(dA + mine + i * LANES, mask=live, other=0.0),)

            # Stage 2
            for ahead in range(0, count):
                row = tl.cast(ahead, tl.int32)
                k = chunk * every + row
                time = (steps - 1 - k if REVERSE else k).to(tl.int64)
                column = tile_of_scratch + row * BLOCK
                size_k = tl.load(column + SIZE * slot)
                size_x_k = tl.load(column + SIZE_X * slot)
                new = ()
                for i in tl.static_range(STATES):
                    lane = i * LANES + tl.arange(0, LANES)[None, :]
                    tl.store(kept + (row * STATES * LANES + lane) * BLOCK, h[i])
                    n = first + i * LANES
                    b = tl.load(B + time * B_step + n, mask=n < N, other=0.0).to(tl.float32)
                    new = new + (tl.exp2(size_k * a[i]) * h[i] + size_x_k * b,)
                h = new
            tl.debug_barrier()

            # Stage 3
            for behind in range(0, count):
                row = tl.cast(count - 1 - behind, tl.int32)
                k = chunk * every + row
                time = (steps - 1 - k if REVERSE else k).to(tl.int64)
                column = tile_of_scratch + row * BLOCK
                size_k = tl.load(column + SIZE * slot)
                size_x_k = tl.load(column + SIZE_X * slot)
                dy_k = tl.load(column + DY * slot)
                y_k = tl.zeros([BLOCK, LANES], dtype=tl.float32)
                dh_B_k = tl.zeros([BLOCK, LANES], dtype=tl.float32)
                dsize_k = tl.zeros([BLOCK, LANES], dtype=tl.float32)
                before = ()
                new = ()
                new_A = ()
                for i in tl.static_range(STATES):
                    lane = i * LANES + tl.arange(0, LANES)[None, :]
                    n = first + i * LANES
                    b = tl.load(B + time * B_step + n, mask=n < N, other=0.0).to(tl.float32)
                    c = tl.load(C + time * C_step + n, mask=n < N, other=0.0).to(tl.float32)
                    h_before = tl.load(kept + (row * STATES * LANES + lane) * BLOCK)
                    dh = g[i] + c * dy_k
                    y_k += c * h[i]
                    dh_B_k += dh * b
                    g_i = tl.exp2(size_k * a[i]) * dh
                    gh = g_i * h_before
                    dsize_k += gh * a[i]
                    at_n = time * ngroups * N + n
                    sum_B = tl.sum(dh * size_x_k, axis=0, keep_dims=True)
                    sum_C = tl.sum(h[i] * dy_k, axis=0, keep_dims=True)
                    tl.store(dB + at_n, sum_B, mask=n < N)
                    tl.store(dC + at_n, sum_C, mask=n < N)
                    before = before + (h_before,)
                    new = new + (g_i,)
                    new_A = new_A + (sum_A[i] + gh * size_k,)
                h = before
                g = new
                sum_A = new_A
                # Of the lanes that hold the same sum, the first one adds and stores.
                one = tl.zeros([BLOCK, 1], dtype=tl.int32) == tl.arange(0, LANES)[None, :]
                y_sum = tl.sum(y_k, axis=1, keep_dims=True)
                dh_B_sum = tl.sum(dh_B_k, axis=1, keep_dims=True)
                dsize_sum = tl.sum(dsize_k, axis=1, keep_dims=True) * LN2
                if N > STATES * LANES:
                    more = one & (first >= LANES)
                    y_sum += tl.load(column + Y * slot, mask=more, other=0.0)
                    dh_B_sum += tl.load(column + DH_B * slot, mask=more, other=0.0)
                    dsize_sum += tl.load(column + DSIZE * slot, mask=more, other=0.0)
                tl.store(column + Y * slot, tl.broadcast_to(y_sum, [BLOCK, LANES]), mask=one)
                tl.store(column + DH_B * slot, tl.broadcast_to(dh_B_sum, [BLOCK, LANES]), mask=one)
                tl.store(
                    column + DSIZE * slot, tl.broadcast_to(dsize_sum, [BLOCK, LANES]), mask=one
                )

            for i in tl.static_range(STATES):
                live = mask[:, None] & (first + i * LANES < N)
                tl.store(carry + mine + i * LANES, g[i], mask=live)
                tl.store(dA + mine + i * LANES, sum_A[i], mask=live)
            tl.debug_barrier()

        # Stage 4
        for begin in range(0, count // PER, ROWS):
            r = begin + tl.arange(0, ROWS)[:, None]
            live = (r < count // PER) & mask[None, :]
            q = chunk * (every // PER) + r
            step = (valid - 1 - q if REVERSE else q).to(tl.int64)
            stream0 = tl.load(x0 + step * x0_step, mask=live, other=0.0).to(tl.float32)
            if CROSS:
                stream1 = tl.load(x1 + step * x1_step, mask=live, other=0.0).to(tl.float32)
            gate = tl.full([ROWS, BLOCK], 1.0, dtype=tl.float32)
            if z0 is not None:
                gate0 = tl.load(z0 + step * z0_step, mask=live, other=0.0).to(tl.float32)
                if CROSS:
                    gate1 = tl.load(z1 + step * z1_step, mask=live, other=0.0).to(tl.float32)
                    gate, slope = silu_and_derivative(gate0 * gate1)
                else:
                    gate, slope = silu_and_derivative(gate0)
            dstream0 = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
            dstream1 = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
            dgate = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
            for part in tl.static_range(PER):
                if CROSS and part == 1:
                    x = stream0 + stream1
                    dout = tl.load(dout1 + step * dout1_step, mask=live, other=0.0)
                elif CROSS:
                    x = stream0 * stream1
                    dout = tl.load(dout0 + step * dout0_step, mask=live, other=0.0)
                else:
                    x = stream0
                    dout = tl.load(dout0 + step * dout0_step, mask=live, other=0.0)
                dout = dout.to(tl.float32)
                j = r * PER + (PER - 1 - part if REVERSE else part)
                s = step * PER + part
                at = scratch + j * BLOCK + lane_of_channel[None, :]
                size = tl.load(at + SIZE * slot, mask=live, other=0.0)
                dy = tl.load(at + DY * slot, mask=live, other=0.0)
                y = tl.load(at + Y * slot, mask=live, other=0.0) + skip * x
                dh_B = tl.load(at + DH_B * slot, mask=live, other=0.0)
                dsize = tl.load(at + DSIZE * slot, mask=live, other=0.0) + dh_B * x
                if SOFTPLUS:
                    raw = tl.load(delta + s * delta_step, mask=live, other=0.0).to(tl.float32)
                    if bias is not None:
                        raw += shift
                    dsize *= sigmoid(raw)
                tl.store(ddelta + s * dim, dsize.to(ddelta.dtype.element_ty), mask=live)
                sum_bias += tl.sum(dsize, axis=0)
                sum_D += tl.sum(dy * x, axis=0)
                dgate += dout * y
                dx = dh_B * size + skip * dy
                if CROSS and part == 1:
                    dstream0 += dx
                    dstream1 += dx
                elif CROSS:
                    dstream0 += stream1 * dx
                    dstream1 += stream0 * dx
                else:
                    dstream0 = dx
                if out0 is not None:
                    if CROSS and part == 1:
                        tl.store(out1 + step * dim, (y * gate).to(out1.dtype.element_ty), mask=live)
                    else:
                        tl.store(out0 + step * dim, (y * gate).to(out0.dtype.element_ty), mask=live)
            tl.store(dx0 + step * dim, dstream0.to(dx0.dtype.element_ty), mask=live)
            if CROSS:
                tl.store(dx1 + step * dim, dstream1.to(dx1.dtype.element_ty), mask=live)
            if z0 is not None:
                dgate *= slope
                if CROSS:
                    tl.store(dz0 + step * dim, (dgate * gate1).to(dz0.dtype.element_ty), mask=live)
                    tl.store(dz1 + step * dim, (dgate * gate0).to(dz1.dtype.element_ty), mask=live)
                else:
                    tl.store(dz0 + step * dim, dgate.to(dz0.dtype.element_ty), mask=live)
        tl.debug_barrier()

    if dD is not None:
        tl.store(dD + sample * dim + d, sum_D, mask=mask)
    if dbias is not None:
        tl.store(dbias + sample * dim + d, sum_bias, mask=mask)
