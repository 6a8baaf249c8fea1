"""The first and the last stage of the backward scan, which go over (steps, channels) of a chunk.

The first goes from the inputs to the scratch, the last from the scratch to the gradients of the
inputs. `scan_backward` has the equations.

Pointers to inputs and results point to the sample and the channels of the program; their shape is
[1, LANES]. Row i of the scratch is step i of the chunk, in the order of the recurrence.
"""

import triton
import triton.language as tl

from cmimtl_kernels.triton.math import silu, silu_and_derivative, softplus_and_derivative
from cmimtl_kernels.triton.quads import store_quads
from cmimtl_kernels.triton.streams import (
    add_gradient,
    load,
    load_pair,
    move,
    product,
    store,
    token,
)

# A row of the scratch holds one step in float32. The offsets below are in units of LANES. A row has
# three quads (one value for each of a lane's four channels, in the order of its slots), four quads
# of states (one for each slot), and five single values of a channel.
STEP_SIZE = tl.constexpr(0)  # d
SCALED_X = tl.constexpr(4)  # d x
DY = tl.constexpr(8)
STATE = tl.constexpr(12)  # h before the step
Y = tl.constexpr(28)  # sum_n C h
DSTATE_B = tl.constexpr(29)  # sum_n dstate B
DSTEP_SIZE = tl.constexpr(30)  # sum_n A carry h, of the step size's gradient
SLOPE = tl.constexpr(31)  # the derivative of softplus
ROW = tl.constexpr(32)


