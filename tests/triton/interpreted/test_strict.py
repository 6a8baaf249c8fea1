"""Faults that a device would not report, each planted in a kernel: `strict` must catch it."""

import pytest
import torch
import triton
import triton.language as tl

from tests.triton.interpreted.interp_tools import round_to_bfloat16, strict


@triton.jit
def double(x, out, count, LIMIT: tl.constexpr, OTHER: tl.constexpr, STRIDE: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """out = 2 x in blocks STRIDE apart, of lanes below count + LIMIT."""
    i = tl.program_id(0) * STRIDE + tl.arange(0, BLOCK)
    mask = i < count + LIMIT
    if OTHER:
        value = tl.load(x + i, mask=mask, other=0.0)
    else:
        value = tl.load(x + i, mask=mask)
    tl.store(out + i, (value + value).to(out.dtype.element_ty), mask=mask)


@triton.jit
def total(x, out, count, OTHER: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if OTHER:
        value = tl.load(x + i, mask=i < count, other=0.0)
    else:
        value = tl.load(x + i, mask=i < count)
    tl.store(out, tl.sum(value, axis=0))


@triton.jit
def shift(x):
    """x[i + 1] = x[i], each by another program."""
    i = tl.program_id(0)
    tl.store(x + i + 1, tl.load(x + i))


@triton.jit
def collide(x, BLOCK: tl.constexpr):
    """Two lanes store to each element."""
    i = tl.arange(0, BLOCK)
    tl.store(x + i // 2, i.to(tl.float32))


@triton.jit
def cast(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))


def run_double(dtype=torch.float32, limit=0, stride=4):
    x = torch.arange(6, dtype=torch.float32).to(dtype)
    out = torch.empty_like(x)
    with strict():
        double[(2,)](x, out, 6, LIMIT=limit, OTHER=True, STRIDE=stride, BLOCK=4)
    return x, out


def test_a_right_kernel_passes():
    x, out = run_double()
    assert torch.equal(out, 2 * x)


def test_one_element_out_of_bounds():
    with pytest.raises(
        triton.runtime.errors.InterpreterError, match=r"elements 4\.\.6 of x, which"
    ):
        run_double(limit=1)


def test_programs_that_overlap():
    with pytest.raises(triton.runtime.errors.InterpreterError, match="another program writes"):
        run_double(stride=3)


def test_a_program_that_reads_what_another_writes():
    with pytest.raises(triton.runtime.errors.InterpreterError, match="another program"), strict():
        shift[(3,)](torch.zeros(4))


def test_lanes_that_collide():
    with pytest.raises(triton.runtime.errors.InterpreterError, match="two lanes"), strict():
        collide[(1,)](torch.zeros(4), BLOCK=4)


def test_bfloat16_arithmetic():
    with pytest.raises(triton.runtime.errors.InterpreterError, match="convert to float32"):
        run_double(torch.bfloat16)


@pytest.mark.parametrize("other", [True, False])
def test_masked_lanes_are_undefined_without_other(other):
    out = torch.empty(1)
    with strict():
        total[(1,)](torch.ones(3), out, 3, OTHER=other, BLOCK=4)
    assert out.item() == 3 if other else out.isnan()


def test_bfloat16_is_rounded_to_nearest_even():
    x = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-12, -3.1415927, 1e-40, 3e38,
                      float("inf")])  # fmt: skip
    out = torch.empty(8, dtype=torch.bfloat16)
    with strict():
        cast[(1,)](x, out, BLOCK=8)
    assert torch.equal(out, x.bfloat16())
    assert (round_to_bfloat16(x.numpy()) == out.view(torch.int16).numpy().view("uint16")).all()
