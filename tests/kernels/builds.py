"""Copies of the tree with sources of one line, and their builds."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from cmimtl_kernels import _library

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


def fake_torch(folder, version, cuda):
    (folder / "torch").mkdir()
    text = f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n"
    (folder / "torch/version.py").write_text(text)
    return folder / "torch"
