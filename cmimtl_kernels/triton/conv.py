"""The depthwise causal convolution. A program computes a tile of (steps, channels) of one sample.

`conv_backward` writes the gradient before the activation, and the sums of which the gradients of
weight and bias are made. The gradient of the input is then the same convolution, mirrored in time,
of the gradient before the activation.
"""

import triton
import triton.language as tl

from cmimtl_kernels.triton.math import silu, silu_and_derivative, valid_steps
from cmimtl_kernels.triton.streams import load, store


@triton.jit
def _load_shifted(x, o_t, o_dim, valid, dim, s_x_step, K: tl.constexpr, WIDTH: tl.constexpr,
                  REVERSE: tl.constexpr):  # fmt: skip
    """What the weight of column K is multiplied by: x some steps before, or with REVERSE after.

    -> (x, 0 where there is none; where there is one). A padded step reads none: its gradient is 0,
    and 0 times infinity would be NaN.
    """
    o_source = o_t + (WIDTH - 1 - K if REVERSE else K - (WIDTH - 1))
    m = (o_source >= 0) & (o_source < valid) & (o_t < valid) & (o_dim < dim)
    return load(x + o_source.to(tl.int64) * s_x_step, m), m


@triton.jit
def _convolve(x, weight, bias, o_t, o_dim, valid, dim, s_x_step, WIDTH: tl.constexpr,
              REVERSE: tl.constexpr, GRADIENT: tl.constexpr = False):  # fmt: skip
    """bias + sum_k weight[k] x[t + shift_k] at steps o_t (rows) and channels o_dim (columns).

    Where there is no x it is 0, which an infinite weight makes NaN. With GRADIENT, x is a gradient,
    and where there is none nothing is added.
    """
    m_dim = o_dim < dim
    b_sum = (o_t * 0 + o_dim * 0).to(tl.float32)
    if bias is not None:
        b_sum += tl.load(bias + o_dim, mask=m_dim, other=0.0)
    for k in tl.static_range(WIDTH):
        b_x, m = _load_shifted(x, o_t, o_dim, valid, dim, s_x_step, k, WIDTH, REVERSE)
        b_term = tl.load(weight + o_dim * WIDTH + k, mask=m_dim, other=0.0) * b_x
        b_sum += tl.where(m, b_term, 0.0) if GRADIENT else b_term
    return b_sum


@triton.jit
def conv_forward(
    x,  # (batch, length, dim)
    weight,  # (dim, WIDTH) float32
    bias,  # (dim,) float32 or None
    lengths,  # (batch,) int64 or None
    out,  # (batch, length, dim), contiguous; 0 past `lengths`
    length,
    dim,
    s_x_batch,  # strides in elements
    s_x_step,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    GRADIENT: tl.constexpr,  # whether x and out are gradients: see _convolve
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_sample = tl.program_id(0).to(tl.int64)
    o_dim = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    o_t = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = valid_steps(lengths, i_sample, length)
    x += i_sample * s_x_batch + o_dim
    b_out = _convolve(x, weight, bias, o_t, o_dim, valid, dim, s_x_step, WIDTH, REVERSE, GRADIENT)
    if SILU:
        b_out = silu(b_out)
    b_out = tl.where(o_t < valid, b_out, 0.0)
    o_out = (i_sample * length + o_t) * dim + o_dim
    store(out + o_out, b_out, (o_t < length) & (o_dim < dim))


@triton.jit
def conv_backward(
    dout,  # (batch, length, dim)
    x,
    weight,
    bias,
    lengths,
    dvalue,  # (batch, length, dim) float32: the gradient before the activation; 0 past `lengths`
    dweight,  # (batch, tiles in time, dim, WIDTH) float32
    dbias,  # (batch, tiles in time, dim) float32, or None
    length,
    dim,
    s_dout_batch,
    s_dout_step,
    s_x_batch,
    s_x_step,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_sample = tl.program_id(0).to(tl.int64)
    o_channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    o_dim = o_channel[None, :]
    o_t = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = valid_steps(lengths, i_sample, length)
    x += i_sample * s_x_batch + o_dim
    m_valid = (o_t < valid) & (o_dim < dim)
    p_dout = dout + i_sample * s_dout_batch + o_t.to(tl.int64) * s_dout_step + o_dim
    b_dvalue = load(p_dout, m_valid)
    if SILU:
        b_value = _convolve(x, weight, bias, o_t, o_dim, valid, dim, s_x_step, WIDTH, REVERSE)
        _, b_slope = silu_and_derivative(b_value)
        b_dvalue = tl.where(m_valid, b_dvalue * b_slope, 0.0)
    o_dvalue = (i_sample * length + o_t) * dim + o_dim
    tl.store(dvalue + o_dvalue, b_dvalue, mask=(o_t < length) & (o_dim < dim))
    o_sums = (i_sample * tl.num_programs(2) + tl.program_id(2)) * dim + o_channel
    m_channel = o_channel < dim
    for k in tl.static_range(WIDTH):
        b_x, _ = _load_shifted(x, o_t, o_dim, valid, dim, s_x_step, k, WIDTH, REVERSE)
        tl.store(dweight + o_sums * WIDTH + k, tl.sum(b_dvalue * b_x, axis=0), mask=m_channel)
    if dbias is not None:
        tl.store(dbias + o_sums, tl.sum(b_dvalue, axis=0), mask=m_channel)
