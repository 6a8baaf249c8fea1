"""Static figures of the CUDA kernels, read from the library that was built: benchmarks/static.py.

No GPU is needed, and none is used.
"""

import pytest

from benchmarks import sass, static, static_cuda
from cmimtl_kernels import _library

pytestmark = pytest.mark.quick

ONE, CROSS = "selective_scan", "cross_selective_scan"
# Most issue slots and MUFU cycles per element at dstate 16, fewest resident warps, most bytes of
# spills, most bytes moved over the least, at the modelled workload.
LIMITS = {
    ("forward", ONE): (7.5, 9.2, 16, 0, 1.0),
    ("forward", CROSS): (7.5, 9.2, 16, 0, 1.0),
    ("backward", ONE): (22.0, 11.0, 8, 0, 1.1),
    ("backward", CROSS): (22.0, 11.0, 8, 0, 1.1),
}
# Most slots of the forward loop of the last steps, in which the loads are counted that only the
# first of its rounds run. Of fewer channels all of it is masked.
LAST_STEPS, LAST_OF_FEWER = 7.52, 0.8
# Slots and MUFU cycles of the forward kernels with fewer channels, by the states of a thread, a
# little above what is reached: 16 of one channel, or 8 in each of two lanes.
FORWARD_OF_FEWER = {16: (8.1, 9.2), 8: (9.2, 9.3)}


@pytest.fixture(scope="module")
def rows():
    if reason := _library.load_libraries()["cuda"]:
        pytest.skip(f"the CUDA library is not there: {reason}")
    if _library.runs_on((9, 0), _library.record("cuda")["architectures"]) != "code":
        pytest.skip("the CUDA library was not built for 9.0")
    return static.collect(["cuda"], ["sm_90"], list(static.DTYPES))


def of(rows, which, op, **fields):
    fields |= {"backend": "cuda", "pass": which, "op": op}
    chosen = [row for row in rows if all(row.get(k) == v for k, v in fields.items())]
    assert {row["dtype"] for row in chosen} == set(static.DTYPES)
    return chosen


@pytest.mark.parametrize("which, op", LIMITS)
def test_kernels_of_sm_90(rows, which, op):
    slots, mufu, warps, spills, moved = LIMITS[which, op]
    for row in of(rows, which, op):
        fewer = which == "forward" and row["channels"] == 1
        most_slots, most_mufu = FORWARD_OF_FEWER[row["states"]] if fewer else (slots, mufu)
        assert row["slots_per_element"] <= most_slots, row
        most_of_last = row["slots_per_element"] + LAST_OF_FEWER if fewer else LAST_STEPS
        assert row["last_slots_per_element"] <= (most_of_last if which == "forward" else slots), row
        assert row["mufu_cycles_per_element"] <= most_mufu, row
        assert row["float_atomics"] == 0, row
        assert row["spill_bytes"] <= spills, row
        assert row["warps_per_sm"] >= warps, row
        assert 1 <= row["traffic_over_least"] <= moved, row


@pytest.mark.parametrize("op", [ONE, CROSS])
def test_forward_kernels_with_two_channels_in_a_thread_are_there(rows, op):
    assert len(of(rows, "forward", op, states=16, channels=2)) == len(static.DTYPES)


@pytest.mark.parametrize("which, op", LIMITS)
def test_the_model_is_above_both_limits(rows, which, op):
    for row in of(rows, which, op):
        assert row["h100_us"] >= row["h100_ex2_limit_us"] > 0, row
        assert row["h100_us"] >= row["h100_memory_limit_us"] > 0, row


@pytest.mark.parametrize("which, op", LIMITS)
def test_half_the_instructions_of_the_peer_at_its_best_length(rows, which, op):
    peer = [row["slots_per_element"] for row in static.peer_rows(["float32", "bfloat16"])
            if row["pass"] == which]  # fmt: skip
    least = min(slots[0] if isinstance(slots, tuple) else slots for slots in peer)
    for row in of(rows, which, op, states=16):
        assert row["all_slots_per_element"] <= least / 2, row


def test_the_report_has_one_row_of_each_pass(rows):
    report = static.by_launch(rows)
    ours = [row for row in report["rows"] if row["backend"] == "cuda"]
    assert len(ours) == len(LIMITS) * len(static.DTYPES)
    assert all(row["pass"] == "backward" or row["channels"] == 2 for row in ours)
    assert len(report["rows"]) + len(report["fewer_channels"]) == len(rows)


