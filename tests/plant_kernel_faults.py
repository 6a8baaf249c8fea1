"""Plants small faults in the C++ of the kernels, and reports which the tests notice.

    python -m tests.plant_kernel_faults cpu --count 40 --seed 1 --report faults.jsonl

does for csrc/cpu or csrc/cuda what plant_faults.py does for Python. All faults that are drawn stand
in one build of the library, asleep (cuda_on_cpu/planted.h), so one compilation does for all, and
the copy of a process that runs the tests wakes one. The CPU library has the instruction set of this
processor alone; the CUDA kernels run on the CPU.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import plant_faults
from tests.cuda_on_cpu import build
from tests.kernels import sanitized
from tests.plant_faults import Fault

TIMEOUT = 120  # seconds: no single test of these takes so long

# The quickest first.
TESTS = {
    "cpu": [
        "kernels/test_values.py",
        "kernels/test_scan.py",
        "kernels/test_raw_calls.py",
        "kernels/test_cpu_kernels.py",
        "kernels/test_block.py",
    ],
    "cuda": [
        "cuda_on_cpu/test_kernels.py",
        "cuda_on_cpu/test_values.py",
        "cuda_on_cpu/test_plan.py",
        "cuda_on_cpu/test_errors.py",
    ],
}

_OPERAND = r"(?:[A-Za-z_][\w:]*(?:(?:\.|->)\w+)*(?:\[[^][]*\])?(?:\([^()]*\))?|\d+)"
_BEFORE = r"(?:(?<=[,;?:] )|(?<=\()|(?<=return )|(?<= = ))"  # where an expression begins
_AFTER = r"(?=[;,)]| [?:] )"
_BINARY = re.compile(rf"{_BEFORE}({_OPERAND}) ([<>=!]=|&&|\|\||[-+*/<>]) ({_OPERAND}){_AFTER}")
_CHOICE = re.compile(rf"{_BEFORE}({_OPERAND}) \? ({_OPERAND}) : ({_OPERAND})(?=[;,)])")
_NUMBER = re.compile(r"(?:(?<= [-+=,] )|(?<=, )|(?<=\())(\d+)(?=[;,)])")
_EXTREME = re.compile(r"\b((?:std::)?)(min|max)(\([^()]*\))")
_IF = re.compile(r"\bif \(")
_STATEMENT = re.compile(r"^(\s+)([A-Za-z_][^\s=({]*(?: [-+*/|&]?= |\()[^{}]*;)$")
_OTHER = {
    "+": "-", "-": "+", "*": "+", "/": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "&&": "||", "||": "&&",
}  # fmt: skip
# What is settled as the library is compiled, and what a message says.
_LEFT_OUT = re.compile(
    r'constexpr|static_assert|template|typename|^\s*(using|enum|case|#|//|struct|inline const)|"'
)


def changes(line: str) -> Iterator[tuple[str, str]]:
    """Each fault of a line: the line with it, and the line with a choice of it, with an N for its
    number."""
    code, mark, comment = line.partition("  //")
    if _LEFT_OUT.search(code):
        return

    def at(span: tuple[int, int], broken: str, choice: str) -> tuple[str, str]:
        before, after = code[: span[0]], code[span[1] :] + mark + comment
        return before + broken + after, before + choice + after

    def expressions() -> Iterator[tuple[re.Match, str]]:
        for match in _BINARY.finditer(code):
            left, operator, right = match.groups()
            yield match, f"{left} {_OTHER[operator]} {right}"
        for match in _CHOICE.finditer(code):
            yield match, match[2]
            yield match, match[3]
        for match in _NUMBER.finditer(code):
            yield match, str(int(match[1]) + 1)
        for match in _EXTREME.finditer(code):
            yield match, match[1] + {"min": "max", "max": "min"}[match[2]] + match[3]

    for match, broken in expressions():
        choice = f"(simt::planted(N) ? {broken} : {match[0]})"
        yield at(match.span(), broken, choice)
    for match in _IF.finditer(code):
        end = _closing(code, match.end())
        condition = code[match.end() : end]
        if end is not None and " = " not in condition and ";" not in condition:
            span = match.end(), end
            yield at(span, "true", f"simt::planted(N) || ({condition})")
            yield at(span, "false", f"!simt::planted(N) && ({condition})")
    if (match := _STATEMENT.match(code)) and code.count("(") == code.count(")"):
        if not match[2].startswith(("return", "if", "for", "while", "else", "do ")):
            yield (
                match[1] + ";" + mark + comment,
                at(match.span(2), "", f"if (!simt::planted(N)) {match[2]}")[1],
            )


def _closing(code: str, at: int) -> int | None:
    """Where the parenthesis before `at` is closed."""
    depth = 1
    for index in range(at, len(code)):
        depth += {"(": 1, ")": -1}.get(code[index], 0)
        if depth == 0:
            return index
    return None


def faults_of(file: Path) -> list[tuple[Fault, str]]:
    """Every fault of a file, with its line that has the choice."""
    found = []
    lines = file.read_text().splitlines()
    name = file.relative_to(build.ROOT).as_posix()
    for number, line in enumerate(lines, 1):
        # A statement may go that stands alone, not as the end of another or as the branch of an if.
        alone = number > 1 and re.search(r"([;{}:]|^)$|//", lines[number - 2].strip())
        for now, choice in changes(line):
            if now.strip().startswith(";") and not alone:
                continue
            fault = Fault(name, number, number, line.strip(), now.strip())
            found.append((fault, choice))
    return found


def planted(csrc: Path, faults: list[tuple[Fault, str]]) -> None:
    """Writes the faults into a copy of csrc/, one a line."""
    for name in {fault.file for fault, _ in faults}:
        path = csrc.parent / name
        lines = path.read_text().split("\n")
        for number, (fault, choice) in enumerate(faults, 1):
            if fault.file == name:
                lines[fault.line - 1] = choice.replace("planted(N)", f"planted({number})")
        path.write_text('#include "planted.h"\n#line 1\n' + "\n".join(lines))


def drawn(kind: str, count: int, seed: int) -> list[tuple[Fault, str]]:
    """Faults that compile, one a line at most."""
    folder = build.CSRC / kind
    files = [f for f in sorted(folder.iterdir()) if f.suffix in (".h", ".cuh", ".cu", ".cpp")]
    every = [pair for file in files for pair in faults_of(file)]
    random.Random(seed).shuffle(every)
    found = list({(fault.file, fault.line): (fault, choice) for fault, choice in every}.values())
    found = found[: count + count // 2]
    with tempfile.TemporaryDirectory() as scratch:
        while True:
            csrc = _copy(Path(scratch))
            planted(csrc, found)
            said = _trouble(kind, csrc)
            if not said:
                return found[:count]
            wrong = {
                (f"csrc/{n}", int(line)) for n, line in re.findall(r"csrc/([\w/.]+):(\d+)", said)
            }
            left = [pair for pair in found if (pair[0].file, pair[0].line) not in wrong]
            if len(left) == len(found):
                raise RuntimeError(f"drawn: the faults must compile, got {said[-3000:]}")
            found = left


def _copy(folder: Path) -> Path:
    csrc = folder / "csrc"
    shutil.rmtree(csrc, ignore_errors=True)
    shutil.copytree(build.CSRC, csrc, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return csrc


def _trouble(kind: str, csrc: Path) -> str:
    """What the compiler says of sources that it does not take."""
    flags = [*build.device_flags(build.PLAIN, csrc), *build.binding_flags(), "-w", "-march=native"]
    flags += ["-O0", "-fsyntax-only", f"-I{csrc / kind}", "-x", "c++"]
    flags += ["-DWITH_AVX512=1", "-DWITH_BASELINE=1"]
    if kind == "cpu":
        sources = [csrc / kind / f"{name}.cpp" for name in (level(), "bindings")]
    else:
        sources = [f for f in (csrc / kind).iterdir() if f.suffix in (".cu", ".cpp")]

    def check(source: Path) -> str:
        command = [build.CXX, *flags, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""

    with ThreadPoolExecutor(build.JOBS) as pool:
        return "".join(pool.map(check, sorted(sources)))


@functools.cache
def level() -> str:
    """The instruction set that runs, asked of another process: this one's copies import others."""
    ask = "import cmimtl_kernels; from tests.kernels import sanitized; print(sanitized.level())"
    command = [sys.executable, "-c", ask]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cpu(folder: Path, csrc: Path) -> Callable[[], None]:
    """Builds the CPU library in a copy of the package. -> what has a process use it"""
    sanitized.package(folder, csrc, build.PLAIN, level())

    def prepare() -> None:
        os.environ["CMIMTL_CPU_CAPABILITY"] = level()
        sys.path.insert(0, str(folder))
        import cmimtl_kernels

        assert Path(cmimtl_kernels.__file__).is_relative_to(folder), cmimtl_kernels.__file__

    return prepare


