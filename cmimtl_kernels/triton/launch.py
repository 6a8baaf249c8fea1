"""Allocation and launch of every op of `registration.SCHEMAS`, under the same names.

Kernels take sequences whose channels are neighbours in memory. A sequence that lies otherwise is
copied first, and results are copied to the strides that the contract promises.
"""

import contextlib
import os
from typing import overload

import torch
import triton
from torch import Tensor

from cmimtl_kernels.registration import laid_out
from cmimtl_kernels.triton import CHECKPOINT_EVERY, plan
from cmimtl_kernels.triton.conv import conv_backward, conv_forward
from cmimtl_kernels.triton.scan_backward import scan_backward
from cmimtl_kernels.triton.scan_backward_inputs import ROW
from cmimtl_kernels.triton.scan_forward import scan_forward
from cmimtl_kernels.triton.scan_segments import segment_carry, segment_summary

# In the kernels where one lane has all states of a channel, it holds so many of them at a time.
STATES = 32
# Where the backward scan goes over (steps, channels), its tiles have so many steps.
BACKWARD_ROWS = 4
# A program that goes from segment to segment with the carry has so many states, and so many warps.
CARRY_BLOCK, CARRY_WARPS = 128, 4
# A program of the convolution computes a tile of so many steps and channels.
CONV_ROWS, CONV_BLOCK, CONV_WARPS = 32, 64, 4
# A multiplication and an addition become one instruction. That is Triton's default, but it warns
# that the default will change.
COMPILER = {"enable_fp_fusion": True}


def selective_scan_fwd(
    u, delta, A, B, C, D, z, delta_bias, initial_state, lengths,
    delta_softplus, reverse, checkpoint_every,
):  # fmt: skip
    (out,), last, checkpoints = _forward(
        (u,), delta, A, B, C, D, (z,), delta_bias, initial_state, lengths,
        delta_softplus, reverse, checkpoint_every,
    )  # fmt: skip
    return out, last, checkpoints


def cross_selective_scan_fwd(
    v, t, delta, A, B, C, D, z_v, z_t, delta_bias, initial_state, lengths,
    delta_softplus, reverse, checkpoint_every,
):  # fmt: skip
    outs, last, checkpoints = _forward(
        (v, t), delta, A, B, C, D, (z_v, z_t), delta_bias, initial_state, lengths,
        delta_softplus, reverse, checkpoint_every,
    )  # fmt: skip
    return *outs, last, checkpoints


