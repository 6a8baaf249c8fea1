"""Reads compiled NVIDIA code: instructions, loops, registers. Nothing is run.

The tool is cuobjdump, of a CUDA toolkit or of the triton wheel. nvdisasm would name the targets of
branches, but takes ten times as long.
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

# Compute capability -> the most warps, blocks and bytes of shared memory on one multiprocessor, SM.
# Source: CUDA C++ Programming Guide, technical specifications per compute capability. An SM has
# 65536 registers in four parts. The system takes a KiB of shared memory for each block.
RESIDENT = {
    80: (64, 32, 164 << 10),
    90: (64, 32, 228 << 10),
    100: (64, 32, 228 << 10),
    120: (48, 24, 100 << 10),
}
RESERVED = 1 << 10

# Cycles for which a warp's MUFU instruction occupies its quarter of an SM: an SM gives 16 results a
# cycle (the guide's table of arithmetic throughput), its quarter 4, and a warp has 32 lanes.
CYCLES_PER_MUFU = 8

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"0x([0-9a-f]+)$")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def _width(opcode: str) -> int:
    """Bytes that one thread's access moves: 16 for "LDG.E.128.CONSTANT", 4 where no part tells."""
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
        """How many instructions have an opcode that begins like a regular expression."""
        return sum(bool(re.match(pattern, i.opcode)) for i in self.instructions)

    def bytes(self, pattern: str) -> int:
        """How many bytes these instructions move for one thread."""
        return sum(_width(i.opcode) for i in self.instructions if re.match(pattern, i.opcode))

    @property
    def slots(self) -> int:
        """Issue slots that one iteration takes from one warp: one for each instruction."""
        return len(self.instructions) - self.count("NOP")

    def per_element(self, elements: int) -> dict[str, float]:
        """Figures of the loop, one iteration of which does this many elements."""
        mufu_cycles = CYCLES_PER_MUFU * self.count("MUFU")
        return {
            "slots_per_element": self.slots / elements,
            "mufu_cycles_per_element": mufu_cycles / elements,
            "ex2_per_element": self.count(r"MUFU\.EX2") / elements,
            "shared_per_element": self.count("LDS|STS") / elements,
            "shuffles_per_element": self.count("SHFL") / elements,
            "global_bytes_per_element": self.bytes(GLOBAL) / elements,
        }


# Opcodes that reach global memory; LDGSTS copies from there to shared memory.
GLOBAL = r"(LDG|LDGSTS|STG)(\.|$)"


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin."""

    capability: int
    registers: int
    shared_bytes: int  # static; a launch may add dynamic shared memory
    instructions: tuple[Instruction, ...]

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        """First and last address of each loop, sorted.

        A loop lies between a branch back and the target of this branch: the compiler keeps the
        instructions of a loop together.
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
        """The loops that have no other loop in them, in the order of their addresses."""
        return [self._loop(*r) for r in self._ranges if not self._inside(r)]

    def loops_without(self, pattern: str) -> list[Loop]:
        """Every loop without those of its inner loops that have an instruction like `pattern`. Its
        other inner loops count as if they ran once in each iteration."""
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
        """How many bytes one thread writes and reads because registers were spilled."""
        return Loop(self.instructions).bytes("STL|LDL")

    @property
    def atomics(self) -> Counter:
        """How many atomic instructions on floats there are, by opcode."""
        return Counter(
            i.opcode
            for i in self.instructions
            if re.match(r"(RED|ATOM)", i.opcode) and re.search(r"\.(F16|F32|F64|BF16)", i.opcode)
        )

    def launched(self, threads: int, dynamic_bytes: int) -> dict[str, int]:
        """Figures of the kernel, launched in blocks of this many threads with this many bytes of
        dynamic shared memory. `warps_per_sm` is limited by registers, shared memory and the most
        warps and blocks. A quarter of an SM gives a warp its registers, 256 at a time."""
        warps, blocks, shared = RESIDENT[self.capability]
        of_block = -(-threads // 32)
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = 65536 // 4 // per_warp * 4 // of_block
        shared_bytes = self.shared_bytes + dynamic_bytes
        by_shared = shared // (shared_bytes + RESERVED)
        resident = min(warps // of_block, blocks, by_registers, by_shared)
        return {
            "registers": self.registers,
            "spill_bytes": self.spill_bytes,
            "float_atomics": self.atomics.total(),
            "shared_bytes": shared_bytes,
            "warps_per_sm": of_block * resident,
        }


def read(cubin: Path, capability: int) -> Kernel:
    """The only kernel of a cubin."""
    (kernel,) = read_all(cubin, capability).values()
    return kernel


def read_library(library: Path, wanted: re.Pattern) -> dict[tuple[str, int], Kernel]:
    """The kernels of a shared library whose mangled names match a pattern, by name and compute
    capability."""
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
    """The kernels of a cubin whose mangled names match a pattern, by name."""
    usage = re.findall(r"Function (\S+):\s*\n(.*)", _run("cuobjdump", "-res-usage", cubin))
    figures = {
        name: {what: int(value) for what, value in re.findall(r"(\w+)(?:\[\d\])?:(\d+)", line)}
        for name, line in usage
        if wanted.search(name)
    }
    if not figures:
        return {}
    code = _functions(_run("cuobjdump", "-sass", "-fun", ",".join(figures), cubin))
    # For 9.0 and later the compiler adds the system's KiB to a block's shared memory.
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
