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
def rows(tmp_path_factory):
    """Rows of benchmarks/static.py, made in a process of their own: see interpreted/conftest.py."""
    pytest.importorskip("triton", reason="triton is not installed")
    file = tmp_path_factory.mktemp("static") / "static.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.static",
        "--json",
        str(file),
        "--backend",
        "triton",
    ]
    command += ["--dtype", "float32"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(file.read_text())["rows"]


def of(rows, **fields):
    chosen = [row for row in rows if all(row[k] == v for k, v in fields.items())]
    assert len(chosen) == 2, fields  # both ops
    return chosen


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("target", [*NVIDIA, *AMD])
def test_no_spills_and_no_atomics(rows, target, which):
    for row in of(rows, arch=target, **{"pass": which}):
        assert row["spill_bytes"] == row.get("scratch_bytes", 0) == row["float_atomics"] == 0, row


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("target", NVIDIA)
def test_states_stay_in_registers(rows, target, which):
    for row in of(rows, arch=target, **{"pass": which}):
        assert row["shared_per_element"] == row["shared_bytes"] == 0, row


# Issue slots and MUFU cycles per element at dstate 16, a little above what is reached. The backward
# pass computes exp once where it recomputes the states, and once more in its own loop.
LIMITS = {"forward": (8.7, 9.6, 16), "backward": (25.6, 8.1, 8)}


@pytest.mark.parametrize("which", LIMITS)
def test_instructions_on_sm_90(rows, which):
    slots, mufu, warps = LIMITS[which]
    for row in of(rows, arch="sm_90", **{"pass": which}):
        assert row["slots_per_element"] <= slots, row
        assert row["mufu_cycles_per_element"] <= mufu, row
        assert row["warps_per_sm"] >= warps, row
        assert row["all_slots_per_element"] <= 1.6 * slots, row
