"""Which GPUs the CUDA library is compiled for."""

import json
import subprocess

import pytest

from tests.kernels.builds import GOOD, ROOT, load_module, setup_py, write

NVCC_13 = "compute_75 compute_80 compute_86 compute_89 compute_90 compute_100 compute_120"
NVCC_12 = "compute_50 compute_80 compute_86 compute_89 compute_90"
NONE = [], "no NVIDIA driver was found"


@pytest.mark.parametrize(
    "known, local, gpus, archs, reason",
    [
        (NVCC_13, False, [(9, 0)], "8.0;9.0;10.0;12.0+PTX", "every GPU"),
        (NVCC_12, False, [(9, 0)], "8.0;9.0+PTX", "every GPU"),
        (NVCC_13, True, [(9, 0)], "9.0", "the GPUs of this machine"),
        (NVCC_13, True, [(12, 0), (8, 6), (8, 6)], "8.6;12.0", "the GPUs of this machine"),
        (NVCC_13, True, [(7, 5), (8, 9)], "8.9", "the GPUs of this machine"),
        (NVCC_12, True, [(10, 0)], "9.0+PTX", "the GPUs of this machine"),
        (NVCC_12, True, [(9, 0), (12, 1)], "9.0+PTX", "the GPUs of this machine"),
        (NVCC_13, True, [], "8.0+PTX", "any GPU, as no NVIDIA driver was found"),
        ("compute_90 compute_100", True, [], "9.0+PTX", "any GPU, as no NVIDIA driver was found"),
    ],
)
def test_what_cuda_is_compiled_for(monkeypatch, known, local, gpus, archs, reason):
    setup = load_module(ROOT / "setup.py")
    for name in ("TORCH_CUDA_ARCH_LIST", "CMIMTL_CUDA_ARCHS", "CMIMTL_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup, "run", lambda command, echo: known)
    monkeypatch.setattr(setup, "find_gpus", lambda: (gpus, "" if gpus else NONE[1]))
    assert setup.architectures("nvcc", local) == (archs.split(";"), reason)
    # Asked for, either is had either way.
    monkeypatch.setenv("CMIMTL_CUDA_ARCHS", "local" if local else "all")
    assert setup.architectures("nvcc", not local) == (archs.split(";"), reason)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a 10.0+PTX")
    assert setup.architectures("nvcc", local) == (["9.0a", "10.0+PTX"], "TORCH_CUDA_ARCH_LIST")


def test_gpus_that_are_too_old_get_no_cuda_library_unless_asked_for(monkeypatch):
    setup = load_module(ROOT / "setup.py")
    for name in ("TORCH_CUDA_ARCH_LIST", "CMIMTL_CUDA_ARCHS", "CMIMTL_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup, "run", lambda command, echo: NVCC_13)
    monkeypatch.setattr(setup, "find_gpus", lambda: ([(6, 1), (7, 5)], ""))
    with pytest.raises(setup.NotBuilt, match=r"have compute capability 7.5, the kernels need 8.0 "):
        setup.architectures("nvcc", True)
    monkeypatch.setenv("CMIMTL_CUDA", "1")
    assert setup.architectures("nvcc", True)[0] == ["8.0+PTX"]


@pytest.mark.parametrize(
    "known, local, message",
    [
        ("compute_50 compute_75", True, "^/old/nvcc must know 8.0 or one after it, got none$"),
        ("compute_50 compute_75", False, "^/old/nvcc must know 8.0 or one after it, got none$"),
        ("compute_87", False, "^/old/nvcc must know one of 8.0, 9.0, 10.0, 12.0, got none$"),
    ],
)
def test_nvcc_that_knows_none_of_the_architectures_is_named(monkeypatch, known, local, message):
    setup = load_module(ROOT / "setup.py")
    for name in ("TORCH_CUDA_ARCH_LIST", "CMIMTL_CUDA_ARCHS", "CMIMTL_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup, "run", lambda command, echo: known)
    with pytest.raises(RuntimeError, match=message):
        setup.architectures("/old/nvcc", local)


# A driver with the GPUs of a variable, "90 86", or one that answers with STATUS.
DRIVER = """
#include <cstdlib>
#include <cstring>
static int status() { const char* s = getenv("STATUS"); return s ? atoi(s) : 0; }
static const char* gpus() { const char* s = getenv("GPUS"); return s ? s : ""; }
extern "C" int cuInit(unsigned) { return status(); }
extern "C" int cuDeviceGetCount(int* n) { *n = (int(strlen(gpus())) + 1) / 3; return 0; }
extern "C" int cuDeviceGetAttribute(int* x, int attribute, int device) {
  if (getenv("MUTE")) return 3;
  if (attribute != 75 && attribute != 76) return 1;
  *x = gpus()[3 * device + attribute - 75] - '0';
  return 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run(["c++", "-shared", "-fPIC", folder / "driver.cpp", "-o", library], check=True)
    return library


@pytest.mark.parametrize(
    "variables, gpus, none",
    [
        ({"GPUS": "90 86"}, [(9, 0), (8, 6)], ""),
        ({}, [], "the driver has no GPU"),
        ({"STATUS": "100"}, [], "the driver has no GPU for us (its status is 100)"),
        (
            {"GPUS": "90", "MUTE": "1"},
            [],
            "the driver does not describe its GPUs (its status is 3)",
        ),
    ],
)
def test_the_driver_is_asked_for_its_gpus(monkeypatch, driver, variables, gpus, none):
    backend = load_module(ROOT / "csrc/build_backend.py")
    for name in ("GPUS", "STATUS", "MUTE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert backend.find_gpus(str(driver)) == (gpus, none)


def test_no_driver_is_no_gpu(tmp_path):
    backend = load_module(ROOT / "csrc/build_backend.py")
    assert backend.find_gpus(str(tmp_path / "libcuda.so.1")) == NONE


# In place of nvcc: says what it knows, and compiles with the host's compiler.
NVCC = """#!/bin/sh
case "$1" in
  --list-gpu-arch) echo compute_80 compute_90 compute_100 compute_120; exit ;;
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit ;;
esac
tool="c++"
for a; do
  shift
  case "$a" in
    -gencode=*|-cudart=*|-Xcompiler|-O2,*) continue ;;
    -c) tool="c++ -x c++" ;;
  esac
  set -- "$@" "$a"
