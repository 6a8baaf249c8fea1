"""Functions of one element, for every Triton kernel; all arithmetic is float32."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def reciprocal(x):
    """1 / x for x >= 1, infinity included. It takes two instructions; a division takes seven."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), which is 0 where e^-x overflows."""
    return reciprocal(1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def silu_and_derivative(x):
    """-> (x sigmoid(x), its derivative)."""
    s = sigmoid(x)
    return x * s, s * (1.0 + x * (1.0 - s))


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], relative error below 3e-7.

    log1p(e) / e is computed as a polynomial of degree 8 (least squares at Chebyshev nodes). A
    device's fast logarithm is exact to an absolute error near 1, so it would lose small steps.
    """
    p = 5.1058256067e-3 * e - 2.8991956264e-2
    p = p * e + 7.7380739152e-2
    p = p * e - 1.3590599597e-1
    p = p * e + 1.9071309268e-1
    p = p * e - 2.4833945930e-1
    p = p * e + 3.3317935467e-1
    p = p * e - 4.9999436736e-1
    p = p * e + 9.9999994040e-1
    return p * e


@triton.jit
def softplus(x):
    """log(1 + e^x) at any x, as max(x, 0) + log1p(e^-|x|)."""
    return tl.maximum(x, 0.0) + _log1p(tl.exp2(tl.abs(x) * -LOG2E))


@triton.jit
def softplus_and_derivative(x):
    """-> (softplus(x), sigmoid(x)), from one exponential."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    slope = reciprocal(1.0 + e) * tl.where(x < 0.0, e, 1.0)
    return tl.maximum(x, 0.0) + _log1p(e), slope


@triton.jit
def step_size(delta, bias, SOFTPLUS: tl.constexpr):
    """The step size d = softplus(delta + bias), both optional; bias may be None."""
    if bias is not None:
        delta = delta + bias
    if SOFTPLUS:
        delta = softplus(delta)
    return delta


@triton.jit
def next_state(h, A, step_size, scaled_x, B):
    """exp(d A) h + d x B, of one state. A comes times log2(e), and d x as `scaled_x`."""
    return tl.exp2(step_size * A) * h + scaled_x * B


@triton.jit
def valid_steps(lengths, i_sample, length):
    """The number of valid steps of a sample, clamped to [0, length]; lengths may be None."""
    valid = length
    if lengths is not None:
        valid = tl.minimum(tl.maximum(tl.load(lengths + i_sample), 0), length).to(tl.int32)
    return valid
