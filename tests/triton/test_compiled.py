"""The Triton kernels compiled ahead of time for every target: no GPU, and none is pretended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVIDIA, AMD = ("sm_80", "sm_90", "sm_100", "sm_120"), ("gfx942", "gfx1100")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What compiling.py writes, in a process of its own: see interpreted/conftest.py."""
    pytest.importorskip("triton", reason="triton is not installed")
    file = tmp_path_factory.mktemp("compiled") / "compiled.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.compiling", str(file)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(file.read_text())


def of(compiled, **fields):
    chosen = [row for row in compiled["rows"] if all(row[k] == v for k, v in fields.items())]
    assert chosen, fields
    return chosen


def test_every_kind_of_launch_passes_the_front_end(compiled):
    """The types of a kernel: other dtypes and options than those of the rows below."""
    assert compiled["kinds"] >= 70
    assert compiled["failures"] == {}


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("target", [*NVIDIA, *AMD])
def test_no_spills_and_no_atomics(compiled, target, which):
    for row in of(compiled, arch=target, **{"pass": which}):
        assert row["spill_bytes"] == row.get("scratch_bytes", 0) == row["float_atomics"] == 0, row


@pytest.mark.parametrize(
    "which", ["summary", "carry", "summary of gradients", "carry of gradients"]
)
def test_kernels_of_a_split(compiled, which):
    rows = of(compiled, **{"pass": which})
    assert len(rows) == 2  # targets
    for row in rows:
        assert row["spill_bytes"] == row.get("scratch_bytes", 0) == row["float_atomics"] == 0, row
        assert row["shared_bytes"] == 0, row


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("target", NVIDIA)
def test_states_stay_in_registers(compiled, target, which):
    for row in of(compiled, arch=target, **{"pass": which}):
        assert row["shared_per_element"] == 0, row
        assert row["shared_bytes"] <= 128, row  # a few numbers of each warp, beside the loops


# At dstate 16, a little above what is reached: issue slots per element, all of them (with what the
# backward pass recomputes and prepares), and of the loop that holds the recurrence; MUFU cycles of
# that loop; least warps on a multiprocessor. The backward pass computes exp once where it
# recomputes the states, and once more in its loop. The cross scan has the pointers of two streams.
LIMITS = {
    ("forward", "selective_scan"): (8.0, 8.0, 9.6, 16),
    ("forward", "cross_selective_scan"): (8.4, 8.4, 9.1, 12),
    ("backward", "selective_scan"): (26.0, 16.2, 8.1, 8),
    ("backward", "cross_selective_scan"): (26.0, 16.2, 8.1, 8),
}


@pytest.mark.parametrize(("which", "op"), LIMITS)
def test_instructions_on_sm_90(compiled, which, op):
    everything, slots, mufu, warps = LIMITS[which, op]
    (row,) = of(compiled, arch="sm_90", op=op, **{"pass": which})
    assert row["all_slots_per_element"] <= everything, row
    assert row["slots_per_element"] <= slots, row
    assert row["mufu_cycles_per_element"] <= mufu, row
    assert row["warps_per_sm"] >= warps, row
