"""The CUDA kernels on a GPU under NVIDIA's compute-sanitizer: what tests/cuda_on_cpu sees on a CPU,
on the device."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmimtl_kernels import backends

ROOT = Path(__file__).parents[2]
CASES = """
import cmimtl_kernels, torch
from cmimtl_kernels import testing
for op in ("selective_scan", "cross_selective_scan"):
    for options in ({"dstate": 16, "dim": 70}, {"dstate": 17, "dim": 6, "ngroups": 2}):
        inputs = testing.scan_inputs(cross=op.startswith("cross"), device="cuda", **options)
        inputs["lengths"] = torch.tensor([7, 33], device="cuda")
        function = getattr(cmimtl_kernels, op)
        testing.run_with_gradients(function, inputs, backend="cuda", delta_softplus=True)
    for options in (
        {"batch": 140, "length": 9, "dim": 512, "dtype": torch.bfloat16},  # two channels a thread
        {"batch": 280, "length": 9, "dim": 511},  # one
        {"batch": 1, "length": 1100, "dim": 8},  # split over time
    ):
        inputs = testing.scan_inputs(cross=op.startswith("cross"), device="cuda", **options)
        function = getattr(cmimtl_kernels, op)
        testing.run_with_gradients(function, inputs, backend="cuda", delta_softplus=True)
inputs = testing.conv_inputs(device="cuda")
testing.run_with_gradients(cmimtl_kernels.causal_conv1d, inputs, backend="cuda")
torch.cuda.synchronize()
"""


def _compute_sanitizer() -> str | None:
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    folders = [f"{home}/bin" for home in [*homes, "/usr/local/cuda"]]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], *folders]))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(_compute_sanitizer() is None, reason="no compute-sanitizer found")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_are_clean(tool):
    assert backends.BACKENDS["cuda"].unavailable() is None
    command = [_compute_sanitizer(), "--tool", tool, "--error-exitcode", "66"]
    command += ["--kernel-name", "kernel_substring=cmimtl", sys.executable, "-c", CASES]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "ERROR SUMMARY: 0 errors" in run.stdout or "0 hazards" in run.stdout, run.stdout
