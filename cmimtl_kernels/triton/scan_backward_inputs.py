"""The first and the last stage of the backward scan, which go over (steps, channels) of a chunk.

The first goes from the inputs to the scratch, the last from the scratch to the gradients of the
inputs. `scan_backward` has the equations.

Pointers to inputs and results point to the sample and the channels of the program; their shape is
(1, LANES). Row i of the scratch is step i of the chunk, in the order of the recurrence.
"""

import triton
import triton.language as tl

from cmimtl_kernels.triton.math import silu, silu_and_derivative, softplus_and_derivative
from cmimtl_kernels.triton.quads import store_quads

# A row of the scratch holds one step in float32. The offsets below are in units of LANES. A row has
# three quads (one value for each of a lane's four channels, in the order of its slots), four quads
# of states (one for each slot), and five single values of a channel.
SIZE = tl.constexpr(0)  # d
SIZE_X = tl.constexpr(4)  # d x
DY = tl.constexpr(8)
STATE = tl.constexpr(12)  # h before the step
Y = tl.constexpr(28)  # sum_n C h
DH_B = tl.constexpr(29)  # sum_n dh B
DSIZE = tl.constexpr(30)  # sum_n A g h
SLOPE = tl.constexpr(31)  # the derivative of softplus
ROW = tl.constexpr(32)


