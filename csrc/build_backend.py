"""Build backend: setuptools, asking for torch only where none is installed yet.

A plain `pip install .` builds in an isolated environment where `import torch` fails, and a torch
in build-system.requires would be downloaded a second time for every build. But pip runs that build
with the interpreter of the environment it installs into, whose site-packages can be looked up: a
torch found there is read for its headers and nothing is asked for. Where there is none (a new
environment, or a front end that hides it, as uv and `python -m build` do) torch is an ordinary
build requirement. Either way gives the same binary: csrc/ uses PyTorch's stable ABI alone.
"""

import ctypes
import os
import re
import shutil
import site
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  the hooks that are not changed below

MIN_TORCH = (2, 10)  # the first release whose stable ABI has everything that csrc/ calls


def site_dirs() -> list[Path]:
    """Where packages may be: this build's own environment first, then the one it installs into."""
    roots = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    roots += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        roots.append(site.getusersitepackages())
    return [Path(root) for root in dict.fromkeys(roots) if root]


def torch_version(torch: Path, name: str = "__version__") -> str:
    """A string out of torch/version.py, such as "2.10.0" or, for "cuda", "13.0"; "" where unset."""
    file = torch / "version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    match = re.search(rf"^{name}\b.*= '([^']*)'", text, re.MULTILINE)
    return match[1] if match else ""


def find_torch() -> Path | None:
    """The folder of a torch that is new enough, found without importing it."""
    for root in site_dirs():
        numbers = re.match(r"(\d+)\.(\d+)", torch_version(root / "torch"))
        if numbers and tuple(map(int, numbers.groups())) >= MIN_TORCH:
            return root / "torch"
    return None


def find_nvcc() -> str | None:
    """The first nvcc of CUDA_HOME, CUDA_PATH, the PATH, /usr/local/cuda and a package from PyPI."""
    homes = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    found = [str(home / "bin/nvcc") for home in homes]
    found += [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    found += [str(nvcc) for root in site_dirs() for nvcc in root.glob("nvidia/cu*/bin/nvcc")]
    return next((nvcc for nvcc in found if os.access(nvcc, os.X_OK)), None)


def find_gpus(driver: str = "libcuda.so.1") -> tuple[list[tuple[int, int]], str]:
    """The compute capabilities of this machine's GPUs, (9, 0), and why there are none, or "".

    Asked of the driver itself, as torch cannot be imported in a build; CUDA_VISIBLE_DEVICES counts.
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return [], "no NVIDIA driver was found"
    count, value = ctypes.c_int(), ctypes.c_int()
    if (status := cuda.cuInit(0)) or (status := cuda.cuDeviceGetCount(ctypes.byref(count))):
        return [], f"the driver has no GPU for us (its status is {status})"
    gpus = []
    for device in range(count.value):
        numbers = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            if status := cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return [], f"the driver does not describe its GPUs (its status is {status})"
            numbers.append(value.value)
        gpus.append(tuple(numbers))
    return gpus, "" if gpus else "the driver has no GPU"


def _native_requires() -> list[str]:
    return [] if find_torch() else [f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"]


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _native_requires()


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _native_requires()


def matching_torchvision(root: Path) -> str | None:
    """The requirement of a torchvision of the same release as the torch in `root`, or None.

    timm needs torchvision, the newest of which needs the newest torch: pip would replace the torch
    that is there, a CPU build too, by the index's own build of another release. torch 2.x and
    torchvision 0.(x + 15) are one release. None where torchvision is there too, whose choice
    stands, and beside a torch that is no release.
    """
    match = re.fullmatch(r"2\.(\d+)\.\d+(\+\w+)?", torch_version(root / "torch"))
    if match is None or (root / "torchvision").is_dir():
        return None
    return f"torchvision==0.{int(match[1]) + 15}.*"


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    """Of an editable install alone, which is for this environment; a wheel may go anywhere."""
    name = _setuptools.prepare_metadata_for_build_editable(metadata_directory, config_settings)
    torch = find_torch()
    if torch and (requirement := matching_torchvision(torch.parent)):
        file = Path(metadata_directory, name, "METADATA")
        head, blank, body = file.read_text(encoding="utf-8").partition("\n\n")
        line = f"Requires-Dist: {requirement}; extra == 'models'"
        file.write_text(f"{head}\n{line}{blank}{body}", encoding="utf-8")
    return name
