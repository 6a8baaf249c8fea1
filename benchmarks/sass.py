"""Reading compiled NVIDIA code: instructions, innermost loops, registers. Nothing is run.

Tool: cuobjdump, of a CUDA toolkit or of the triton wheel. nvdisasm, which names the targets of
branches, analyses the flow of what it prints and takes ten times as long.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Compute capability -> most warps, blocks and bytes of shared memory on one SM (CUDA C++
# programming guide, table "technical specifications per compute capability"); each has 65536
# registers in four parts. Each block takes a KiB of shared memory for the system beside its own.
RESIDENT = {
    80: (64, 32, 164 << 10),
    90: (64, 32, 228 << 10),
    100: (64, 32, 228 << 10),
    120: (48, 24, 100 << 10),
}
RESERVED = 1 << 10

# Cycles for which a warp's MUFU instruction occupies its quarter of an SM: 16 results a clock and
# SM (the guide's table of arithmetic throughput).
CYCLES_PER_MUFU = 8

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"0x([0-9a-f]+)$")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def _width(opcode: str) -> int:
    """Bytes that one thread's access moves: a part of "LDG.E.128.CONSTANT" says so, or it is 4."""
    return next((_BYTES[part] for part in opcode.split(".") if part in _BYTES), 4)


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str  # with its suffixes: "MUFU.EX2"
    operands: str


@dataclass(frozen=True)
class Loop:
    """The instructions from a label to the branch back to it."""

    instructions: tuple[Instruction, ...]

    def count(self, pattern: str) -> int:
        """Instructions whose opcode starts with a regular expression."""
        return sum(bool(re.match(pattern, i.opcode)) for i in self.instructions)

    def bytes(self, pattern: str) -> int:
        """What a thread's memory accesses whose opcode starts with the expression move."""
        return sum(_width(i.opcode) for i in self.instructions if re.match(pattern, i.opcode))

    @property
    def slots(self) -> int:
        """Issue slots of one iteration of one warp: its instructions."""
        return len(self.instructions) - self.count("NOP")


