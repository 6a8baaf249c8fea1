"""What the documents say is run: the README's code, its commands' form and every doctest."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
    for package in ("cmimtl_kernels", "cmimtl")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_readme_code_runs(block):
    exec(compile(BLOCKS[block], f"README.md, python block {block}", "exec"), {})


def test_readme_has_the_two_commands():
    commands = re.findall(r"^pip install .* && .*$", README, re.MULTILINE)
    assert commands == [
        "pip install torch && pip install -e '.[all]' && cmimtl demo",
        "pip install torch && pip install -e '.[all]' && pytest -n auto --dist loadfile",
    ]


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_public_modules_have_doctests():
    assert {"cmimtl_kernels.ops", "cmimtl_kernels.block", "cmimtl_kernels.backends"} <= set(MODULES)
