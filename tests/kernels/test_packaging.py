"""The native build and what is left of it, on copies of the tree with sources of one line."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from cmimtl_kernels import _library, registration
from tests.conftest import untested_libraries
from tests.kernels.builds import (
    BROKEN,
    GOOD,
    ROOT,
    build,
    fake_torch,
    load,
    load_module,
    record,
    setup_py,
    write,
)


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
    assert "cmimtl_kernels._cpu: 1 files; up to 17 s" in lines  # 68 s of one core, on four
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
    assert note["least capability"] == "8.0"
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
