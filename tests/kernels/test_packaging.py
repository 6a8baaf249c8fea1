"""The native build and what is said about it, on copies of the tree with sources of one line."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from cmimtl_kernels import __main__, _library, backends, registration
from tests.conftest import untested_libraries

ROOT = Path(__file__).parents[2]
GOOD = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
BROKEN = GOOD + "oops;\n"
SETTINGS = (
    "CMIMTL_REQUIRE_EXT", "CMIMTL_CUDA", "CMIMTL_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME",
    "CXX", "CXXFLAGS", "MAX_JOBS",
)  # fmt: skip


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A copy of what the build reads, with one CPU source that needs no torch header."""
    root = tmp_path / "a tree"  # with a space: every path must survive it
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc/build_backend.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    python_alone = shutil.ignore_patterns("_c*.so", "_c*.json", "__pycache__")
    shutil.copytree(ROOT / "cmimtl_kernels", root / "cmimtl_kernels", ignore=python_alone)
    write(root, "csrc/cpu/tiny.cpp", GOOD)
    write(root, "csrc/sizes.h", "#pragma once\n")
    return root


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def setup_py(root, *command, **settings):
    """Run setup.py in a copy of the tree, with these environment variables alone of SETTINGS."""
    env = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=root,
        env=env | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def build(root, **settings):
    done = setup_py(root, "build_ext", "--inplace", **settings)
    assert done.returncode == 0, done.stdout
    return record(root, "cpu")


def record(root, name):
    return json.loads((root / "cmimtl_kernels" / f"_{name}.json").read_text())


def load(root, monkeypatch):
    """What load_libraries() says in a copy of the tree."""
    monkeypatch.setattr(_library, "HERE", root / "cmimtl_kernels")
    return _library.load_libraries.__wrapped__()


def test_what_was_built_loads(tree, monkeypatch):
    note = build(tree)
    assert note["built"]
    assert set(note["sources"]) == {"csrc/cpu/tiny.cpp", "csrc/sizes.h"}
    assert load(tree, monkeypatch) == {
        "cpu": None,
        "cuda": "this version has no CUDA sources (csrc/cuda is empty)",
    }


def other_torch(folder):
    """This torch in another place, as in another environment."""
    at = fake_torch(folder, torch.__version__.partition("+")[0], None)
    for name in ("include", "lib"):
        (at / name).symlink_to(Path(torch.__file__).parent / name)


def test_a_second_build_compiles_nothing_and_beside_another_torch_the_bindings_alone(
    tree, tmp_path
):
    write(tree, "csrc/cpu/bindings.cpp", GOOD.replace("answer", "bindings"))
    first = build(tree)
    assert first["compiled"] == 2 and first["seconds"] > 0
    assert build(tree)["compiled"] == 0
    other_torch(tmp_path)
    assert build(tree, PYTHONPATH=str(tmp_path))["compiled"] == 1
    write(tree, "csrc/cpu/tiny.cpp", GOOD + "// edited\n")
    assert build(tree, PYTHONPATH=str(tmp_path))["compiled"] == 1


def test_the_output_tells_how_long_it_will_be_and_each_file(tree):
    done = setup_py(tree, "build_ext", "--inplace", MAX_JOBS="4")
    lines = done.stdout.splitlines()
    assert "cmimtl_kernels._cpu: 1 files; up to 15 s" in lines  # 60 s of one core
    assert any(line.endswith("csrc/cpu/tiny.cpp") for line in lines)
    assert re.search(r"^cmimtl_kernels._cpu: compiled 1 files in [\d.]+ s$", done.stdout, re.M)


def test_output_is_shown_as_it_comes(tmp_path, monkeypatch):
    setup = load_module(ROOT / "setup.py")
    seen = tmp_path / "seen"
    monkeypatch.setattr(
        setup, "print", lambda line, **_: seen.touch() if line == "first\n" else None, raising=False
    )
    # Ends with an error unless its first line is shown while it runs.
    program = (
        "import pathlib, sys, time; print('first', flush=True)\n"
        "for _ in range(2000):\n"
        "    if pathlib.Path(sys.argv[1]).exists(): sys.exit()\n"
        "    time.sleep(0.01)\n"
        "sys.exit(1)"
    )
    assert setup.run([sys.executable, "-c", program, str(seen)]) == "first\n"


