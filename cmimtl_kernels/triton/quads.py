"""The tile of the backward scan: a lane has 4 channels x 4 states, and four lanes share 4 channels.

Slot s of lane l belongs to channel s ^ (l % 4) of the four, so that `lanes.sum_over_states` needs
no selecting. The states of lane l are state 4 (l % 4) and the three after it.
"""

import triton
import triton.language as tl

from cmimtl_kernels.triton.lanes import load_four, store_four


@triton.jit
def _place(pointer, slot, origin, first, dim_per_group, N: tl.constexpr, lane):
    """Where the four states of a slot are: -> (pointer to the first, mask (LANES, 4))."""
    channel = origin + lane // 4 * 4 + ((lane ^ slot) & 3)
    n = first + lane % 4 * 4
    live = (channel < dim_per_group)[:, None] & (n[:, None] + tl.arange(0, 4)[None, :] < N)
    if N % 16 == 0:
        live = (channel < dim_per_group)[:, None]
    return pointer + channel.to(tl.int64) * N + n, live


@triton.jit
def load_states(pointer, origin, first, dim_per_group, N: tl.constexpr, lane):
    """Load each lane's 16 states, slot by slot, from (dim_per_group, N) at `pointer`."""
    states = ()
    for slot in tl.static_range(4):
        at, live = _place(pointer, slot, origin, first, dim_per_group, N, lane)
        states = states + load_four(at, live)
    return states


@triton.jit
def store_states(pointer, states, origin, first, dim_per_group, N: tl.constexpr, lane):
    """The inverse of `load_states`."""
    for slot in tl.static_range(4):
        at, live = _place(pointer, slot, origin, first, dim_per_group, N, lane)
        store_four(
            at, states[4 * slot], states[4 * slot + 1], states[4 * slot + 2],
            states[4 * slot + 3], live,
        )  # fmt: skip


@triton.jit
def store_quads(row, x, inside):
    """Store each lane's four channels in the order of its slots.

    row: (ROWS, 1); x: (ROWS, LANES).
    """
    ROWS: tl.constexpr = x.shape[0]
    LANES: tl.constexpr = x.shape[1]
    even, odd = tl.split(tl.reshape(x, [ROWS, LANES // 4, 2, 2]))
    q0, q2 = tl.split(even)
    q1, q3 = tl.split(odd)
    # Lanes 2 and 3 have the halves of lanes 0 and 1, which are in registers already.
    lane = row[:, :, None] + tl.arange(0, LANES // 4)[None, :, None] * 16
    four = lane + tl.arange(0, 4)[None, None, :]
    two = lane + tl.arange(0, 2)[None, None, :]
    tl.store(four, tl.reshape(tl.join(tl.join(q0, q2), tl.join(q1, q3)), [ROWS, LANES // 4, 4]))
    tl.store(two + 8, tl.join(q2, q3), mask=inside[:, :, None])
    tl.store(two + 10, tl.join(q0, q1), mask=inside[:, :, None])
    four += 4
    tl.store(four, tl.reshape(tl.join(tl.join(q1, q3), tl.join(q0, q2)), [ROWS, LANES // 4, 4]))
    tl.store(two + 12, tl.join(q3, q2), mask=inside[:, :, None])
    tl.store(two + 14, tl.join(q1, q0), mask=inside[:, :, None])
