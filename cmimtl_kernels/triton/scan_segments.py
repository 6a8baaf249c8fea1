"""The scans split over time: segments are computed side by side, once their first state is known.

The recurrence of the state and that of its gradient are linear. So a segment does two things to the
value that enters it: it multiplies the value by exp(A sum d), and it adds what a scan of its own
inputs gives that starts from 0. `segment_totals` computes both for all segments at once, and
`carry_over` goes from segment to segment with them. Then the scans run, with the state, or its
gradient, that enters each segment. The order is fixed, so the bits are the same on every run.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import load_four, no_states, store_four
from cmimtl_kernels.triton.math import LOG2E, silu, step_size, valid_steps


@triton.jit
def segment_totals(
    x0,  # (batch, length, dim): u or v; with GRADIENT the gradient of out or out_v
    x1,  # None, or t; with GRADIENT the gradient of out_t
    delta,  # (batch, steps, dim)
    A,  # (dim, N), contiguous
    M,  # (batch, steps, ngroups, N): B, with GRADIENT C
    z0,  # (batch, length, dim): with GRADIENT the gates, or None
    z1,
    bias,  # (dim,) or None
    lengths,  # (batch,) int64 or None
    edges,  # (batch, segments, dim, N): what each segment adds
    sizes,  # (batch, segments, dim): the sum of d over each segment
    length,
    dim,
    dim_per_group,
    tiles_per_group,
    span,  # number of steps of a segment; a multiple of 2 in the cross scan
    x0_batch,  # strides in elements
    x0_step,
    x1_batch,
    x1_step,
    delta_batch,
    delta_step,
    M_batch,
    M_step,
    M_group,
    z0_batch,
    z0_step,
    z1_batch,
    z1_step,
    N: tl.constexpr,
    STATES: tl.constexpr,  # as in scan_forward
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    # Whether the recurrence is g_{t-1} = exp(d A) (g_t + C dy), from the last step to the first.
    GRADIENT: tl.constexpr,
    LANES: tl.constexpr,
):
    PER: tl.constexpr = 2 if CROSS else 1
    BACKWARDS: tl.constexpr = REVERSE != GRADIENT  # whether it goes back in time
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    segment = tl.program_id(2)
    group = tile // tiles_per_group
    lane = tl.arange(0, LANES)
    channel = tile % tiles_per_group * LANES + lane
    mask = channel < dim_per_group
    d = group * dim_per_group + channel
    valid = valid_steps(lengths, sample, length)
    group = group.to(tl.int64)
    shift = None
    if bias is not None:
        shift = tl.load(bias + d, mask=mask, other=0.0)

    begin = segment * (span // PER)
    count = tl.minimum(span // PER, valid - begin)
    if GRADIENT:
        begin += tl.maximum(count, 1) - 1
    step = (valid - 1 - begin if REVERSE else begin).to(tl.int64)
    ahead = -1 if BACKWARDS else 1
    x0 += sample * x0_batch + step * x0_step + d
    delta += sample * delta_batch + step * PER * delta_step + d
    M += sample * M_batch + group * M_group + step * PER * M_step + lane * 0
    if CROSS:
        x1 += sample * x1_batch + step * x1_step + d
    if z0 is not None:
        z0 += sample * z0_batch + step * z0_step + d
        if CROSS:
            z1 += sample * z1_batch + step * z1_step + d
    of_segment = sample * tl.num_programs(2) + segment

    for first_state in range(0, N, STATES):
        first = tl.multiple_of(tl.cast(first_state, tl.int32), 4)  # the interpreter has an int here
        n = first + tl.arange(0, 4)[None, :] + (lane * 0)[:, None]
        a = ()
        for q in tl.static_range(0, STATES, 4):
            live = mask[:, None] & (n + q < N)
            a = a + load_four(A + d.to(tl.int64) * N + first + q, live)
        for i in tl.static_range(STATES):
            a = a[:i] + (a[i] * LOG2E,) + a[i + 1 :]
        h = no_states(STATES, LANES)
        size_sum = tl.zeros([LANES], dtype=tl.float32)
        at_x0, at_x1, at_z0, at_z1, at_delta, at_M = x0, x1, z0, z1, delta, M + first
        for _ in range(0, count):
            value0 = tl.load(at_x0, mask=mask, other=0.0).to(tl.float32)
            if CROSS:
                value1 = tl.load(at_x1, mask=mask, other=0.0).to(tl.float32)
            if z0 is not None:
                gate = tl.load(at_z0, mask=mask, other=0.0).to(tl.float32)
                if CROSS:
                    gate *= tl.load(at_z1, mask=mask, other=0.0).to(tl.float32)
                gate = silu(gate)
            for turn in tl.static_range(PER):
                # The product comes before the sum, and after it where time runs backwards.
                at_size = at_delta
                row = at_M
                if CROSS and turn != BACKWARDS:
                    at_size += delta_step
                    row += M_step
                    value = value1 if GRADIENT else value0 + value1
                elif CROSS and not GRADIENT:
                    value = value0 * value1
                else:
                    value = value0
                size = tl.load(at_size, mask=mask, other=0.0).to(tl.float32)
                size = step_size(size, shift, SOFTPLUS)
                size_sum += size
                if not GRADIENT:
                    value *= size
                elif z0 is not None:
                    value *= gate
                new = ()
                for q in tl.static_range(0, STATES, 4):
                    exists = None if N % STATES == 0 else n + q < N
                    m = load_four(row + q, exists)
                    for i in tl.static_range(4):
                        decay = tl.exp2(size * a[q + i])
                        if GRADIENT:
                            new = new + (decay * (h[q + i] + value * m[i]),)
                        else:
                            new = new + (decay * h[q + i] + value * m[i],)
                h = new
            at_x0 += ahead * x0_step
            at_delta += ahead * PER * delta_step
            at_M += ahead * PER * M_step
            if CROSS:
                at_x1 += ahead * x1_step
            if z0 is not None:
                at_z0 += ahead * z0_step
                if CROSS:
                    at_z1 += ahead * z1_step
        at = edges + (of_segment * dim + d) * N + first
        for q in tl.static_range(0, STATES, 4):
            live = mask[:, None] & (n + q < N)
            store_four(at + q, h[q], h[q + 1], h[q + 2], h[q + 3], live)
        tl.store(sizes + of_segment * dim + d, size_sum, mask=mask)


@triton.jit
def carry_over(
    edges,  # (batch, segments, dim, N): what each segment adds; becomes what enters it
    sizes,  # (batch, segments, dim)
    A,  # (dim, N), contiguous
    start,  # (batch, dim, N): what enters the first segment, or None for 0
    dim,
    segments,
    N: tl.constexpr,
    GRADIENT: tl.constexpr,  # whether to go from the last segment to the first
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < dim * N
    a = tl.load(A + i, mask=mask, other=0.0) * LOG2E
    if start is None:
        state = tl.zeros([BLOCK], dtype=tl.float32)
    else:
        state = tl.load(start + sample * dim * N + i, mask=mask, other=0.0)
    for turn in range(0, segments):
        segment = sample * segments + (segments - 1 - turn if GRADIENT else turn)
        added = tl.load(edges + segment * dim * N + i, mask=mask, other=0.0)
        size = tl.load(sizes + segment * dim + i // N, mask=mask, other=0.0)
        tl.store(edges + segment * dim * N + i, state, mask=mask)
        state = tl.exp2(size * a) * state + added