def _forward(
    xs, delta, A, B, C, D, zs, bias, initial, lengths, softplus, reverse, every
):  # fmt: skip
    """Run either scan forward. -> (outputs, last_state, checkpoints)."""
    B, C = _grouped(B), _grouped(C)
    batch, length, dim = xs[0].shape
    steps, dstate, ngroups = delta.shape[1], A.shape[1], B.shape[2]
    last = xs[0].new_empty((batch, dim, dstate), dtype=torch.float32)
    shape = (batch, -(-steps // every), dim, dstate) if every else (0,)
    checkpoints = xs[0].new_empty(shape, dtype=torch.float32)
    results = [_sequence_like(x, lengths) for x in xs]
    if batch == 0:
        return [laid_out(x, out) for x, out in zip(xs, results, strict=True)], last, checkpoints
    states = min(4 * triton.cdiv(dstate, 4), STATES)
    partial = delta.new_empty(delta.shape, dtype=torch.float32) if states < dstate else None
    xs_in, zs_in = [_rows(x) for x in xs], [_rows(z) for z in zs]
    delta, A, B, C, bias, initial, lengths = (
        _rows(delta), _dense(A), _rows(B), _rows(C), _dense(bias), _dense(initial), _dense(lengths),
    )  # fmt: skip
    # The split does not depend on whether checkpoints are kept, so the results have the same bits.
    every = every or CHECKPOINT_EVERY
    processors, lanes = processors_of(delta), lanes_of(delta)
    warps = batch * ngroups * triton.cdiv(dim // ngroups, lanes)
    segments, chunks_per_segment = plan.segments(warps, steps, every, processors)
    if segments > 1:
        initial = _carry(
            xs_in, delta, A, B, None, bias, lengths, initial, softplus, reverse, segments,
            chunks_per_segment * every,
        )  # fmt: skip

    def run(channels: int) -> None:
        tiles = triton.cdiv(dim // ngroups, lanes * channels)
        scan_forward[(batch, ngroups * tiles, segments)](
            *_pair(xs_in), delta, A, B, C, _dense(D), *_pair(zs_in), bias, initial, lengths,
            *_pair(results), last, checkpoints if checkpoints.numel() else None, partial,
            length, dim, dim // ngroups, tiles, every, chunks_per_segment,
            *_strides(xs_in), *delta.stride()[:2], *B.stride()[:3], *C.stride()[:3],
            *_strides(zs_in),
            N=dstate, STATES=states, CHANNELS=channels, CROSS=len(xs) == 2, SOFTPLUS=softplus,
            REVERSE=reverse, LANES=lanes, num_warps=1, **COMPILER,
        )  # fmt: skip

    with _device_of(delta):
        channels = plan.channels(warps * segments, processors)
        if _autotuned(delta):
            key = (delta.dtype, len(xs), batch, steps, dim, dstate, ngroups, delta.device)
            channels = plan.fastest(key, (1, 2), lambda c: _seconds(lambda: run(c)))
        run(channels)
    return [laid_out(x, out) for x, out in zip(xs, results, strict=True)], last, checkpoints


def _carry(
    xs, delta, A, M, zs, bias, lengths, first_carry, softplus, reverse, segments,
    steps_per_segment,
):  # fmt: skip
    """The carry into each segment of a scan, (batch, segments, dim, dstate).

    M is B, and the carry is the state. With gates zs, M is C and xs are the gradients of the
    outputs; the carry is then the gradient of the state, and enters each segment from its end.
    """
    batch, length, dim = xs[0].shape
    dstate, ngroups = A.shape[1], M.shape[2]
    lanes = lanes_of(delta)
    gradient = zs is not None
    zs = zs if gradient else [None]
    tiles = triton.cdiv(dim // ngroups, lanes)
    carry = delta.new_empty((batch, segments, dim, dstate), dtype=torch.float32)
    step_sums = delta.new_empty((batch, segments, dim), dtype=torch.float32)
    with _device_of(delta):
        segment_summary[(batch, ngroups * tiles, segments)](
            *_pair(xs), delta, A, M, *_pair(zs), bias, lengths, carry, step_sums,
            length, dim, dim // ngroups, tiles, steps_per_segment,
            *_strides(xs), *delta.stride()[:2], *M.stride()[:3], *_strides(zs),
            N=dstate, STATES=min(4 * triton.cdiv(dstate, 4), STATES), CROSS=len(xs) == 2,
            SOFTPLUS=softplus, REVERSE=reverse, GRADIENT=gradient, LANES=lanes, num_warps=1,
            **COMPILER,
        )  # fmt: skip
        segment_carry[(batch, triton.cdiv(dim * dstate, CARRY_BLOCK))](
            carry, step_sums, A, first_carry, dim, segments,
            N=dstate, GRADIENT=gradient, BLOCK=CARRY_BLOCK, num_warps=CARRY_WARPS, **COMPILER,
        )  # fmt: skip
    return carry


def selective_scan_bwd(
    dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, checkpoints,
    delta_softplus, reverse, checkpoint_every,
):  # fmt: skip
    (du,), shared, (dz,), last = _backward(
        (dout,), dlast_state, (u,), delta, A, B, C, D, (z,), delta_bias, initial_state, lengths,
        checkpoints, delta_softplus, reverse, checkpoint_every,
    )  # fmt: skip
    return du, *shared, dz, *last


def cross_selective_scan_bwd(
    dout_v, dout_t, dlast_state, v, t, delta, A, B, C, D, z_v, z_t, delta_bias, initial_state,
    lengths, checkpoints, delta_softplus, reverse, checkpoint_every,
):  # fmt: skip
    dxs, shared, dzs, last = _backward(
        (dout_v, dout_t), dlast_state, (v, t), delta, A, B, C, D, (z_v, z_t), delta_bias,
        initial_state, lengths, checkpoints, delta_softplus, reverse, checkpoint_every,
    )  # fmt: skip
    return *dxs, *shared, *dzs, *last


def _backward(
    douts, dlast, xs, delta, A, B, C, D, zs, bias, initial, lengths, checkpoints, softplus,
    reverse, every,
):  # fmt: skip
    """Run either scan backward.

    -> (dxs, (ddelta, dA, dB, dC, dD), dzs, (dbias, dinitial))
    """
    maps = B, C
    B, C = _grouped(B), _grouped(C)
    batch, length, dim = xs[0].shape
    steps, dstate, ngroups = delta.shape[1], A.shape[1], B.shape[2]
    lanes = lanes_of(delta)
    tiles = triton.cdiv(dim // ngroups, lanes)
    processors = processors_of(delta)
    segments, chunks_per_segment = plan.segments(batch * ngroups * tiles, steps, every, processors)

    def wide(*shape, fill=False) -> Tensor:
        make = torch.zeros if fill else torch.empty
        return make(shape, dtype=torch.float32, device=delta.device)

    gated = zs[0] is not None
    dxs = [_sequence_like(x, lengths) for x in xs]
    dzs = [_sequence_like(x, lengths) if gated else None for x in xs]
    ddelta = _sequence_like(delta, lengths)
    # The gradient of the state goes from the last segment to the first.
    carry_in = _dense(dlast)
    carry_out = wide(batch, segments, dim, dstate)
    # torch.sum adds up over samples, segments and tiles: its order is fixed.
    dA = wide(batch, segments, dim, dstate)
    dD, dbias = (None if x is None else wide(batch, segments, dim) for x in (D, bias))
    dBC = wide(2, tiles, batch, steps, ngroups, dstate, fill=lengths is not None)
    if batch:
        rows = len(xs) * BACKWARD_ROWS  # the scratch holds whole tiles of steps
        rows *= triton.cdiv(every, rows)
        scratch = wide(batch, ngroups * tiles, segments, rows, ROW.value, lanes)
        xs_in, zs_in, douts = ([_rows(x) for x in group] for group in (xs, zs, douts))
        delta_in, A, B_in, C_in = _rows(delta), _dense(A), _rows(B), _rows(C)
        bias, lengths = _dense(bias), _dense(lengths)
        if segments > 1:
            carry_in = _carry(
                douts, delta_in, A, C_in, zs_in, bias, lengths, carry_in, softplus, reverse,
                segments, chunks_per_segment * every,
            )  # fmt: skip
        with _device_of(delta):
            scan_backward[(batch, ngroups * tiles, segments)](
                *_pair(xs_in), delta_in, A, B_in, C_in, _dense(D), *_pair(zs_in), bias, lengths,
                checkpoints, *_pair(douts), *_pair(dxs), ddelta, *_pair(dzs),
                carry_in, carry_out, dA, dD, dbias, dBC, scratch,
                length, dim, dim // ngroups, tiles, every, chunks_per_segment, rows,
                *_strides(xs_in), *delta_in.stride()[:2], *B_in.stride()[:3], *C_in.stride()[:3],
                *_strides(zs_in), *_strides(douts),
                N=dstate, WHOLE=dim // ngroups % lanes == 0, CROSS=len(xs) == 2, SOFTPLUS=softplus,
                REVERSE=reverse, ROWS=BACKWARD_ROWS, LANES=lanes, num_warps=1, **COMPILER,
            )  # fmt: skip
    nothing = xs[0].new_empty(0)
    nothing_wide = wide(0)
    shared = (
        laid_out(delta, ddelta),
        dA.sum((0, 1)),
        *(g.sum(0).to(x.dtype).view(x.shape) for g, x in zip(dBC, maps, strict=True)),
        nothing_wide if dD is None else dD.sum((0, 1)),
    )
    return (
        [laid_out(x, g) for x, g in zip(xs, dxs, strict=True)],
        shared,
        [laid_out(x, g) if gated else nothing.clone() for x, g in zip(zs, dzs, strict=True)],
        (
            nothing_wide.clone() if dbias is None else dbias.sum((0, 1)),
            nothing_wide.clone() if initial is None else carry_out[:, 0].contiguous(),
        ),
    )


def causal_conv1d_fwd(x, weight, bias, lengths, silu, reverse):
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _convolve(x, weight, bias, lengths, silu, reverse, out)
    return laid_out(x, out)


def causal_conv1d_bwd(dout, x, weight, bias, lengths, silu, reverse):
    batch, length, dim = x.shape
    width = weight.shape[1]
    tiles = triton.cdiv(length, CONV_ROWS)
    float32 = {"dtype": torch.float32, "device": x.device}
    dvalue = torch.empty(x.shape, **float32)
    dweight = torch.empty((batch, tiles, dim, width), **float32)
    dbias = None if bias is None else torch.empty((batch, tiles, dim), **float32)
    if x.numel():
        rows, drows = _rows(x), _rows(dout)
        with _device_of(x):
            conv_backward[(batch, triton.cdiv(dim, CONV_BLOCK), tiles)](
                drows, rows, weight.contiguous(), _dense(bias), _dense(lengths), dvalue, dweight,
                dbias, length, dim, *drows.stride()[:2], *rows.stride()[:2],
                WIDTH=width, SILU=silu, REVERSE=reverse, ROWS=CONV_ROWS, BLOCK=CONV_BLOCK,
                num_warps=CONV_WARPS, **COMPILER,
            )  # fmt: skip
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _convolve(dvalue, weight, None, lengths, False, not reverse, dx, gradient=True)
    nothing = torch.empty(0, **float32)
    return laid_out(x, dx), dweight.sum((0, 1)), nothing if dbias is None else dbias.sum((0, 1))


def _convolve(x, weight, bias, lengths, silu, reverse, out, gradient=False) -> None:
    batch, length, dim = x.shape
    if not x.numel():
        return
    rows = _rows(x)
    grid = (batch, triton.cdiv(dim, CONV_BLOCK), triton.cdiv(length, CONV_ROWS))
    with _device_of(x):
        conv_forward[grid](
            rows, weight.contiguous(), _dense(bias), _dense(lengths), out, length, dim,
            *rows.stride()[:2], WIDTH=weight.shape[1], SILU=silu, REVERSE=reverse,
            GRADIENT=gradient, ROWS=CONV_ROWS, BLOCK=CONV_BLOCK, num_warps=CONV_WARPS, **COMPILER,
        )  # fmt: skip


def processors_of(x: Tensor) -> int:
    """How many multiprocessors the device of x has; 1 in the interpreter, which has none."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def lanes_of(x: Tensor) -> int:
    """How many threads a warp has: 64 on AMD's data-centre GPUs, 32 elsewhere."""
    return torch.cuda.get_device_properties(x.device).warp_size if x.is_cuda else 32


def _autotuned(x: Tensor) -> bool:
    """Whether CMIMTL_TRITON_AUTOTUNE=1 asks for the kernels to be timed first."""
    wanted = x.is_cuda and os.environ.get("CMIMTL_TRITON_AUTOTUNE") == "1"
    return wanted and not torch.cuda.is_current_stream_capturing()


def _seconds(run) -> float:
    """The seconds of one of three launches, after one that compiles."""
    run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(3):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 3000


def _device_of(x: Tensor):
    """A context with the device to launch on; the interpreter, on CPU tensors, needs none."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@overload
def _rows(x: Tensor) -> Tensor: ...


@overload
def _rows(x: Tensor | None) -> Tensor | None: ...


def _rows(x: Tensor | None) -> Tensor | None:
    """x with a stride of 1 in its last dimension, copied where it has another."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _grouped(x: Tensor) -> Tensor:
    """B or C with a dimension of groups: (batch, steps, ngroups, dstate)."""
    return x if x.dim() == 4 else x.unsqueeze(2)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _pair(xs) -> tuple:
    """One or two tensors as two arguments, the second of which may be None."""
    return (*xs, None)[:2]


def _strides(xs) -> tuple[int, ...]:
    """The strides of sample and step of one or two tensors; 0 for a tensor that is not there."""
    return tuple(s for x in _pair(xs) for s in ((0, 0) if x is None else x.stride()[:2]))


def _sequence_like(x: Tensor, lengths: Tensor | None) -> Tensor:
    """A contiguous result of the shape of x; 0 where kernels may leave padded steps unwritten."""
    return (torch.empty if lengths is None else torch.zeros)(
        x.shape, dtype=x.dtype, device=x.device
    )