@triton.jit
def prepare_steps(
    p_x,
    p_delta,
    p_dout,
    p_z,
    b_bias,  # of delta, [1, LANES], or None
    p_scratch,
    first_pair,  # the chunk's first pair, in the order of the recurrence
    pairs,  # how many pairs the chunk has
    valid,  # how many pairs the sample has
    m_channel,  # [LANES]: whether the channel exists
    o_lane,
    s_x,
    s_delta_step,
    s_dout,
    s_z,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Stage 1: write d, d x, dy and the derivative of softplus to the scratch."""
    TOKENS: tl.constexpr = len(p_x)  # of a pair
    direction = -ROWS if REVERSE else ROWS  # from one tile of steps to the next
    o_row = tl.arange(0, ROWS)[:, None]
    o_pair = first_pair + o_row
    o_t = (valid - 1 - o_pair if REVERSE else o_pair).to(tl.int64)
    p_x = move(p_x, o_t, s_x)
    p_delta += o_t * TOKENS * s_delta_step
    p_dout = move(p_dout, o_t, s_dout)
    p_z = move(p_z, o_t, s_z)
    p_rows = p_scratch + o_row * (TOKENS * ROW * LANES)
    for begin in range(0, pairs, ROWS):
        m_pair = o_row < pairs - begin
        m = m_pair & m_channel[None, :]
        b_pair = load_pair(p_x, m)
        if len(p_z) > 0:
            b_gate = silu(product(load_pair(p_z, m)))
        for i in tl.static_range(TOKENS):
            b_x = token(b_pair, SUM=i == 1)
            b_dy = load(p_dout[i], m)
            if len(p_z) > 0:
                b_dy *= b_gate
            b_step_size = load(p_delta + i * s_delta_step, m)
            if b_bias is not None:
                b_step_size += b_bias
            p_row = p_rows + (TOKENS - 1 - i if REVERSE else i) * (ROW * LANES)
            if SOFTPLUS:
                b_step_size, b_slope = softplus_and_derivative(b_step_size)
                tl.store(p_row + o_lane[None, :] + SLOPE * LANES, b_slope)
            store_quads(p_row + STEP_SIZE * LANES, b_step_size, m_pair)
            store_quads(p_row + SCALED_X * LANES, b_step_size * b_x, m_pair)
            store_quads(p_row + DY * LANES, b_dy, m_pair)
        p_x = move(p_x, direction, s_x)
        p_delta += direction * TOKENS * s_delta_step
        p_dout = move(p_dout, direction, s_dout)
        p_z = move(p_z, direction, s_z)
        p_rows += ROWS * TOKENS * ROW * LANES


@triton.jit
def finish_steps(
    p_x,
    p_dout,
    p_z,
    p_dx,
    p_ddelta,
    p_dz,
    b_D,  # [1, LANES], or None
    b_dD,  # [ROWS, LANES]: sums so far
    b_dbias,
    p_scratch,
    first_pair,  # this and the following are as in prepare_steps
    pairs,
    valid,
    m_channel,
    o_lane,
    dim,
    s_x,
    s_dout,
    s_z,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Stage 4: write the gradients of the inputs. -> (b_dD, b_dbias)."""
    TOKENS: tl.constexpr = len(p_x)  # of a pair
    direction = -ROWS if REVERSE else ROWS  # from one tile of steps to the next
    o_row = tl.arange(0, ROWS)[:, None]
    o_pair = first_pair + o_row
    o_t = (valid - 1 - o_pair if REVERSE else o_pair).to(tl.int64)
    p_x = move(p_x, o_t, s_x)
    p_dout = move(p_dout, o_t, s_dout)
    o_result = o_t * dim
    p_z = move(p_z, o_t, s_z)
    p_rows = p_scratch + o_row * (TOKENS * ROW * LANES)
    for begin in range(0, pairs, ROWS):
        m = (o_row < pairs - begin) & m_channel[None, :]
        b_pair = load_pair(p_x, m)
        b_z = load_pair(p_z, m)
        if len(p_z) > 0:
            _, b_gate_slope = silu_and_derivative(product(b_z))
        b_dpair = (tl.zeros([ROWS, LANES], dtype=tl.float32),) * TOKENS
        b_dgate = tl.zeros([ROWS, LANES], dtype=tl.float32)
        for i in tl.static_range(TOKENS):
            b_x = token(b_pair, SUM=i == 1)
            b_dout = load(p_dout[i], m)
            # Lanes that are masked may hold anything here. Sums and stores leave them out.
            p_row = p_rows + (TOKENS - 1 - i if REVERSE else i) * (ROW * LANES)
            p_single = p_row + o_lane[None, :]
            p_quad = p_row + (o_lane // 4 * 16 + o_lane % 4)[None, :]
            b_step_size = tl.load(p_quad + STEP_SIZE * LANES)
            b_dy = tl.load(p_quad + DY * LANES)
            b_y = tl.load(p_single + Y * LANES)
            if b_D is not None:
                b_y += b_D * b_x
            b_dstate_B = tl.load(p_single + DSTATE_B * LANES)
            b_ddelta = tl.load(p_single + DSTEP_SIZE * LANES) + b_dstate_B * b_x
            if SOFTPLUS:
                b_ddelta *= tl.load(p_single + SLOPE * LANES)
            store(p_ddelta + o_result * TOKENS + i * dim, b_ddelta, m)
            b_dbias += tl.where(m, b_ddelta, 0.0)
            b_dD += b_dy * b_x
            b_dgate += b_dout * b_y
            b_dx = b_dstate_B * b_step_size
            if b_D is not None:
                b_dx += b_D * b_dy
            b_dpair = add_gradient(b_dpair, b_pair, b_dx, SUM=i == 1)
        for i in tl.static_range(TOKENS):
            store(p_dx[i] + o_result, b_dpair[i], m)
        if len(p_z) > 0:
            b_dgate *= b_gate_slope
            if TOKENS == 2:
                store(p_dz[0] + o_result, b_dgate * b_z[1], m)
                store(p_dz[1] + o_result, b_dgate * b_z[0], m)
            else:
                store(p_dz[0] + o_result, b_dgate, m)
        p_x = move(p_x, direction, s_x)
        p_dout = move(p_dout, direction, s_dout)
        o_result += direction * dim
        p_z = move(p_z, direction, s_z)
        p_rows += ROWS * TOKENS * ROW * LANES
    return b_dD, b_dbias
