"""Static figures of the CUDA kernels in the library that was built here. No GPU is needed."""

import pytest

from benchmarks.static import DTYPES, PASSES, STREAMS, cuda, sass
from benchmarks.static.__main__ import table
from benchmarks.static.rows import PEER, by_launch, collect, peer_rows
from cmimtl_kernels import _library

pytestmark = pytest.mark.quick

# At dstate 16: most issue slots and MUFU cycles per element, most slots of the loop of the last
# steps, fewest warps on a multiprocessor, and the shared memory of a block in bytes.
LIMITS = {
    "forward": (7.5, 9.2, 7.52, 16, (2 << 10, 30 << 10)),
    "backward": (22.0, 11.0, 22.0, 8, (94 << 10, 99 << 10)),
}
# Most bytes that a pass moves for the modelled workload, over the least that has to move.
MOST_TRAFFIC = {"forward": 1.0, "backward": 1.1}
# Most slots and MUFU cycles of the forward kernels for few channels, by the states of a thread; a
# little above what is reached. In their loop of the last steps every load is masked, which takes
# FEWER_LAST slots more.
FEWER = {16: (8.1, 9.2), 8: (9.2, 9.3)}
FEWER_LAST = 0.8
BOTH = [(which, op) for which in PASSES for op in STREAMS]


@pytest.fixture(scope="module")
def rows():
    if reason := _library.load_libraries()["cuda"]:
        pytest.skip(f"the CUDA library is not there: {reason}")
    if _library.runs_on((9, 0), _library.record("cuda")["architectures"]) != "code":
        pytest.skip("the CUDA library was not built for 9.0")
    return collect(["cuda"], ["sm_90"], DTYPES)


def of(rows, which, op, **fields):
    fields |= {"backend": "cuda", "pass": which, "op": op}
    chosen = [row for row in rows if all(row.get(k) == v for k, v in fields.items())]
    assert {row["dtype"] for row in chosen} == set(DTYPES)
    return chosen


@pytest.mark.parametrize("which, op", BOTH)
def test_instructions_and_occupancy(rows, which, op):
    for row in of(rows, which, op):
        slots, mufu, last, warps, (least_shared, most_shared) = LIMITS[which]
        if which == "forward" and row["channels"] == 1:
            slots, mufu = FEWER[row["states"]]
            last = row["slots_per_element"] + FEWER_LAST
        assert row["slots_per_element"] <= slots, row
        assert row["last_slots_per_element"] <= last, row
        assert row["mufu_cycles_per_element"] <= mufu, row
        assert row["float_atomics"] == row["spill_bytes"] == 0, row
        assert row["warps_per_sm"] >= warps, row
        assert least_shared < row["shared_bytes"] <= most_shared, row
        if which == "forward" and row["states"] == 16 and row["dtype"] == "float32":
            assert row["shared_bytes"] == (30 if row["channels"] == 2 else 6) << 10, row


@pytest.mark.parametrize("which, op", BOTH)
def test_modelled_time_and_traffic(rows, which, op):
    """No time is below its limits, no traffic below the least that has to move."""
    for row in of(rows, which, op):
        assert row["h100_us"] >= row["h100_ex2_limit_us"] > 0, row
        assert row["h100_us"] >= row["h100_memory_limit_us"] > 0, row
        assert 1 <= row["traffic_over_least"] <= MOST_TRAFFIC[which], row
        assert list(row["traffic"])[1:] == ["16x64x1536", "4x1154x1536"]
        for moved in row["traffic"].values():
            assert moved["least"] <= moved["read"] + moved["written"], row
            assert moved["read"] <= moved["read_by_blocks"], row
            assert (moved["again"] > 0) == (which == "backward"), row


