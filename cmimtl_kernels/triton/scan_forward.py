"""The forward scan. A program goes over one sample, a tile of channels and a segment of time.

It goes through time step by step. A lane (a thread of the one warp) holds every state of one or two
channels, as a tuple of tensors over the lanes. So the sum over the states n needs no exchange
between lanes, and B and C are the same in every lane. With two channels a lane loads B and C once
for both; with one there are more warps to hide latency. exp(d A) is computed as exp2(d A') with
A' = A log2(e).
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import load_four, no_states, store_four
from cmimtl_kernels.triton.math import LOG2E, silu, step_size, valid_steps


@triton.jit
def _load(pointer, masks, LANES: tl.constexpr):
    """Load one value of each channel of a lane; the channels are LANES apart."""
    values = ()
    for c in tl.static_range(len(masks)):
        values = values + (tl.load(pointer + c * LANES, mask=masks[c], other=0.0).to(tl.float32),)
    return values


@triton.jit
def _load_states(pointer, n, masks, N: tl.constexpr, STATES: tl.constexpr, LANES: tl.constexpr):
    """Load a lane's states from (dim_per_group, N) at `pointer`: four of each channel, four more …

    n: (LANES, 4), the numbers of the first four states.
    """
    states = ()
    for q in tl.static_range(0, STATES, 4):
        for c in tl.static_range(len(masks)):
            live = masks[c][:, None] if N % STATES == 0 else masks[c][:, None] & (n + q < N)
            states = states + load_four(pointer + c * LANES * N + q, live)
    return states


@triton.jit
def _store_states(pointer, h, n, masks, N: tl.constexpr, STATES: tl.constexpr, LANES: tl.constexpr):
    """The inverse of `_load_states`."""
    CHANNELS: tl.constexpr = len(masks)
    for q in tl.static_range(0, STATES, 4):
        for c in tl.static_range(CHANNELS):
            live = masks[c][:, None] if N % STATES == 0 else masks[c][:, None] & (n + q < N)
            store_four(
                pointer + c * LANES * N + q,
                h[CHANNELS * q + 4 * c], h[CHANNELS * q + 4 * c + 1],
                h[CHANNELS * q + 4 * c + 2], h[CHANNELS * q + 4 * c + 3], live,
            )  # fmt: skip


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
    initial,  # (batch, segments, dim, N): the state before each segment; or None
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
    span,  # number of chunks of a segment
    x0_batch,  # strides of sample and step, in elements; the stride of the channel is 1
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
    N: tl.constexpr,
    STATES: tl.constexpr,  # size of a group of states, a multiple of 4; the groups take turns
    CHANNELS: tl.constexpr,  # number of channels of a lane
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    LANES: tl.constexpr,
):
    PER: tl.constexpr = 2 if CROSS else 1  # steps of the scan for each step of the streams
    EVEN: tl.constexpr = N % STATES == 0
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    segment = tl.program_id(2)
    group = tile // tiles_per_group
    lane = tl.arange(0, LANES)
    channel = tile % tiles_per_group * (CHANNELS * LANES) + lane
    d = group * dim_per_group + channel  # the lane's first channel
    valid = valid_steps(lengths, sample, length)
    group = group.to(tl.int64)
    masks = ()
    skip = ()
    shift = ()
    for c in tl.static_range(CHANNELS):
        mask = channel + c * LANES < dim_per_group
        masks = masks + (mask,)
        if D is not None:
            skip = skip + (tl.load(D + d + c * LANES, mask=mask, other=0.0),)
        if bias is not None:
            shift = shift + (tl.load(bias + d + c * LANES, mask=mask, other=0.0),)

    states = d.to(tl.int64) * N
    chunks = (length * PER + every - 1) // every
    of_chunk = every // PER  # number of steps of the streams in a chunk
    # The first step of the segment, and the number of its steps.
    begin = segment * span * of_chunk
    total = tl.minimum(span * of_chunk, valid - begin)
    begin = (valid - 1 - begin if REVERSE else begin).to(tl.int64)
    ahead = -1 if REVERSE else 1
    x0 += sample * x0_batch + begin * x0_step + d
    delta += sample * delta_batch + begin * PER * delta_step + d
    out0 += (sample * length + begin) * dim + d
    B += sample * B_batch + group * B_group + begin * PER * B_step + lane * 0
    C += sample * C_batch + group * C_group + begin * PER * C_step + lane * 0
    if CROSS:
        x1 += sample * x1_batch + begin * x1_step + d
        out1 += (sample * length + begin) * dim + d
    if z0 is not None:
        z0 += sample * z0_batch + begin * z0_step + d
        if CROSS:
            z1 += sample * z1_batch + begin * z1_step + d
    if partial is not None:
        partial += (sample * length + begin) * PER * dim + d

    for first_state in range(0, N, STATES):
        first = tl.multiple_of(tl.cast(first_state, tl.int32), 4)  # the interpreter has an int here
        n = first + tl.arange(0, 4)[None, :] + (lane * 0)[:, None]
        a = _load_states(A + states + first, n, masks, N, STATES, LANES)
        for i in tl.static_range(STATES * CHANNELS):
            a = a[:i] + (a[i] * LOG2E,) + a[i + 1 :]
        if initial is None:
            h = no_states(STATES * CHANNELS, LANES)
        else:
            of_segment = (sample * tl.num_programs(2) + segment) * dim * N + states + first
            h = _load_states(initial + of_segment, n, masks, N, STATES, LANES)

        at_x0, at_x1, at_z0, at_z1 = x0, x1, z0, z1
        at_delta, at_B, at_C = delta, B + first, C + first
        at_out0, at_out1, at_partial = out0, out1, partial
        for k in range(0, (total + of_chunk - 1) // of_chunk):
            chunk = segment * span + k
            if checkpoints is not None:
                saved = checkpoints + (sample * chunks + chunk) * dim * N + states + first
                _store_states(saved, h, n, masks, N, STATES, LANES)
            for _ in range(0, tl.minimum(of_chunk, total - k * of_chunk)):
                first0 = _load(at_x0, masks, LANES)
                if CROSS:
                    first1 = _load(at_x1, masks, LANES)
                if z0 is not None:
                    gate0 = _load(at_z0, masks, LANES)
                    if CROSS:
                        gate1 = _load(at_z1, masks, LANES)
                    gates = ()
                    for c in tl.static_range(CHANNELS):
                        gates = gates + (silu(gate0[c] * gate1[c] if CROSS else gate0[c]),)
                for turn in tl.static_range(PER):
                    # The product comes before the sum, and after it where time runs backwards.
                    if CROSS and turn != REVERSE:
                        raw = _load(at_delta + delta_step, masks, LANES)
                        row_B, row_C = at_B + B_step, at_C + C_step
                    else:
                        raw = _load(at_delta, masks, LANES)
                        row_B, row_C = at_B, at_C
                    size = ()
                    x = ()
                    for c in tl.static_range(CHANNELS):
                        if bias is not None:
                            size = size + (step_size(raw[c], shift[c], SOFTPLUS),)
                        else:
                            size = size + (step_size(raw[c], None, SOFTPLUS),)
                        if CROSS and turn != REVERSE:
                            x = x + (first0[c] + first1[c],)
                        elif CROSS:
                            x = x + (first0[c] * first1[c],)
                        else:
                            x = x + (first0[c],)
                    y = (0.0, 0.0)
                    new = ()
                    for q in tl.static_range(0, STATES, 4):
                        exists = None if EVEN else n + q < N
                        b = load_four(row_B + q, exists)
                        c_n = load_four(row_C + q, exists)
                        sums = ()
                        for c in tl.static_range(CHANNELS):
                            total_c = y[c]
                            for i in tl.static_range(4):
                                decay = tl.exp2(size[c] * a[CHANNELS * q + 4 * c + i])
                                h_n = decay * h[CHANNELS * q + 4 * c + i] + size[c] * x[c] * b[i]
                                total_c += h_n * c_n[i]
                                new = new + (h_n,)
                            sums = sums + (total_c,)
                        y = sums
                    h = new
                    for c in tl.static_range(CHANNELS):
                        y_c = y[c]
                        final = masks[c]
                        if partial is not None:
                            # The same thread wrote this value, so no barrier is needed.
                            at_sum = at_partial + c * LANES
                            if CROSS and turn != REVERSE:
                                at_sum += dim
                            y_c += tl.load(at_sum, mask=masks[c] & (first > 0), other=0.0)
                            final = masks[c] & (first + STATES >= N)
                            tl.store(at_sum, y_c, mask=masks[c] & (first + STATES < N))
                        if D is not None:
                            y_c += skip[c] * x[c]
                        if z0 is not None:
                            y_c *= gates[c]
                        if CROSS and turn != REVERSE:
                            at = at_out1 + c * LANES
                        else:
                            at = at_out0 + c * LANES
                        tl.store(at, y_c.to(out0.dtype.element_ty), mask=final)
                at_x0 += ahead * x0_step
                at_delta += ahead * PER * delta_step
                at_B += ahead * PER * B_step
                at_C += ahead * PER * C_step
                at_out0 += ahead * dim
                if CROSS:
                    at_out1 += ahead * dim
                    at_x1 += ahead * x1_step
                if z0 is not None:
                    at_z0 += ahead * z0_step
                    if CROSS:
                        at_z1 += ahead * z1_step
                if partial is not None:
                    at_partial += ahead * PER * dim

        if segment == tl.num_programs(2) - 1:
            _store_states(last + sample * dim * N + states + first, h, n, masks, N, STATES, LANES)
