"""A tree to build in, for the tests of the build."""

import shutil

import pytest

from tests.kernels.builds import GOOD, ROOT, write


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