def cuda(folder: Path, csrc: Path) -> Callable[[], None]:
    """Builds the CUDA library for a CPU. -> what has a process use it"""
    library = build.kernels(build.PLAIN, csrc)

    def prepare() -> None:
        os.environ["CMIMTL_CUDA_ON_CPU_LIBRARY"] = str(library)

    return prepare


def main(arguments: list[str]) -> int:
    options = plant_faults.parser(__doc__.splitlines()[0])
    options.add_argument("kind", choices=("cpu", "cuda"), help="which kernels")
    given = options.parse_args(arguments)
    plant_faults.TIMEOUT = TIMEOUT
    tests = [str(build.ROOT / "tests" / name) for name in TESTS[given.kind]]
    # The sanitized library is another, with faults of its own.
    tests += ["-k", "not test_no_call_leaves and not test_fault_is_seen"]
    plant_faults.import_what_tests_do()
    pairs = drawn(given.kind, given.count, given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        csrc = _copy(Path(scratch))
        planted(csrc, pairs)
        use = {"cpu": cpu, "cuda": cuda}[given.kind](Path(scratch), csrc)
        numbers = {fault: number for number, (fault, _) in enumerate(pairs, 1)}

        def noticed(awake: int) -> bool:
            def prepare() -> None:
                os.environ["CMIMTL_PLANTED_FAULT"] = str(awake)
                use()

            return plant_faults.fails(prepare, tests, given.budget)

        if noticed(0):
            raise RuntimeError("the tests must pass while every fault is asleep")
        faults = [fault for fault, _ in pairs]
        return 1 if plant_faults.report(faults, lambda f: noticed(numbers[f]), given.report) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
