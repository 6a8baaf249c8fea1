"""The forward scan: one program is one sample and a tile of channels, sequential in time.

The states are a tuple of one-dimensional tensors over the channels, one for each n, so a thread
holds every state of its channels, the sum over n needs no exchange between threads, and B and C are
scalars. exp(d A) is exp2(d A') with A' = A log2(e).
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl

from cmimtl_kernels.triton.math import LOG2E, silu, step_size, valid_steps


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
    initial,  # (batch, dim, N) or None
    lengths,  # (batch,) int64 or None
    out0,  # (batch, length, dim): out, or out_v; steps past `lengths` are not written
    out1,  # None, or out_t
    last,  # (batch, dim, N)
    checkpoints,  # (batch, chunks, dim, N), or None: keep none
    partial,  # (batch, steps, dim) float32, or None where all states are in one group
    length,
    dim,
    dim_per_group,
    tiles_per_group,
    every,  # steps of a chunk; a multiple of 2 in the cross scan
    x0_batch,  # strides in elements, of the sample and of the step; that of the channel is 1
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
    STATES: tl.constexpr,  # of a group of states; the groups follow one another
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    PER: tl.constexpr = 2 if CROSS else 1  # steps of the scan for each step of the streams
    EVEN: tl.constexpr = N % STATES == 0
    sample = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    group = tile // tiles_per_group
    channel = tile % tiles_per_group * BLOCK + tl.arange(0, BLOCK)
    mask = channel < dim_per_group
    d = group * dim_per_group + channel
    valid = valid_steps(lengths, sample, length)
    group = group.to(tl.int64)

    skip = 0.0
    if D is not None:
        skip = tl.load(D + d, mask=mask, other=0.0)
    shift = None
    if bias is not None:
        shift = tl.load(bias + d, mask=mask, other=0.0)
    states = d.to(tl.int64) * N
    sample_states = sample * dim * N + states
    chunks = (length * PER + every - 1) // every
    x0 += sample * x0_batch + d
    delta += sample * delta_batch + d
    B += sample * B_batch + group * B_group
    C += sample * C_batch + group * C_group
    out0 += sample * length * dim + d
    if CROSS:
        x1 += sample * x1_batch + d
        out1 += sample * length * dim + d
    if z0 is not None:
        z0 += sample * z0_batch + d
        if CROSS:
            z1 += sample * z1_batch + d
    if partial is not None:
        partial += sample * length * PER * dim + d

    for first_state in range(0, N, STATES):
        first = tl.cast(first_state, tl.int32)  # a plain int in the interpreter
        a = ()
        h = ()
        for i in tl.static_range(STATES):
            n = first + i
            live = mask if EVEN else mask & (n < N)
            a = a + (tl.load(A + states + n, mask=live, other=0.0) * LOG2E,)
            if initial is None:
                h = h + (tl.zeros([BLOCK], dtype=tl.float32),)
            else:
                h = h + (tl.load(initial + sample_states + n, mask=live, other=0.0),)

        for chunk in range(0, (valid * PER + every - 1) // every):
            if checkpoints is not None:
                at = (sample * chunks + chunk) * dim * N + states
                for i in tl.static_range(STATES):
                    live = mask if EVEN else mask & (first + i < N)
                    tl.store(checkpoints + at + (first + i), h[i], mask=live)
            begin = chunk * (every // PER)
            for k in range(begin, tl.minimum(begin + every // PER, valid)):
                step = tl.cast(valid - 1 - k if REVERSE else k, tl.int64)
                first0 = tl.load(x0 + step * x0_step, mask=mask, other=0.0).to(tl.float32)
                if CROSS:
                    first1 = tl.load(x1 + step * x1_step, mask=mask, other=0.0).to(tl.float32)
                gate = 1.0
                if z0 is not None:
                    gate = tl.load(z0 + step * z0_step, mask=mask, other=0.0).to(tl.float32)
                    if CROSS:
                        gate *= tl.load(z1 + step * z1_step, mask=mask, other=0.0).to(tl.float32)
                    gate = silu(gate)
                for part in tl.static_range(PER):
                    # The product comes first in time, so last where time runs backwards.
                    if CROSS and part != REVERSE:
                        s = 2 * step + 1
                        x = first0 + first1
                    elif CROSS:
                        s = 2 * step
                        x = first0 * first1
                    else:
                        s = step
                        x = first0
                    size = tl.load(delta + s * delta_step, mask=mask, other=0.0).to(tl.float32)
                    size = step_size(size, shift, SOFTPLUS)
                    size_x = size * x
                    y = tl.zeros([BLOCK], dtype=tl.float32)
                    new = ()
                    for i in tl.static_range(STATES):
                        n = first + i
                        b = tl.load(B + s * B_step + (n if EVEN else tl.minimum(n, N - 1))).to(
                            tl.float32
                        )
                        c = tl.load(C + s * C_step + (n if EVEN else tl.minimum(n, N - 1))).to(
                            tl.float32
                        )
                        if not EVEN:
                            b = tl.where(n < N, b, 0.0)
                            c = tl.where(n < N, c, 0.0)
                        h_n = tl.exp2(size * a[i]) * h[i] + size_x * b
                        y += h_n * c
                        new = new + (h_n,)
                    h = new
                    if partial is not None:
                        # The same thread wrote it, so no barrier is needed.
                        y += tl.load(partial + s * dim, mask=mask & (first > 0), other=0.0)
                        tl.store(partial + s * dim, y, mask=mask & (first + STATES < N))
                    y = (y + skip * x) * gate
                    final = mask if partial is None else mask & (first + STATES >= N)
                    if CROSS and part != REVERSE:
                        tl.store(out1 + step * dim, y.to(out1.dtype.element_ty), mask=final)
                    else:
                        tl.store(out0 + step * dim, y.to(out0.dtype.element_ty), mask=final)

        for i in tl.static_range(STATES):
            live = mask if EVEN else mask & (first + i < N)
            tl.store(last + sample_states + (first + i), h[i], mask=live)