done
exec $tool "$@"
"""


def test_what_is_made_in_place_is_for_this_machine_and_a_wheel_for_everybody(tree, driver):
    write(tree, "csrc/cuda/scan.cu", GOOD)
    write(tree, "toolkit/bin/nvcc", NVCC)
    (tree / "toolkit/bin/nvcc").chmod(0o755)
    settings = {
        "CUDA_HOME": str(tree / "toolkit"),
        "CMIMTL_CUDA": "1",
        "LD_LIBRARY_PATH": str(driver.parent),
        "GPUS": "90",
    }

    def built_for(*command, **more):
        done = setup_py(tree, *command, **(settings | more))
        assert done.returncode == 0, done.stdout
        (folder,) = (tree / "build").glob("lib*")
        note = json.loads((folder / "cmimtl_kernels/_cuda.json").read_text())
        return note["architectures"], note["architectures for"]

    here, everybody = ("9.0", "the GPUs of this machine"), ("8.0;9.0;10.0;12.0+PTX", "every GPU")
    assert built_for("build_ext", "--inplace") == here
    assert built_for("bdist_wheel") == everybody
    assert built_for("bdist_wheel", CMIMTL_CUDA_ARCHS="local") == here
    assert built_for("build_ext", "--inplace", CMIMTL_CUDA_ARCHS="all") == everybody


def test_architectures_become_flags(monkeypatch):
    setup = load_module(ROOT / "setup.py")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a; 12.0+PTX")
    assert setup.gencode(setup.architectures("nvcc", True)[0]) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
