"""What the documents say is run, and equations in docstrings stand as they were written."""

import ast
import doctest
import importlib.util
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cmimtl_kernels import __version__

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


PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING", "CHANGELOG")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    places = "cmimtl|cmimtl_kernels|csrc|tests|benchmarks|examples"
    paths = re.findall(rf"`((?:{places})/[\w./]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_site_builds(tmp_path):
    """Strictly: no link is broken, and every docstring can be parsed."""
    for package in ("material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; `pip install -e '.[docs]'` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "never stored" in (tmp_path / "api/kernels/index.html").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version():
    version = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version[1] == __version__


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_public_modules_have_doctests():
    assert {"cmimtl_kernels.ops", "cmimtl_kernels.block", "cmimtl_kernels.backends"} <= set(MODULES)


# Equations, listings and diagrams in docstrings
#
# They stand in blocks: after an empty line, indented by four columns more than the text before.
# ruff format leaves docstrings alone, and what wraps text (docformatter, an editor, a person)
# leaves such a block alone. The rules below find a block that was wrapped or joined all the same.

WIDTH = 100
NATIVE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
SOURCES = sorted(p for name in ("cmimtl_kernels", "cmimtl") for p in (ROOT / name).rglob("*.py"))


def docstrings(source: str):
    """(line, docstring) of a module and of everything in it, public or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def split_blocks(text: str) -> tuple[list[list[str]], list[str]]:
    """The blocks of a docstring, and its other lines."""
    lines = inspect.cleandoc(text).splitlines()
    blocks, others = [], []
    place = 0
    while place < len(lines):
        line = lines[place]
        before = next((x for x in reversed(lines[:place]) if x.strip()), "")
        if place and line.strip() and not lines[place - 1] and indent(line) >= indent(before) + 4:
            end = place
            while end < len(lines) and (not lines[end] or indent(lines[end]) >= indent(line)):
                end += 1
            blocks.append([x for x in lines[place:end] if x])
            place = end
        else:
            others.append(line)
            place += 1
    return blocks, others


def definitions(line: str) -> int:
    """How many ' = ' of a line are outside of brackets."""
    while (inner := re.sub(r"\([^()]*\)|\[[^][]*\]|\{[^{}]*\}|<[^<>]*>", "", line)) != line:
        line = inner
    return len(re.findall(r"(?<=\s)=(?=\s)", line))


def joined(text: str, margin: int = 0) -> list[str]:
    """What of a docstring looks wrapped or joined; margin: columns before its text."""
    blocks, others = split_blocks(text)
    found = [
        f"aligned columns outside of a block: {line}"
        for line in others
        if re.search(r"[^\s.] {2,}\S", line) and not line.lstrip().startswith(">>>")
    ]
    for block in blocks:
        found += [f"two definitions in a line: {line}" for line in block if definitions(line) > 1]
        column = None  # in which the text of a row goes on
        for line, following in itertools.pairwise(block):
            place = indent(following)
            if place > indent(line) and re.match(r"  \S", line[place - 2 :]):
                column = place
            own_row = definitions(following) or re.search(r"\S {2,}\S", following)
            # Where text was wrapped, the next word would not have fitted.
            full = margin + len(line) + 1 + len(following.split()[0]) > WIDTH
            if full and not own_row and place != column:
                found.append(f"wrapped: {line}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_block_of_a_docstring_is_joined(path):
    for line, text in docstrings(path.read_text(encoding="utf-8")):
        margins = [indent(x) for x in text.splitlines()[1:] if x.strip()]
        assert joined(text, min(margins, default=0)) == [], f"line {line}"


JOINED = {
    "aligned columns outside": """Run one scan.

    x            = v[0] * t[0], v[0] + t[0], v[1] * t[1], v[1] + t[1], …      2 * length steps,
    never stored y            = selective_scan(x, delta, A, B, C, D) g[l]         = silu(z_v[l] *
    z_t[l])                                      optional out_v, out_t = y[2l] * g[l], y[2l + 1] *
    g[l]
    """,
    "two definitions": """Fuse.

        [u, z] = in_proj(n) u = silu(conv1d(u))

    Source: somebody.
    """,
    "wrapped": """CMI-MTL.

    pixel_values -> VisionEncoder ----> QFormer (with the question) -> visual stream \\
                                                                                     fusion ->
                                                                                     classifier

Source: somebody.
    """,
}


@pytest.mark.parametrize("kind", JOINED)
def test_joined_blocks_are_found(kind):
    """Each of these stood in a docstring once, or could."""
    assert any(kind in what for what in joined(JOINED[kind], 0 if kind == "wrapped" else 4))


def test_docstrings_are_markdown():
    """The site renders them as Markdown, which knows neither roles nor a block after '::'."""
    for path in SOURCES:
        for line, text in docstrings(path.read_text(encoding="utf-8")):
            found = re.findall(r":\w+:`|\w::$", text, re.MULTILINE)
            assert not found, f"{path.relative_to(ROOT)}, line {line}: {found}"


def too_long(text: str, limit: int) -> list[int]:
    """The lines of C++ that have more than `limit` columns, or more than WIDTH with a comment."""
    lines = enumerate(text.splitlines(), 1)
    return [n for n, line in lines if len(line) > (WIDTH if "//" in line else limit)]


def test_lines_of_cpp_are_within_the_limit():
    """clang-format wraps code, and is told to leave comments as they are."""
    limit = int(re.search(r"ColumnLimit: (\d+)", (ROOT / ".clang-format").read_text())[1])
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in NATIVE_SUFFIXES]
    assert {path.parent.name for path in files} == {"csrc", "cpu", "cuda"}
    for path in files:
        assert too_long(path.read_text(encoding="utf-8"), limit) == [], path.relative_to(ROOT)


def test_long_lines_of_cpp_are_seen():
    code, comment = "x = " + "y" * 97, "// " + "y" * 98
    assert too_long(f"{code}\n{comment}\n", 120) == [2]
    assert too_long(f"{code}{code}\n{code}  // why\n// {'y' * 97}\n", 120) == [1, 2]