@triton.jit
def prepare_steps(
    x0,
    x1,
    delta,
    dout0,
    dout1,
    z0,
    z1,
    shift,  # the bias of delta, (1, LANES), or None
    scratch,
    first_pair,  # the chunk's first step of x0, in the order of the recurrence
    pairs,  # how many steps of x0 the chunk has
    valid,  # how many steps of x0 the sample has
    mask,  # (LANES,): whether the channel exists
    lane,
    x0_step,
    x1_step,
    delta_step,
    dout0_step,
    dout1_step,
    z0_step,
    z1_step,
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Stage 1: write d, d x, dy and the derivative of softplus to the scratch."""
    PER: tl.constexpr = 2 if CROSS else 1
    ahead = -ROWS if REVERSE else ROWS  # from one tile of steps to the next
    r = tl.arange(0, ROWS)[:, None]
    q = first_pair + r
    step = (valid - 1 - q if REVERSE else q).to(tl.int64)
    at_x0 = x0 + step * x0_step
    at_delta = delta + step * PER * delta_step
    at_dout0 = dout0 + step * dout0_step
    if CROSS:
        at_x1 = x1 + step * x1_step
        at_dout1 = dout1 + step * dout1_step
    if z0 is not None:
        at_z0 = z0 + step * z0_step
        if CROSS:
            at_z1 = z1 + step * z1_step
    line = scratch + r * (PER * ROW * LANES)
    for begin in range(0, pairs, ROWS):
        inside = r < pairs - begin
        live = inside & mask[None, :]
        stream0 = tl.load(at_x0, mask=live, other=0.0).to(tl.float32)
        if CROSS:
            stream1 = tl.load(at_x1, mask=live, other=0.0).to(tl.float32)
        if z0 is not None:
            gate = tl.load(at_z0, mask=live, other=0.0).to(tl.float32)
            if CROSS:
                gate *= tl.load(at_z1, mask=live, other=0.0).to(tl.float32)
            gate = silu(gate)
        for which in tl.static_range(PER):
            if CROSS and which == 1:
                x = stream0 + stream1
                dy = tl.load(at_dout1, mask=live, other=0.0).to(tl.float32)
            elif CROSS:
                x = stream0 * stream1
                dy = tl.load(at_dout0, mask=live, other=0.0).to(tl.float32)
            else:
                x = stream0
                dy = tl.load(at_dout0, mask=live, other=0.0).to(tl.float32)
            if z0 is not None:
                dy *= gate
            size = tl.load(at_delta + which * delta_step, mask=live, other=0.0).to(tl.float32)
            if shift is not None:
                size += shift
            row = line + (PER - 1 - which if REVERSE else which) * (ROW * LANES)
            if SOFTPLUS:
                size, slope = softplus_and_derivative(size)
                tl.store(row + lane[None, :] + SLOPE * LANES, slope)
            store_quads(row + SIZE * LANES, size, inside)
            store_quads(row + SIZE_X * LANES, size * x, inside)
            store_quads(row + DY * LANES, dy, inside)
        at_x0 += ahead * x0_step
        at_delta += ahead * PER * delta_step
        at_dout0 += ahead * dout0_step
        if CROSS:
            at_x1 += ahead * x1_step
            at_dout1 += ahead * dout1_step
        if z0 is not None:
            at_z0 += ahead * z0_step
            if CROSS:
                at_z1 += ahead * z1_step
        line += ROWS * PER * ROW * LANES


@triton.jit
def finish_steps(
    x0,
    x1,
    dout0,
    dout1,
    z0,
    z1,
    skip,  # D, (1, LANES)
    dx0,
    dx1,
    ddelta,
    dz0,
    dz1,
    out0,
    out1,
    sum_D,  # (ROWS, LANES): sums so far
    sum_bias,
    scratch,
    first_pair,  # this and the following are as in prepare_steps
    pairs,
    valid,
    mask,
    lane,
    dim,
    x0_step,
    x1_step,
    dout0_step,
    dout1_step,
    z0_step,
    z1_step,
    CROSS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Stage 4: write the gradients of the inputs, and the output again. -> (sum_D, sum_bias)."""
    PER: tl.constexpr = 2 if CROSS else 1
    ahead = -ROWS if REVERSE else ROWS  # from one tile of steps to the next
    r = tl.arange(0, ROWS)[:, None]
    q = first_pair + r
    step = (valid - 1 - q if REVERSE else q).to(tl.int64)
    at_x0 = x0 + step * x0_step
    at_dout0 = dout0 + step * dout0_step
    own = step * dim
    if CROSS:
        at_x1 = x1 + step * x1_step
        at_dout1 = dout1 + step * dout1_step
    if z0 is not None:
        at_z0 = z0 + step * z0_step
        if CROSS:
            at_z1 = z1 + step * z1_step
    line = scratch + r * (PER * ROW * LANES)
    for begin in range(0, pairs, ROWS):
        live = (r < pairs - begin) & mask[None, :]
        stream0 = tl.load(at_x0, mask=live, other=0.0).to(tl.float32)
        if CROSS:
            stream1 = tl.load(at_x1, mask=live, other=0.0).to(tl.float32)
        gate = 1.0
        if z0 is not None:
            gate0 = tl.load(at_z0, mask=live, other=0.0).to(tl.float32)
            if CROSS:
                gate1 = tl.load(at_z1, mask=live, other=0.0).to(tl.float32)
                gate, slope_of_gate = silu_and_derivative(gate0 * gate1)
            else:
                gate, slope_of_gate = silu_and_derivative(gate0)
        dstream0 = tl.zeros([ROWS, LANES], dtype=tl.float32)
        dstream1 = tl.zeros([ROWS, LANES], dtype=tl.float32)
        dgate = tl.zeros([ROWS, LANES], dtype=tl.float32)
        for which in tl.static_range(PER):
            if CROSS and which == 1:
                x = stream0 + stream1
                dout = tl.load(at_dout1, mask=live, other=0.0).to(tl.float32)
            elif CROSS:
                x = stream0 * stream1
                dout = tl.load(at_dout0, mask=live, other=0.0).to(tl.float32)
            else:
                x = stream0
                dout = tl.load(at_dout0, mask=live, other=0.0).to(tl.float32)
            # Lanes that are not live may hold anything here. Sums and stores leave them out.
            row = line + (PER - 1 - which if REVERSE else which) * (ROW * LANES)
            single = row + lane[None, :]
            quad = row + (lane // 4 * 16 + lane % 4)[None, :]
            size = tl.load(quad + SIZE * LANES)
            dy = tl.load(quad + DY * LANES)
            y = tl.load(single + Y * LANES) + skip * x
            dh_B = tl.load(single + DH_B * LANES)
            dsize = tl.load(single + DSIZE * LANES) + dh_B * x
            if SOFTPLUS:
                dsize *= tl.load(single + SLOPE * LANES)
            tl.store(ddelta + own * PER + which * dim, dsize.to(ddelta.dtype.element_ty), mask=live)
            sum_bias += tl.where(live, dsize, 0.0)
            sum_D += dy * x
            dgate += dout * y
            dx = dh_B * size + skip * dy
            if CROSS and which == 1:
                dstream0 += dx
                dstream1 += dx
            elif CROSS:
                dstream0 += stream1 * dx
                dstream1 += stream0 * dx
            else:
                dstream0 = dx
            if out0 is not None:
                if CROSS and which == 1:
                    tl.store(out1 + own, (y * gate).to(out1.dtype.element_ty), mask=live)
                else:
                    tl.store(out0 + own, (y * gate).to(out0.dtype.element_ty), mask=live)
        tl.store(dx0 + own, dstream0.to(dx0.dtype.element_ty), mask=live)
        if CROSS:
            tl.store(dx1 + own, dstream1.to(dx1.dtype.element_ty), mask=live)
        if z0 is not None:
            dgate *= slope_of_gate
            if CROSS:
                tl.store(dz0 + own, (dgate * gate1).to(dz0.dtype.element_ty), mask=live)
                tl.store(dz1 + own, (dgate * gate0).to(dz1.dtype.element_ty), mask=live)
            else:
                tl.store(dz0 + own, dgate.to(dz0.dtype.element_ty), mask=live)
        at_x0 += ahead * x0_step
        at_dout0 += ahead * dout0_step
        own += ahead * dim
        if CROSS:
            at_x1 += ahead * x1_step
            at_dout1 += ahead * dout1_step
        if z0 is not None:
            at_z0 += ahead * z0_step
            if CROSS:
                at_z1 += ahead * z1_step
        line += ROWS * PER * ROW * LANES
    return sum_D, sum_bias
