"""Who works on what: csrc/cuda/plan.h and conv.h, pure functions of the sizes and layouts."""

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuda_on_cpu import build

THREADS, WARP = 128, 32  # of a block, as in plan.h
MOST_STATES, MOST_BLOCKS = 256, 2**31 - 1
MULTIPROCESSORS = 132  # of an H100
LEAST_SEGMENT = 128  # steps that a segment of a split scan has at least, but for the last


class Sizes(ctypes.Structure):
    """ScanSizes of csrc/selective_scan.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in "batch length steps dim dstate ngroups checkpoint_every nchunks".split()
    ]


class Plan(ctypes.Structure):
    """ScanPlan of csrc/cuda/plan.h."""

    _fields_ = [
        ("states", ctypes.c_int),
        ("channel_lanes", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("channels_per_block", ctypes.c_int64),
        ("tiles_per_group", ctypes.c_int64),
        ("segments", ctypes.c_int64),
        ("segment_steps", ctypes.c_int64),
    ]

    def fields(self) -> tuple:
        return tuple(getattr(self, name) for name, _ in self._fields_)


class Strided(ctypes.Structure):
    """In and Out of csrc/selective_scan.h, for a tensor over (batch, step, channel)."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "step", "dim")),
    ]


class Map(ctypes.Structure):
    """InMap of csrc/selective_scan.h, for B and C."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "step", "group", "state")),
    ]


FLOAT32, BFLOAT16 = 0, 2  # DType of csrc/selective_scan.h


class Forward(ctypes.Structure):
    """ScanForward of csrc/selective_scan.h."""

    _fields_ = [
        ("size", Sizes),
        ("dtype", ctypes.c_int),
        ("streams", ctypes.c_int),
        ("delta_softplus", ctypes.c_bool),
        ("reverse", ctypes.c_bool),
        ("u", Strided * 2),
        ("delta", Strided),
        ("A", ctypes.c_void_p),
        ("B", Map),
        ("C", Map),
        ("D", ctypes.c_void_p),
        ("z", Strided * 2),
        *((name, ctypes.c_void_p) for name in ("delta_bias", "initial_state", "lengths")),
        ("out", Strided * 2),
        *((name, ctypes.c_void_p) for name in ("last_state", "checkpoints")),
    ]


@pytest.fixture(scope="session")
def functions() -> ctypes.CDLL:
    """Those of the headers alone."""
    library = ctypes.CDLL(str(build.library(build.HERE / "plan_binding.cpp")))
    for name in ("plan_forward", "plan_forward_in_pairs", "plan_backward"):
        getattr(library, name).argtypes = [Sizes]
        getattr(library, name).restype = Plan
    library.has_pairs.argtypes = [Strided, ctypes.c_int64]
    library.has_pairs.restype = ctypes.c_bool
    for name in ("sums_weights", "sums_maps"):
        getattr(library, name).argtypes = [Plan, Sizes]
        getattr(library, name).restype = ctypes.c_bool
    library.sums_of_samples.argtypes = [Plan, Sizes]
    library.sums_of_samples.restype = ctypes.c_int64
    library.blocks.argtypes = [Plan, Sizes]
    library.blocks.restype = ctypes.c_int64
    library.split_elements.argtypes = [Sizes, Plan]
    library.split_elements.restype = ctypes.c_int64
    for name in ("channels_in_pairs", "states_in_pairs"):
        getattr(library, name).argtypes = [ctypes.POINTER(Forward)]
        getattr(library, name).restype = ctypes.c_bool
    library.bytes_of_scan_forward.restype = ctypes.c_int64
    library.conv_blocks.argtypes = [*[ctypes.c_int64] * 3, ctypes.c_bool]
    library.conv_blocks.restype = ctypes.c_int64
    return library


@pytest.fixture(scope="session")
def workspaces(library) -> ctypes.CDLL:
    """Those of the compiled kernels, for a machine of the usual size."""
    for name in ("forward_elements", "backward_elements"):
        getattr(library, name).argtypes = [Sizes]
        getattr(library, name).restype = ctypes.c_int64
    library.conv_backward_elements.argtypes = [ctypes.c_int64] * 4
    library.conv_backward_elements.restype = ctypes.c_int64
    library.simt_set_warps_to_fill(0)
    return library


def sizes(batch, steps, dim, dstate=16, ngroups=1, every=32) -> Sizes:
    chunks = -(-steps // every) if every else 0
    return Sizes(batch, steps, steps, dim, dstate, ngroups, every, chunks)


def warps(s: Sizes, plan: Plan) -> int:
    return blocks(s, plan) * THREADS // WARP


def blocks(s: Sizes, plan: Plan) -> int:
    return s.batch * s.ngroups * plan.tiles_per_group * plan.segments


any_sizes = st.builds(
    lambda batch, steps, per_group, dstate, ngroups, every: sizes(
        batch, steps, per_group * ngroups, dstate, ngroups, every
    ),
    batch=st.integers(1, 512),
    steps=st.integers(1, 100_000),
    per_group=st.integers(1, 4096),
    dstate=st.integers(1, MOST_STATES),
    ngroups=st.integers(1, 16),
    every=st.sampled_from([0, 8, 16, 32, 64]),
)
both = pytest.mark.parametrize("which", ["plan_forward", "plan_forward_in_pairs", "plan_backward"])
many = settings(max_examples=300, deadline=None, derandomize=True)


@both
@given(s=any_sizes)
@many
def test_every_state_of_every_channel_has_one_thread(functions, which, s):
    plan = getattr(functions, which)(s)
    assert plan.channel_lanes in (1, 2, 4, 8, 16, 32)
    assert plan.states * plan.channel_lanes >= s.dstate
    # and no lane more, but where the backward kernels of one and two lanes take fours of states
    fours = which == "plan_backward" and s.dstate > 8 and s.dstate % 4 != 0
    assert (
        plan.channel_lanes == (4 if fours else 1)
        or plan.states * plan.channel_lanes // 2 < s.dstate
    )
    assert plan.channels == 1 or (plan.channels, plan.states, plan.channel_lanes) == (2, 16, 1)
    assert plan.channels_per_block * plan.channel_lanes == THREADS * plan.channels
    per_group = s.dim // s.ngroups
    assert 0 <= plan.tiles_per_group * plan.channels_per_block - per_group < plan.channels_per_block


@both
@given(s=any_sizes)
@many
def test_every_step_is_in_one_segment(functions, which, s):
    plan = getattr(functions, which)(s)
    assert (plan.segments - 1) * plan.segment_steps < s.steps
    assert plan.segments * plan.segment_steps >= s.steps
    if plan.segments > 1:
        assert plan.segment_steps >= LEAST_SEGMENT
    if s.checkpoint_every:  # a checkpoint belongs to one segment
        assert plan.segment_steps % s.checkpoint_every == 0
    assert plan.segment_steps % 2 == 0  # a segment holds whole pairs of a cross scan
    if which != "plan_backward" and (plan.states, plan.channel_lanes) == (16, 1):
        assert plan.segments == 1  # no first pass of a split is compiled for it


@both
@given(s=any_sizes)
@many
def test_workspace_of_a_split_is_small_beside_the_inputs(functions, which, s):
    plan = getattr(functions, which)(s)
    elements = functions.split_elements(s, plan)
    assert (elements == 0) == (plan.segments == 1)
    # u and delta have batch * steps * dim elements each.
    assert elements <= 2 * s.batch * s.steps * s.dim * (s.dstate + 1) / LEAST_SEGMENT


@both
@given(s=any_sizes)
@many
def test_the_same_sizes_give_the_same_plan(functions, which, s):
    plan = getattr(functions, which)
    assert plan(s).fields() == plan(s).fields()


@both
@pytest.mark.parametrize(
    "batch, steps, dim",
    [(1, 16384, 64), (1, 65536, 16), (2, 32768, 128), (1, 16384, 1536), (4, 8192, 768)],
)
def test_few_channels_are_split_in_time_until_the_chip_is_full(functions, which, batch, steps, dim):
    s = sizes(batch, steps, dim)
    plan = getattr(functions, which)(s)
    busy = warps(s, plan)
    shortest = plan.segment_steps < 2 * LEAST_SEGMENT
    assert busy >= 4 * MULTIPROCESSORS or shortest, (busy, plan.fields())
    assert plan.segments > 1


@both
@pytest.mark.parametrize("batch, steps, dim", [(64, 4096, 2048), (16, 64, 1536), (1, 200, 16)])
def test_what_fills_the_chip_or_is_short_is_not_split(functions, which, batch, steps, dim):
    assert getattr(functions, which)(sizes(batch, steps, dim)).segments == 1


def test_a_few_channels_are_spread_over_more_threads(functions):
    assert functions.plan_forward(sizes(1, 64, 1536)).states == 8
    assert functions.plan_forward(sizes(64, 64, 2048)).states == 16


@given(s=any_sizes)
@many
def test_a_thread_has_two_channels_only_where_that_leaves_no_warp_idle(functions, s):
    plan = functions.plan_forward_in_pairs(s)
    if plan.channels == 2:
        assert 8 < s.dstate <= 16
        assert warps(s, plan) >= 8 * MULTIPROCESSORS
    else:
        assert plan.fields() == functions.plan_forward(s).fields()
    # The workspace is allotted before the layouts are looked at.
    one = functions.plan_forward(s)
    assert (plan.segments, plan.segment_steps) == (one.segments, one.segment_steps)
    # And so is the number of blocks refused, where it is too large.
    assert functions.blocks(plan, s) <= functions.blocks(one, s)


def test_many_channels_are_two_to_a_thread(functions):
    assert functions.plan_forward_in_pairs(sizes(64, 64, 2048)).channels == 2
    assert functions.plan_forward_in_pairs(sizes(16, 64, 1536)).channels == 1
    assert functions.plan_forward_in_pairs(sizes(64, 64, 2048, dstate=32)).channels == 1


@pytest.mark.parametrize(
    "fields, pairs",
    [
        ((256, 64, 8, 1), True),
        ((None, 3, 3, 3), True),  # absent
        ((260, 64, 8, 1), False),  # misaligned
        ((256, 64, 9, 1), False),
        ((256, 65, 8, 1), False),
        ((256, 0, 8, 1), True),  # one sample for all
        ((256, 64, 8, 2), False),
        ((256, 64, 1, 8), False),  # (batch, dim, length)
    ],
)
def test_pairs_of_channels_are_aligned_words(functions, fields, pairs):
    assert functions.has_pairs(Strided(*fields), 4) == pairs


def test_pairs_of_a_half_type_need_half_the_alignment(functions):
    assert functions.has_pairs(Strided(260, 64, 8, 1), 2)
    assert not functions.has_pairs(Strided(258, 64, 8, 1), 2)


@both
def test_blocks_of_the_largest_sizes_fit_a_grid(functions, which):
    s = sizes(2048, 4096, 65536)
    plan = getattr(functions, which)(s)
    assert functions.blocks(plan, s) == blocks(s, plan) <= MOST_BLOCKS


# What is read and written in pairs


def forward(streams: int, element_bytes: int = 4) -> Forward:
    """A scan of which all is in pairs: dense tensors of one sample's 8 steps, 6 channels in 3
    groups, 4 states."""
    dtype = FLOAT32 if element_bytes == 4 else BFLOAT16
    p = Forward(size=sizes(2, 8, 6, dstate=4, ngroups=3), dtype=dtype, streams=streams)
    dense = (64 * element_bytes, 48, 6, 1)
    for tensors in (p.u, p.z, p.out):
        for i in range(streams):
            tensors[i] = Strided(*dense)
    p.delta = Strided(*dense)
    p.B = p.C = Map(128, 96, 12, 4, 1)
    return p


def test_the_scan_has_the_fields_of_the_header(functions):
    assert ctypes.sizeof(Forward) == functions.bytes_of_scan_forward()


@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("streams", [1, 2])
def test_channels_are_in_pairs_where_every_tensor_is(functions, streams, element_bytes):
    p = forward(streams, element_bytes)
    assert functions.channels_in_pairs(p)
    tensors = [p.delta, *(x[i] for x in (p.u, p.z, p.out) for i in range(streams))]
    for x in tensors:
        x.data += element_bytes
        assert not functions.channels_in_pairs(p)
        x.data += element_bytes
        assert functions.channels_in_pairs(p)
        x.step += 1
        assert not functions.channels_in_pairs(p)
        x.step -= 1
    for i in range(streams):
        p.z[i] = Strided()  # absent
    assert functions.channels_in_pairs(p)


def test_pairs_of_channels_do_not_straddle_groups(functions):
    p = forward(streams=1)
    p.size.ngroups = 2  # of 3 channels
    assert not functions.channels_in_pairs(p)
    p.size.dim = 8
    assert functions.channels_in_pairs(p)


def test_states_are_in_pairs_where_those_of_B_and_C_are(functions):
    p = forward(streams=1, element_bytes=2)
    assert functions.states_in_pairs(p)
    for x in (p.B, p.C):
        for field, spoilt in (
            ("data", 130),
            ("batch", 97),
            ("step", 13),
            ("group", 5),
            ("state", 2),
        ):
            value = getattr(x, field)
            setattr(x, field, spoilt)
            assert not functions.states_in_pairs(p), field
            setattr(x, field, value)
    assert functions.states_in_pairs(p)
    p.size.dstate = 3
    assert not functions.states_in_pairs(p)


# Blocks of the convolution, and workspaces

any_convolution = st.tuples(
    st.integers(0, 512), st.integers(0, 100_000), st.integers(0, 4096), st.integers(1, 32)
)


@given(s=any_convolution)
@many
def test_every_step_of_every_channel_is_in_one_block_of_the_convolution(functions, s):
    batch, length, dim, _ = s
    for backward, steps in ((False, 32), (True, 64)):
        tiles, columns = -(-length // steps), -(-dim // THREADS)
        assert functions.conv_blocks(batch, length, dim, backward) == batch * tiles * columns


@given(s=any_convolution)
@many
def test_workspace_of_the_convolution_holds_the_sums_of_every_tile(workspaces, s):
    batch, length, dim, width = s
    sums = dim * width + dim  # of dweight and dbias
    assert workspaces.conv_backward_elements(*s) == batch * -(-length // 64) * sums


@given(s=any_sizes)
@many
def test_forward_workspace_is_that_of_the_plan_that_runs(workspaces, functions, s):
    """It is allotted before the layouts are looked at."""
    for which in (functions.plan_forward, functions.plan_forward_in_pairs):
        assert workspaces.forward_elements(s) == functions.split_elements(s, which(s))


@given(s=any_sizes)
@many
def test_backward_workspace_holds_the_sums_of_every_block(workspaces, functions, s):
    plan = functions.plan_backward(s)
    maps = plan.tiles_per_group * s.batch * s.steps * s.ngroups * s.dstate  # of dB, and of dC
    rows = s.batch * plan.segments + functions.sums_of_samples(plan, s)
    weights = rows * (s.dim * s.dstate + s.dim + s.dim)  # of dA, dD, dbias
    carries = functions.split_elements(s, plan)
    tickets = s.batch * s.ngroups if functions.sums_maps(plan, s) else 0
    if functions.sums_weights(plan, s):
        tickets += s.ngroups * plan.tiles_per_group * (-(-s.batch // 16) + (s.batch > 16))
    assert workspaces.backward_elements(s) == 2 * maps + weights + carries + tickets


@pytest.mark.parametrize(
    "batch, steps, dim, weights, maps, sums",
    [
        (16, 64, 1536, True, True, 0),  # the fusion of a question
        (16, 512, 1536, True, True, 0),
        (16, 513, 1536, True, False, 0),
        (33, 64, 1536, True, True, 3),
        (4, 1154, 1536, False, False, 0),  # split in time
        (8, 4096, 1536, True, False, 0),
        (0, 64, 1536, False, False, 0),  # no block would do it
        (1, 0, 1, True, True, 0),
    ],
)
def test_who_adds_up_the_sums_of_blocks(functions, batch, steps, dim, weights, maps, sums):
    s = sizes(batch, steps, dim, every=8)
    plan = functions.plan_backward(s)
    assert functions.sums_weights(plan, s) == weights
    assert functions.sums_maps(plan, s) == maps
    assert functions.sums_of_samples(plan, s) == sums


@given(s=any_sizes)
@many
def test_a_block_adds_up_little(functions, s):
    plan = functions.plan_backward(s)
    if functions.sums_maps(plan, s):
        assert plan.tiles_per_group * s.steps * s.dstate <= 96 * 1024
    if sums := functions.sums_of_samples(plan, s):
        assert 1 < sums and s.batch <= 16 * sums < s.batch + 16
