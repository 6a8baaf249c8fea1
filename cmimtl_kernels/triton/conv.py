"""The depthwise causal convolution. A program computes a tile of (steps, channels) of one sample.

`conv_backward` writes the gradient before the activation, and the sums of which the gradients of
weight and bias are made. The gradient of the input is then the same convolution, mirrored in time,
of the gradient before the activation.
"""

import triton
import triton.language as tl

from cmimtl_kernels.triton.math import silu, silu_and_derivative, valid_steps


@triton.jit
def _convolve(x, weight, bias, t, d, valid, dim, x_step, WIDTH: tl.constexpr,
              REVERSE: tl.constexpr):  # fmt: skip
    """bias + sum_k weight[k] x[t + shift_k] at steps t (rows) and channels d (columns)."""
    mask = d < dim
    total = (t * 0 + d * 0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=mask, other=0.0)
    for k in tl.static_range(WIDTH):
        source = t + (WIDTH - 1 - k if REVERSE else k - (WIDTH - 1))
        live = (source >= 0) & (source < valid) & mask
        x_k = tl.load(x + source.to(tl.int64) * x_step, mask=live, other=0.0).to(tl.float32)
        total += tl.load(weight + d * WIDTH + k, mask=mask, other=0.0) * x_k
    return total


@triton.jit
def conv_forward(
    x,  # (batch, length, dim)
    weight,  # (dim, WIDTH) float32
    bias,  # (dim,) float32 or None
    lengths,  # (batch,) int64 or None
    out,  # (batch, length, dim), contiguous; 0 past `lengths`
    length,
    dim,
    x_batch,  # strides in elements
    x_step,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    t = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = valid_steps(lengths, sample, length)
    x += sample * x_batch + d
    value = _convolve(x, weight, bias, t, d, valid, dim, x_step, WIDTH, REVERSE)
    if SILU:
        value = silu(value)
    value = tl.where(t < valid, value, 0.0)
    at = (sample * length + t) * dim + d
    tl.store(out + at, value.to(out.dtype.element_ty), mask=(t < length) & (d < dim))


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
    dout_batch,
    dout_step,
    x_batch,
    x_step,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d = channel[None, :]
    t = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = valid_steps(lengths, sample, length)
    x += sample * x_batch + d
    live = (t < valid) & (d < dim)
    at = dout + sample * dout_batch + t.to(tl.int64) * dout_step + d
    gradient = tl.load(at, mask=live, other=0.0).to(tl.float32)
    if SILU:
        value = _convolve(x, weight, bias, t, d, valid, dim, x_step, WIDTH, REVERSE)
        _, slope = silu_and_derivative(value)
        gradient = tl.where(live, gradient * slope, 0.0)
    at = (sample * length + t) * dim + d
    tl.store(dvalue + at, gradient, mask=(t < length) & (d < dim))
    row = (sample * tl.num_programs(2) + tl.program_id(2)) * dim + channel
    for k in tl.static_range(WIDTH):
        source = t + (WIDTH - 1 - k if REVERSE else k - (WIDTH - 1))
        inside = (source >= 0) & (source < valid) & (d < dim)
        x_k = tl.load(x + source.to(tl.int64) * x_step, mask=inside, other=0.0).to(tl.float32)
        tl.store(dweight + row * WIDTH + k, tl.sum(gradient * x_k, axis=0), mask=channel < dim)
    if dbias is not None:
        tl.store(dbias + row, tl.sum(gradient, axis=0), mask=channel < dim)
