"""Who may know whom, and that importing is cheap: it compiles nothing and calls nobody."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STDLIB = sys.stdlib_module_names
KERNELS = sorted((ROOT / "cmimtl_kernels").rglob("*.py"))
MODEL = sorted((ROOT / "cmimtl").rglob("*.py"))
NATIVE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in NATIVE_SUFFIXES)


def name_in_checkout(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it; "" for a relative import."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("" if node.level else node.module.partition(".")[0])
    return names


def included(path: Path) -> set[str]:
    """The headers that a C++ or CUDA file names, as written."""
    return set(re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE))


def python(code: str) -> str:
    """What a new interpreter, without a GPU, prints; AssertionError where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Goes before the import in question: nothing after it may start a program or open a connection.
GUARD = """
import sys
FORBIDDEN = {"socket.connect", "subprocess.Popen", "os.system", "os.posix_spawn", "os.fork"}
def guard(event, args):
    if event in FORBIDDEN:
        raise RuntimeError(f"an import may not do this: {event} {args}")
sys.addaudithook(guard)
"""


def test_imported_sees_every_form_of_import(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import a.b, c\nfrom d.e import f\ndef g():\n    from . import h\n    import i\n"
    )
    assert imported(file) == {"a", "c", "d", "", "i"}


def test_included_sees_every_form_of_include(tmp_path):
    file = tmp_path / "file.h"
    file.write_text('#include <a/b.h>\n  # include "c.h"\n// #include <d>\n')
    assert included(file) == {"a/b.h", "c.h"}


def test_guard_stops_a_program_and_a_connection():
    for line in (
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
    ):
        with pytest.raises(AssertionError, match="an import may not do this"):
            python(f"{GUARD}\n{line}")


# What a file, or the files of a folder, of the kernel library may know beside torch. The files
# import it in functions alone, the folder is imported by the first call of a Triton kernel, which
# test_importing_the_kernels_needs_nothing_but_torch holds.
MAY_ALSO_KNOW = {
    "cmimtl_kernels/causal_conv1d_package.py": {"causal_conv1d"},
    "cmimtl_kernels/compat/transformers.py": {"transformers"},
    "cmimtl_kernels/triton": {"triton"},
}


def may_also_know(path: Path) -> set[str]:
    file, folder = name_in_checkout(path), name_in_checkout(path.parent)
    return MAY_ALSO_KNOW.get(file, set()) | MAY_ALSO_KNOW.get(folder, set())


@pytest.mark.parametrize("path", KERNELS, ids=name_in_checkout)
def test_kernel_library_knows_torch_alone(path):
    assert imported(path) - STDLIB - may_also_know(path) <= {"torch", "cmimtl_kernels"}


def test_reference_knows_torch_alone():
    assert imported(ROOT / "cmimtl_kernels" / "reference.py") == {"torch"}


def test_only_the_fusions_of_the_model_know_the_kernels():
    users = {name_in_checkout(path) for path in MODEL if "cmimtl_kernels" in imported(path)}
    assert users == {"cmimtl/modelling/fusion.py", "cmimtl/experiments/fusions.py"}


# Package of the model -> the packages of the model that it may know beside itself. What lies in
# none and is known to all, GROUND, knows none; names.py names readers and fusions by text.
GROUND = ("files", "messages", "names", "progress")
FLOW = {
    "data": set(),
    "modelling": {"data"},
    "runs": set(),
    "training": {"data", "modelling", "runs"},
    "evaluation": {"data", "modelling", "runs"},
    "experiments": {"data", "modelling", "runs", "evaluation", "cli"},  # it runs commands
}


@pytest.mark.parametrize("package", FLOW)
def test_the_model_packages_know_those_before_them_alone(package):
    known = set()
    for path in (ROOT / "cmimtl" / package).rglob("*.py"):
        known |= {name.split(".")[1] for name in imported_of_model(path)}
    assert {path.parent.name for path in MODEL} == {"cmimtl", *FLOW}
    assert known - {package} <= {*FLOW[package], *GROUND}


def test_what_all_model_packages_know_knows_none():
    for name in GROUND:
        known = imported_of_model(ROOT / "cmimtl" / f"{name}.py")
        assert {name.split(".")[1] for name in known} <= set(GROUND), name


def imported_of_model(path: Path) -> set[str]:
    """The modules and names of the model package that a file imports, as "cmimtl.…"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("cmimtl.")}


def test_imported_of_model_sees_every_form_of_import(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "import cmimtl.a, cmimtl_kernels.b\nfrom cmimtl import c\ndef f():\n"
        "    from cmimtl.d.e import g\n"
    )
    assert imported_of_model(file) == {"cmimtl.a", "cmimtl.c", "cmimtl.d.e.g"}


@pytest.mark.parametrize("name", ["tests", "benchmarks"])
def test_packages_and_build_know_no(name):
    for path in [*KERNELS, *MODEL, ROOT / "setup.py", ROOT / "csrc" / "build_backend.py"]:
        assert name not in imported(path), path


@pytest.mark.parametrize("path", NATIVE, ids=name_in_checkout)
def test_native_code_knows_its_neighbours_alone(path):
    headers, room = included(path), path.parent.name
    other = {"cpu": "cuda/", "cuda": "cpu/"}
    assert not [h for h in headers if room in other and h.startswith((other[room], "../"))]
    if not path.name.startswith(("bindings", "stream")):
        assert not [h for h in headers if h.startswith(("torch/", "ATen/", "c10/"))]
    assert "Python.h" not in headers


def test_importing_the_kernels_needs_nothing_but_torch():
    modules = [
        name_in_checkout(path.with_suffix("")).removesuffix("/__init__").replace("/", ".")
        for path in KERNELS
        if path.stem != "__main__" and (path.stem == "__init__" or path.parent.name != "triton")
    ]
    python(f"""
import importlib, sys, torch
before = {{name.partition(".")[0] for name in sys.modules}}
{GUARD}
for name in {modules}:
    importlib.import_module(name)
after = {{name.partition(".")[0] for name in sys.modules}}
new = after - before - set(sys.stdlib_module_names)
assert new == {{"cmimtl_kernels"}}, new
assert not torch.cuda.is_initialized()
""")


def test_importing_the_model_package_costs_nothing():
    python(f"""
{GUARD}
before = set(sys.modules)
import cmimtl
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
assert new - set(sys.stdlib_module_names) == {{"cmimtl"}}, new
""")


def test_a_name_of_the_model_package_says_what_it_needs():
    python("""
import sys
sys.modules["transformers"] = None  # as if it were not installed
import cmimtl
try:
    cmimtl.CMIMTLConfig
except ModuleNotFoundError as error:
    message = str(error)
assert message == (
    "cmimtl.CMIMTLConfig: transformers must be installed, got none; `pip install 'cmimtl[models]'`,"
    " or `pip install -e '.[models]'` in a checkout, installs it."
), message
""")


def test_model_package_has_no_other_names():
    import cmimtl

    assert set(cmimtl.__all__) <= set(dir(cmimtl))
    with pytest.raises(AttributeError, match="module 'cmimtl' has no attribute 'Config'"):
        cmimtl.Config  # noqa: B018