@pytest.mark.parametrize("which, op", BOTH)
def test_half_the_instructions_of_the_peer_at_its_best_length(rows, which, op):
    peer = [row["slots_per_element"] for row in peer_rows(DTYPES) if row["pass"] == which]
    least = min(slots[0] if isinstance(slots, tuple) else slots for slots in peer)
    for row in of(rows, which, op, states=16):
        assert row["all_slots_per_element"] <= least / 2, row


def test_each_pass_has_one_kernel_for_a_full_gpu(rows):
    """A forward kernel with two channels in a thread; the others stand apart."""
    written = by_launch(rows)
    ours = [row for row in written["rows"] if row["backend"] == "cuda"]
    assert len(ours) == len(BOTH) * len(DTYPES)
    assert all(row["pass"] == "backward" or row["channels"] == 2 for row in ours)
    assert len(written["rows"]) + len(written["fewer_channels"]) == len(rows)
    assert table(rows).row_count == len(rows)


def test_peer_rows_have_every_key(rows):
    ours = next(row for row in rows if row["backend"] == "cuda")
    peers = [row for row in rows if row["backend"] == PEER]
    assert len(peers) == 16
    for row in peers:
        assert set(ours) <= set(row)
        assert row["registers"] is None
        assert row["float_atomics"] == (2 if row["pass"] == "backward" else None)


def test_library_that_is_not_built_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "_cuda.so")
    said = []
    assert collect(["cuda"], ["sm_80"], ["float32"], say=said.append) == []
    assert said == ["no rows of the CUDA kernels: _cuda.so is not built here"]


@pytest.mark.parametrize(
    "capability, registers, shared, dynamic, threads, warps",
    [
        (90, 32, 0, 0, 128, 64),  # the most warps
        (120, 32, 0, 0, 128, 48),
        (90, 32, 0, 0, 32, 32),  # the most blocks
        (90, 255, 0, 0, 128, 8),  # registers
        (90, 128, 0, 30720, 128, 16),
        (90, 128, 30720, 30720, 128, 12),  # shared memory, static and dynamic: 228 // 61 blocks
        (90, 255, 0, 100640, 128, 8),  # 228 // 99.3
        (80, 255, 0, 100640, 128, 4),  # 164 // 99.3
        (120, 255, 0, 100640, 128, 4),  # 100 // 99.3
        (120, 128, 0, 30720, 128, 12),  # 100 // 31
    ],
)
def test_warps_on_a_multiprocessor(capability, registers, shared, dynamic, threads, warps):
    figures = sass.Kernel(capability, registers, shared, ()).launched(threads, dynamic)
    assert figures["shared_bytes"] == shared + dynamic
    assert figures["warps_per_sm"] == warps


def test_a_loop_counts_with_those_of_its_inner_loops_that_are_not_left_out():
    code = (
        (0, "MOV", ""),
        (16, "FADD", ""),  # the outer loop
        (32, "MUFU.EX2", ""),
        (48, "BRA", "0x20"),
        (64, "LDS.128", ""),
        (80, "BRA", "P1, 0x40"),
        (96, "LDG.E.64.CONSTANT", ""),
        (112, "LDGDEPBAR", ""),
        (128, "LDGSTS.E.128", ""),
        (144, "BRA", "0x10"),
    )
    kernel = sass.Kernel(90, 32, 0, tuple(sass.Instruction(*line) for line in code))
    outer, with_ex2, without = kernel.loops_without(r"MUFU\.EX2")
    assert [i.address for i in outer.instructions] == [16, 64, 80, 96, 112, 128, 144]
    assert (with_ex2.slots, without.slots) == (2, 2)
    assert [loop.slots for loop in kernel.innermost_loops] == [2, 2]
    figures = outer.per_element(2)
    assert figures["slots_per_element"] == 7 / 2
    assert figures["shared_per_element"] == 1 / 2
    assert figures["global_bytes_per_element"] == (8 + 16) / 2
    assert with_ex2.per_element(1)["mufu_cycles_per_element"] == sass.CYCLES_PER_MUFU