# Opcodes that reach global memory, asynchronous copies to shared memory among them.
GLOBAL = r"(LDG|LDGSTS|STG)(\.|$)"


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin."""

    capability: int
    registers: int
    shared_bytes: int  # static: what a launch adds is not written in the code
    instructions: tuple[Instruction, ...]

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        """First and last address of each loop, sorted.

        A loop is what lies between the target of a branch back and the branch; the compiler keeps
        its blocks together.
        """
        ranges = set()
        for instruction in self.instructions:
            target = _TARGET.search(instruction.operands)
            if instruction.opcode.startswith("BRA") and target:
                begin = int(target.group(1), 16)
                if begin < instruction.address:
                    ranges.add((begin, instruction.address))
        return sorted(ranges)

    def _inside(self, outer: tuple[int, int]) -> list[tuple[int, int]]:
        return [r for r in self._ranges if r != outer and outer[0] <= r[0] and r[1] <= outer[1]]

    def _loop(self, begin: int, end: int) -> Loop:
        return Loop(tuple(i for i in self.instructions if begin <= i.address <= end))

    @cached_property
    def innermost_loops(self) -> list[Loop]:
        """Loops without another one in them, in the order of their addresses."""
        return [self._loop(*r) for r in self._ranges if not self._inside(r)]

    def loops_without(self, pattern: str) -> list[Loop]:
        """Every loop, less the loops in it that have an instruction like `pattern`; the other loops
        in it are counted as run once for each of its iterations."""
        result = []
        for outer in self._ranges:
            left_out = [r for r in self._inside(outer) if self._loop(*r).count(pattern)]
            kept = [
                i
                for i in self._loop(*outer).instructions
                if not any(begin <= i.address <= end for begin, end in left_out)
            ]
            result.append(Loop(tuple(kept)))
        return result

    @property
    def spill_bytes(self) -> int:
        """Bytes of a thread that spilled registers are written to and read from."""
        return Loop(self.instructions).bytes("STL|LDL")

    @property
    def atomics(self) -> Counter:
        """Atomic operations on floats, by opcode."""
        return Counter(
            i.opcode
            for i in self.instructions
            if re.match(r"(RED|ATOM)", i.opcode) and re.search(r"\.(F16|F32|F64|BF16)", i.opcode)
        )

    def resident(self, threads: int, dynamic_bytes: int) -> dict[str, int]:
        """The shared memory of a block of a launch, and the warps on an SM that registers, shared
        memory and the most warps and blocks allow: 256 registers at a time are given to a warp,
        from the quarter of an SM that it lives in."""
        warps, blocks, shared = RESIDENT[self.capability]
        of_block = -(-threads // 32)
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = 65536 // 4 // per_warp * 4 // of_block
        shared_bytes = self.shared_bytes + dynamic_bytes
        by_shared = shared // (shared_bytes + RESERVED)
        resident = min(warps // of_block, blocks, by_registers, by_shared)
        return {"shared_bytes": shared_bytes, "warps_per_sm": of_block * resident}


def read(cubin: Path, capability: int) -> Kernel:
    """The kernel of a cubin that holds one."""
    (kernel,) = read_all(cubin, capability).values()
    return kernel


def read_library(library: Path, wanted: re.Pattern) -> dict[tuple[str, int], Kernel]:
    """The kernels of a shared library whose mangled names a pattern is found in, by name and
    compute capability."""
    kernels = {}
    with tempfile.TemporaryDirectory() as folder:
        _run("cuobjdump", "-xelf", "all", library.resolve(), cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))
        capabilities = [int(re.search(r"\.sm_(\d+)a?\.", cubin.name).group(1)) for cubin in cubins]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            read = pool.map(functools.partial(read_all, wanted=wanted), cubins, capabilities)
            for capability, found in zip(capabilities, read, strict=True):
                kernels |= {(name, capability): kernel for name, kernel in found.items()}
    return kernels


def read_all(
    cubin: Path, capability: int, wanted: re.Pattern = re.compile("")
) -> dict[str, Kernel]:
    """The kernels of a cubin whose mangled names a pattern is found in, by name."""
    usage = re.findall(r"Function (\S+):\s*\n(.*)", _run("cuobjdump", "-res-usage", cubin))
    figures = {
        name: {what: int(value) for what, value in re.findall(r"(\w+)(?:\[\d\])?:(\d+)", line)}
        for name, line in usage
        if wanted.search(name)
    }
    if not figures:
        return {}
    code = _functions(_run("cuobjdump", "-sass", "-fun", ",".join(figures), cubin))
    # From 9.0 on the compiler counts what is reserved of each block.
    reserved = RESERVED if capability >= 90 else 0
    return {
        name: Kernel(
            capability, figure["REG"], max(0, figure["SHARED"] - reserved), _parse(code[name])
        )
        for name, figure in figures.items()
    }


def _functions(disassembly: str) -> dict[str, str]:
    """The code of each function by its mangled name."""
    parts = re.split(r"^\s*Function : (\S+)$", disassembly, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _parse(code: str) -> tuple[Instruction, ...]:
    found = filter(None, map(_INSTRUCTION.match, code.splitlines()))
    return tuple(Instruction(int(i.group(1), 16), i.group(2), i.group(3)) for i in found)


def _run(name: str, *arguments: object, cwd: str | None = None) -> str:
    command = [_tool(name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def _tool(name: str) -> str:
    found = importlib.util.find_spec("triton")
    roots = found.submodule_search_locations if found else []
    folders = [Path(p) / "backends" / "nvidia" / "bin" for p in roots]
    for candidate in [*(str(folder / name) for folder in folders), name]:
        if path := shutil.which(candidate):
            return path
    raise FileNotFoundError(
        f"sass: {name} must be there, got none; it comes with triton and with the CUDA toolkit"
    )
