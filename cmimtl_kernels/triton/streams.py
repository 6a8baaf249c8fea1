"""The two streams of a scan, pair by pair: where they are, what their token is, what it gives back.

A pair is a step of v and the step of t at the same place. It makes two steps of the recurrence, for
two tokens: the product v t comes before the sum v + t, and after it where time runs backwards. The
selective scan has one stream, u, and its steps are its tokens.

So what a kernel has of the streams is a tuple of one or two: pointers p_x, values b_x, strides s_x.
Of gates it is a tuple of none, one or two.
"""

# ruff: noqa: RUF005 - Triton compiles `a + (b,)`, but no `(*a, b)`.

import triton
import triton.language as tl


@triton.jit
def load(p, m):
    """Load values as float32, and 0 where the mask m is off."""
    return tl.load(p, mask=m, other=0.0).to(tl.float32)


@triton.jit
def store(p, b, m):
    """Store values in the type of the tensor at p, where the mask m is on."""
    tl.store(p, b.to(p.dtype.element_ty), mask=m)


@triton.jit
def load_pair(p, m):
    """Load a value of each stream."""
    b = ()
    for i in tl.static_range(len(p)):
        b = b + (load(p[i], m),)
    return b


@triton.jit
def pointers(x0, x1, o_x0, o_x1):
    """Pointers into the streams x0 and x1: -> a tuple without those that are None."""
    p = ()
    if x0 is not None:
        p = p + (x0 + o_x0,)
    if x1 is not None:
        p = p + (x1 + o_x1,)
    return p


@triton.jit
def move(p, steps, s_x):
    """Move each pointer by a number of steps, of the strides s_x."""
    moved = ()
    for i in tl.static_range(len(p)):
        moved = moved + (p[i] + steps * s_x[i],)
    return moved


@triton.jit
def product(b):
    """b[0], times b[1] where there are two: the product token, or what the gate is the silu of."""
    b_product = b[0]
    if len(b) == 2:
        b_product = b_product * b[1]
    return b_product


@triton.jit
def token(b_x, SUM: tl.constexpr):
    """The token of a pair: the sum, or else the product, or the only stream itself."""
    if SUM:
        b_token = b_x[0] + b_x[1]
    else:
        b_token = product(b_x)
    return b_token


@triton.jit
def add_gradient(b_dx, b_x, b_dtoken, SUM: tl.constexpr):
    """Add to the streams' gradients b_dx what the gradient of their token gives each of them."""
    if SUM:
        b_sum = (b_dx[0] + b_dtoken, b_dx[1] + b_dtoken)
    elif len(b_x) == 2:
        b_sum = (b_dx[0] + b_x[1] * b_dtoken, b_dx[1] + b_x[0] * b_dtoken)
    else:
        b_sum = (b_dtoken,)
    return b_sum