@pytest.mark.parametrize("which, op", LIMITS)
def test_shared_memory_is_the_launch_s(rows, which, op):
    """As the library tells it, for its own expressions are what it launches with."""
    least, most = {"forward": (2048, 30 * 1024), "backward": (94 * 1024, 99 * 1024)}[which]
    for row in of(rows, which, op):
        assert least < row["shared_bytes"] <= most, row
        if which == "forward" and row["states"] == 16 and row["dtype"] == "float32":
            assert row["shared_bytes"] == (30 if row["channels"] == 2 else 6) * 1024, row


def test_traffic_is_that_of_the_benchmarks_sizes_too(rows):
    for row in rows:
        if row["backend"] == "cuda":
            assert list(row["traffic"])[1:] == ["16x64x1536", "4x1154x1536"]
            for moved in row["traffic"].values():
                assert moved["least"] <= moved["read"] + moved["written"], row
                assert moved["read"] <= moved["read_by_blocks"], row
                assert (moved["again"] > 0) == (row["pass"] == "backward"), row


def test_peer_rows_have_every_key(rows):
    ours = next(row for row in rows if row["backend"] == "cuda")
    peers = [row for row in rows if row["backend"] == static.PEER]
    assert peers
    for row in peers:
        assert set(ours) <= set(row)
        assert row["registers"] is None
        assert row["float_atomics"] == (2 if row["pass"] == "backward" else None)


def test_every_row_has_a_line_of_the_table(rows):
    assert static.table(rows).row_count == len(rows)


def test_peer_rows_are_called_static():
    rows = static.peer_rows(["float32", "bfloat16"])
    assert {row["backend"] for row in rows} == {"mamba_ssm (static, e9594ce)"}
    assert len(rows) == 16


def test_library_that_is_not_built_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(static_cuda, "LIBRARY", tmp_path / "_cuda.so")
    said = []
    assert static.collect(["cuda"], ["sm_80"], ["float32"], say=said.append) == []
    assert said == ["no rows of the CUDA kernels: _cuda.so is not built here"]


@pytest.mark.parametrize(
    "capability, registers, shared, dynamic, warps",
    [
        (90, 32, 0, 0, 64),  # the most warps
        (120, 32, 0, 0, 48),
        (90, 255, 0, 0, 8),  # registers
        (90, 128, 0, 30720, 16),
        (90, 128, 30720, 30720, 12),  # shared memory, static and dynamic: 228 // 61 blocks
        (90, 255, 0, 100640, 8),  # 228 // 99.3
        (80, 255, 0, 100640, 4),  # 164 // 99.3
        (120, 255, 0, 100640, 4),  # 100 // 99.3
        (120, 128, 0, 30720, 12),  # 100 // 31
    ],
)
def test_resident_warps(capability, registers, shared, dynamic, warps):
    kernel = sass.Kernel(capability, registers, shared, ())
    assert kernel.resident(128, dynamic) == {
        "shared_bytes": shared + dynamic,
        "warps_per_sm": warps,
    }


def test_resident_warps_of_small_blocks():
    assert sass.Kernel(90, 32, 0, ()).resident(32, 0)["warps_per_sm"] == 32  # the most blocks


def instruction(address, opcode, operands=""):
    return sass.Instruction(address, opcode, operands)


def test_loops_are_counted_with_those_in_them_but_for_the_ones_left_out():
    code = (
        instruction(0, "MOV"),
        instruction(16, "FADD"),  # the outer loop
        instruction(32, "MUFU.EX2"),
        instruction(48, "BRA", "0x20"),
        instruction(64, "LDS.128"),
        instruction(80, "BRA", "P1, 0x40"),
        instruction(96, "LDG.E.64.CONSTANT"),
        instruction(112, "LDGDEPBAR"),
        instruction(128, "LDGSTS.E.128"),
        instruction(144, "BRA", "0x10"),
    )
    kernel = sass.Kernel(90, 32, 0, code)
    outer, with_ex2, without = kernel.loops_without(r"MUFU\.EX2")
    assert [i.address for i in outer.instructions] == [16, 64, 80, 96, 112, 128, 144]
    assert (with_ex2.slots, without.slots) == (2, 2)
    assert [loop.slots for loop in kernel.innermost_loops] == [2, 2]
    assert (outer.bytes(sass.GLOBAL), outer.bytes("LDS"), outer.bytes("STG")) == (8 + 16, 16, 0)