def test_sources_that_changed_since_the_build_are_named(tree, monkeypatch):
    build(tree)
    monkeypatch.setattr(_library, "HERE", tree / "cmimtl_kernels")
    assert _library.changed_sources("cpu") == []
    write(tree, "csrc/cpu/tiny.cpp", GOOD + "// edited\n")
    assert _library.changed_sources("cpu") == ["csrc/cpu/tiny.cpp"]
    (tree / "csrc/sizes.h").unlink()
    assert _library.changed_sources("cpu") == ["csrc/cpu/tiny.cpp", "csrc/sizes.h"]
    shutil.rmtree(tree / "csrc")  # as in an installed wheel
    assert _library.changed_sources("cpu") == []


def test_failed_build_is_kept_and_shown_and_leaves_no_old_library(tree):
    build(tree)
    assert (tree / "cmimtl_kernels/_cpu.so").is_file()
    write(tree, "csrc/cpu/tiny.cpp", BROKEN)
    note = build(tree)  # returns 0: it never fails an install
    assert not (tree / "cmimtl_kernels/_cpu.so").exists()
    assert not note["built"]
    assert re.match(r"csrc/cpu/tiny.cpp:2:1: error: .oops.", note["reason"])

    done = subprocess.run(
        [sys.executable, "-m", "cmimtl_kernels"],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"  cpu           unavailable: {note['reason']}\n" in done.stdout
    assert "  cpu           reference\n" in done.stdout  # what auto picks
    assert "  | " + note["log"].splitlines()[0] in done.stdout
    assert f"To build it again: pip install --no-deps -e '{tree}'\n" in done.stdout


def test_require_ext_makes_a_failed_build_fatal(tree):
    write(tree, "csrc/cpu/tiny.cpp", BROKEN)
    done = setup_py(tree, "build_ext", "--inplace", CMIMTL_REQUIRE_EXT="1")
    assert done.returncode != 0
    last = done.stdout.splitlines()[-1]
    assert last.startswith("CMIMTL_REQUIRE_EXT=1, but cmimtl_kernels._cpu was not built: csrc/cpu")
    assert not record(tree, "cpu")["built"]


def test_missing_compiler_is_named(tree, monkeypatch):
    note = build(tree, CXX="/nowhere/c++")
    assert note["reason"] == (
        "no C++ compiler: /nowhere/c++ not found (install g++ or clang, or set CXX)"
    )
    assert load(tree, monkeypatch)["cpu"] == note["reason"]


def test_builds_without_ninja(tree, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("as", "ld"):
        (tools / name).symlink_to(shutil.which(name))
    write(tree, "csrc/cpu/other.cpp", GOOD.replace("answer", "other"))
    assert build(tree, PATH=str(tools), CXX=shutil.which("c++"))["built"]


@pytest.mark.parametrize(
    "text, size, message",
    [
        ('extern "C" int missing();\nint used = missing();\n', None, "undefined symbol: missing"),
        (GOOD, 100, "file too short|cannot read file"),
    ],
)
def test_library_that_does_not_load_gives_a_reason(tree, monkeypatch, text, size, message):
    write(tree, "csrc/cpu/tiny.cpp", text)
    build(tree)
    library = tree / "cmimtl_kernels/_cpu.so"
    library.write_bytes(library.read_bytes()[:size])
    reason = load(tree, monkeypatch)["cpu"]
    assert re.match(rf"built, but torch \S+ cannot load it: .*({message})", reason)


def test_tree_that_was_never_installed_says_so(tree, monkeypatch):
    reason = "not built: a source tree that was never installed"
    assert load(tree, monkeypatch) == {"cpu": reason, "cuda": reason}


def test_record_that_cannot_be_read_gives_a_reason(tree, monkeypatch):
    write(tree, "cmimtl_kernels/_cpu.json", "{")
    assert load(tree, monkeypatch)["cpu"].startswith("_cpu.json cannot be read: ")


def test_wheel_serves_every_python_and_has_no_old_library(tree):
    def wheel():
        done = setup_py(tree, "bdist_wheel")
        assert done.returncode == 0, done.stdout
        (file,) = (tree / "dist").glob("*.whl")
        assert re.match(r"cmimtl-[\d.]+-py3-none-(?!any)", file.name)
        with zipfile.ZipFile(file) as content:
            return set(content.namelist())

    build(tree)  # an editable install of the same tree, whose library the wheel must not take
    files = wheel()
    assert {f"cmimtl_kernels/{name}" for name in ("_cpu.so", "_cpu.json", "py.typed")} <= files
    write(tree, "csrc/cpu/tiny.cpp", BROKEN)
    files = wheel()
    assert "cmimtl_kernels/_cpu.json" in files
    assert "cmimtl_kernels/_cpu.so" not in files


def test_sdist_holds_what_the_build_reads(tree):
    for name in ("csrc/cpu/body.inc", "csrc/cuda/scan.cuh"):
        write(tree, name, "")
    done = setup_py(tree, "sdist")
    assert done.returncode == 0, done.stdout
    (file,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(file) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    csrc = {path.relative_to(tree).as_posix() for path in (tree / "csrc").rglob("*.*")}
    assert {name for name in csrc if "__pycache__" not in name} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


@pytest.mark.skipif(
    load_module(ROOT / "csrc/build_backend.py").find_nvcc() is None, reason="no nvcc found"
)
def test_cuda_library_builds_and_loads_without_a_gpu(tree, monkeypatch):
    write(tree, "csrc/cuda/tiny.cpp", GOOD)
    write(tree, "csrc/cuda/scan.cu", "__global__ void f(float* x) { x[threadIdx.x] = 0.f; }\n")
    build(tree, CMIMTL_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0")
    note = record(tree, "cuda")
    assert note["built"], note
    assert note["architectures"] == "9.0"
    assert note["architectures for"] == "TORCH_CUDA_ARCH_LIST"
    assert note["compiled"] == 2
    assert re.match(r"nvcc release \d+\.\d+", note["nvcc"])
    assert load(tree, monkeypatch)["cuda"] is None


@pytest.mark.parametrize(
    "note, changed, reason, expected",
    [
        ({"built": True}, [], None, []),
        ({"built": True}, ["csrc/a.h"], None, ["the CUDA library: older than csrc/a.h"]),
        ({"built": False, "log": ""}, [], "error: x", ["the CUDA library: error: x"]),
        ({"built": False}, [], "no nvcc found", []),
    ],
)
def test_a_run_of_the_tests_knows_which_library_is_missing(
    monkeypatch, note, changed, reason, expected
):
    monkeypatch.setattr(_library, "load_libraries", lambda: {"cpu": None, "cuda": reason})
    monkeypatch.setattr(_library, "record", lambda name: note)
    monkeypatch.setattr(_library, "changed_sources", lambda name: changed * (name == "cuda"))
    assert untested_libraries() == expected
    monkeypatch.setattr(_library, "load_libraries", lambda: {"cpu": "none", "cuda": reason})
    assert untested_libraries() == ["the CPU library: none", *expected]


# In a process that has not imported torch.
LOAD_BESIDE_CPU_PART = """
import ctypes, importlib.util, pathlib, sys
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
ctypes.CDLL(str(torch / "lib" / "libtorch_cpu.so"))
ctypes.CDLL(sys.argv[1])
maps = pathlib.Path("/proc/self/maps").read_text()
assert "libtorch_cpu" in maps and "libtorch_cuda" not in maps
"""


def test_cuda_library_loads_and_registers_without_libtorch_cuda():
    """As beside a CPU build of torch: it registers its kernels as it is loaded, with every symbol
    resolved (ctypes asks for RTLD_NOW)."""
    if reason := _library.load_libraries()["cuda"]:
        pytest.skip(f"the CUDA library is not there: {reason}")
    library = _library.HERE / "_cuda.so"
    done = subprocess.run(
        [sys.executable, "-c", LOAD_BESIDE_CPU_PART, str(library)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in registration.SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"cmimtl::{name}", "CUDA")


def fake_torch(folder, version, cuda):
    (folder / "torch").mkdir()
    text = f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n"
    (folder / "torch/version.py").write_text(text)
    return folder / "torch"


@pytest.mark.parametrize(
    "version, wanted", [(None, True), ("2.9.1", True), ("2.10.0", False), ("3.0.0a0+git", False)]
)
def test_torch_is_a_build_requirement_only_where_none_is_there(
    tmp_path, monkeypatch, version, wanted
):
    backend = load_module(ROOT / "csrc/build_backend.py")
    if version:
        fake_torch(tmp_path, version, None)
    monkeypatch.setattr(backend, "site_dirs", lambda: [tmp_path])
    for hook in (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable):
        assert ("torch>=2.10" in hook()) is wanted


@pytest.mark.parametrize(
    "setting, cuda, nvcc, reason",
    [
        ("0", "13.0", "nvcc", "switched off by CMIMTL_CUDA=0"),
        ("", None, "nvcc", "torch is not a CUDA build (CMIMTL_CUDA=1 builds it all the same)"),
        ("", "13.0", None, "no nvcc found (set CUDA_HOME, or put nvcc on the PATH)"),
        ("", "13.0", "nvcc", None),
        ("1", None, "nvcc", None),
    ],
)
def test_why_cuda_is_not_built(tmp_path, monkeypatch, setting, cuda, nvcc, reason):
    setup = load_module(ROOT / "setup.py")
    monkeypatch.setenv("CMIMTL_CUDA", setting)
    monkeypatch.setattr(setup, "find_nvcc", lambda: nvcc)
    assert setup.not_wanted("cuda", fake_torch(tmp_path, "2.10.0", cuda)) == reason


def test_cuda_that_must_be_built_needs_nvcc(tmp_path, monkeypatch):
    setup = load_module(ROOT / "setup.py")
    monkeypatch.setenv("CMIMTL_CUDA", "1")
    monkeypatch.setattr(setup, "find_nvcc", lambda: None)
    extension = setup.Extension("cmimtl_kernels._cuda", ["csrc/cuda/tiny.cu"])
    with pytest.raises(RuntimeError, match="CMIMTL_CUDA=1, but no nvcc was found"):
        setup.build_library(extension, tmp_path / "_cuda.so", True)


def test_setting_that_is_no_setting_is_named(monkeypatch):
    setup = load_module(ROOT / "setup.py")
    monkeypatch.setenv("CMIMTL_CUDA", "yes")
    with pytest.raises(RuntimeError, match="CMIMTL_CUDA must be 0, 1 or unset, got 'yes'"):
        setup.not_wanted("cuda", None)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;Hopper")
    with pytest.raises(RuntimeError, match=r"must hold numbers such as 9.0 .*, got 'Hopper'"):
        setup.architectures("nvcc", True)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setenv("CMIMTL_CUDA_ARCHS", "mine")
    with pytest.raises(RuntimeError, match="CMIMTL_CUDA_ARCHS must be local, all or unset, got"):
        setup.architectures("nvcc", True)


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


@pytest.mark.parametrize(
    "version, torchvision, requirement",
    [
        ("2.13.0+cpu", False, "torchvision==0.28.*"),
        ("2.14.1", False, "torchvision==0.29.*"),
        ("2.14.1", True, None),  # whoever chose it keeps it
        ("2.15.0a0+git", False, None),
        ("3.0.0", False, None),
    ],
)
def test_an_editable_install_asks_for_the_torchvision_of_the_torch_that_is_there(
    tmp_path, monkeypatch, version, torchvision, requirement
):
    backend = load_module(ROOT / "csrc/build_backend.py")
    site = tmp_path / "site"
    site.mkdir()
    fake_torch(site, version, None)
    if torchvision:
        (site / "torchvision").mkdir()
    monkeypatch.setattr(backend, "site_dirs", lambda: [site])

    def prepare(metadata_directory, config_settings):
        folder = Path(metadata_directory, "cmimtl.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text("Name: cmimtl\n\nText\n\nmore text\n")
        return folder.name

    monkeypatch.setattr(backend._setuptools, "prepare_metadata_for_build_editable", prepare)
    assert backend.prepare_metadata_for_build_editable(tmp_path) == "cmimtl.dist-info"
    line = f"Requires-Dist: {requirement}; extra == 'models'\n" if requirement else ""
    expected = f"Name: cmimtl\n{line}\nText\n\nmore text\n"
    assert (tmp_path / "cmimtl.dist-info/METADATA").read_text() == expected


@pytest.mark.parametrize(
    "gpu, architectures, how",
    [
        ((9, 0), "8.0;9.0", "code"),
        ((8, 6), "8.0+PTX", "code"),  # code of 8.0 runs on all of 8.x
        ((8, 0), "8.6+PTX", None),
        ((9, 0), "8.0+PTX", "PTX"),
        ((9, 0), "8.0;8.6", None),
        ((12, 0), "8.0+PTX;9.0", "PTX"),
        ((10, 3), "10.0a+PTX", None),  # of one GPU alone
        ((10, 3), "10.0f", "code"),
        ((12, 0), "10.0f+PTX", None),
    ],
)
def test_how_a_library_runs_on_a_gpu(gpu, architectures, how):
    assert _library.runs_on(gpu, architectures) == how


@pytest.mark.parametrize(
    "gpu, said",
    [
        ((8, 0), None),
        ((9, 0), "its driver compiles the PTX,\nsome seconds at the first call of each kernel"),
        ((7, 5), "none of it runs there.\nTo build it for this machine: pip install "),
    ],
)
def test_report_of_a_gpu_that_the_library_has_no_code_for(monkeypatch, gpu, said):
    monkeypatch.setattr(_library, "record", lambda name: {"architectures": "8.0+PTX"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *index: gpu)
    text = "\n".join(__main__._gpus_without_code())
    if said is None:
        assert text == ""
    else:
        assert text.count("The cuda library was built for 8.0+PTX, a GPU has") == 1
        assert said in text
    # and no kernel is launched that is not there
    reason = backends._device_unfit.__wrapped__()
    assert (reason is None) == (gpu >= (8, 0))


def test_a_library_without_code_for_the_gpu_is_not_chosen(monkeypatch):
    monkeypatch.setattr(_library, "record", lambda name: {"architectures": "9.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *index: (8, 0))
    assert backends._device_unfit.__wrapped__() == (
        "was built for compute capability 9.0, the GPU has 8.0; build it here"
    )


def test_report_of_what_was_built_and_how_long_it_took(monkeypatch):
    note = {"compiler": "c++ 12", "nvcc": "nvcc 13.0", "torch headers": "2.14.1", "compiled": 22,
            "seconds": 97.6, "architectures": "8.0+PTX",
            "architectures for": "any GPU"}  # fmt: skip
    monkeypatch.setattr(_library, "record", lambda name: note)
    assert __main__._built("cuda") == (
        "ok: built by nvcc 13.0, c++ 12 against torch 2.14.1, for 8.0+PTX (any GPU); 22 files "
        "compiled in 98 s"
    )


INDEX = " --index-url https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    "found, cuda, loads, said",
    [
        ("0.29.1", "13.0", True, None),
        ("0.29.1", None, True, None),
        ("0.28.0", "13.0", True, "torchvision 0.28.0 is of another release than torch 2.14.1"),
        ("0.28.0+cpu", None, True, "torchvision 0.28.0+cpu is of another release than torch 2.14"),
        ("0.29.1", None, False, "torchvision 0.29.1 cannot be loaded (no libc10_cuda.so) beside t"),
    ],
)
def test_report_of_a_torchvision_that_does_not_go_with_torch(
    tmp_path, monkeypatch, found, cuda, loads, said
):
    def load(path):
        assert path == str(tmp_path / "_C.so")
        if not loads:
            raise OSError("no library") from OSError("no libc10_cuda.so")

    (tmp_path / "_C.so").touch()
    spec = importlib.util.spec_from_file_location("torchvision", tmp_path / "__init__.py")
    monkeypatch.setattr(__main__.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(__main__.metadata, "version", lambda name: found)
    text = "\n".join(__main__._torchvision())
    if said is None:
        assert text == ""
    else:
        assert said in text
        assert text.endswith(
            "pip install --force-reinstall --no-deps 'torchvision==0.29.*'" + INDEX * (cuda is None)
        )


def test_a_torchvision_that_does_not_go_with_torch_is_named(tmp_path, monkeypatch):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "timm.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(__main__.metadata, "version", lambda name: "0.28.0")
    with pytest.raises(
        ImportError,
        match="^cmimtl: torchvision must be of the release and the build of torch, got torchvision"
        rf" 0.28.0 beside torch {re.escape(torch.__version__)}; `python -m cmimtl_kernels` tells",
    ):
        load_module(ROOT / "cmimtl/_timm.py")


def test_report_of_this_machine():
    text = __main__.report()
    for name, backend in backends.BACKENDS.items():
        reason = backend.unavailable()
        assert f"\n  {name:<13} {'ok' if reason is None else 'unavailable: ' + reason}" in text
    picked = backends.auto(backends.Call("selective_scan", "cpu", torch.float32, 16))
    assert f"\n  cpu           {picked}\n" in text


def test_report_of_an_old_library(monkeypatch):
    monkeypatch.setattr(_library, "changed_sources", lambda name: ["csrc/cpu/a.cpp", "csrc/b.h"])
    assert "\nThe cpu library is older than csrc/cpu/a.cpp, csrc/b.h\n" in __main__.report()


@pytest.mark.parametrize(
    "note, origin",
    [
        (None, "cmimtl"),
        ('{"url": "file:///home/a b", "dir_info": {}}', "'file:///home/a b'"),
        ('{"url": "https://x.org/y", "vcs_info": {"vcs": "git"}}', "git+https://x.org/y"),
    ],
)
def test_advice_outside_of_a_checkout_takes_no_cached_wheel(tmp_path, monkeypatch, note, origin):
    class Installed:
        def read_text(self, name):
            return note if name == "direct_url.json" else None

    monkeypatch.setattr(_library, "HERE", tmp_path / "cmimtl_kernels")
    monkeypatch.setattr(__main__.metadata, "distribution", lambda name: Installed())
    command = "pip install --force-reinstall --no-deps --no-cache-dir"
    assert __main__._install_command() == f"{command} {origin}"
