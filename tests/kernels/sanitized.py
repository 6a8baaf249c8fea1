"""The CPU library under the address sanitizer and that of undefined behaviour.

`package` makes a copy of the package whose library is built with them, and with faults asleep in
it, as those of the CUDA kernels are (tests/cuda_on_cpu/faults.py). `outcomes` has it take random
calls of the raw ops, without a fault and with each.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.build import ADDRESS

HERE = Path(__file__).parent
CLEAN = "no fault"

# name -> (file of csrc/, a text that it has once, the expression in it, the broken one)
FAULTS = {
    "a tensor's dtype is not checked": (
        "bindings_checks.h", "x.scalar_type() == dtype, op_", "x.scalar_type() == dtype", "true",
    ),
    "a tensor's shape is not checked": (
        "bindings_checks.h", "sizes[i] == shape.begin()[i]", "sizes[i] == shape.begin()[i]", "true",
    ),
    "memory that was freed is not seen": (
        "bindings_checks.h", "bytes_needed <= bytes, op_", "bytes_needed <= bytes", "true",
    ),
    "lengths are not clamped": (
        "cpu/chunk.h", "n < 0 ? 0 : n > length ? length : n", "n < 0 ? 0 : n > length ? length : n",
        "n",
    ),
    "a scan's last line is whole": (
        "cpu/chunk.h", "left < Simd<T>::kLine ? left : Simd<T>::kLine",
        "left < Simd<T>::kLine ? left : Simd<T>::kLine", "Simd<T>::kLine",
    ),
    "a backward scan has one chunk too many at a multiple": (
        "cpu/scan_backward.h", "chunks = ceil_div(total, chunk)", "ceil_div(total, chunk)",
        "total / chunk + 1",
    ),
    "a convolution's last line is whole": (
        "cpu/conv.h", "left < Simd<T>::kLine ? left : Simd<T>::kLine",
        "left < Simd<T>::kLine ? left : Simd<T>::kLine", "Simd<T>::kLine",
    ),
}  # fmt: skip


def level() -> str:
    """The instruction set that runs: the best of this processor, that of Sapphire Rapids as
    AVX-512's, from which it differs in its tuning alone."""
    return torch.ops.cmimtl_cpu.isa().removesuffix("_sapphire_rapids")


def planted_sources(folder: Path) -> Path:
    """A copy of csrc/ without the CUDA kernels, with the faults in it."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc, ignore=shutil.ignore_patterns("cuda", "*.py", "__pycache__"))
    for number, (name, at, right, broken) in enumerate(FAULTS.values(), 1):
        file = csrc / name
        text = file.read_text()
        if text.count(at) != 1:
            raise ValueError(f"planted_sources: {name} must have {at!r} once, got {text.count(at)}")
        choice = at.replace(right, f"(simt::planted({number}) ? {broken} : {right})")
        text = text.replace(at, choice)
        if '#include "planted.h"' not in text:
            text = text.replace("#pragma once\n", '#pragma once\n#include "planted.h"\n', 1)
        file.write_text(text)
    return csrc


def package(folder: Path, csrc: Path, chosen: build.Build, isa: str) -> Path:
    """Make the copy in `folder`, from where Python finds it and the tests, of sources with faults
    in them, for the instruction set that runs."""
    chosen.require()
    flags = [*build.COMMON, "-w", "-Wno-psabi", *chosen.flags, f"-I{csrc}", f"-I{csrc / 'cpu'}"]
    flags.append(f"-I{build.HERE}")  # planted.h
    # That of AVX-512 has AVX2's kernels for float64.
    levels = {"avx512": ["avx512", "avx2"]}.get(isa, [isa])
    objects = build.compile_all([csrc / "cpu" / f"{name}.cpp" for name in levels], flags)
    with_level = [f"-DWITH_{name.upper()}={int(name in levels)}" for name in ("avx512", "baseline")]
    rest = [*flags, *with_level]
    objects += build.compile_all([HERE / "sanitized.cpp"], rest)
    torch_folder = Path(torch.__file__).parent
    rest = [*flags, "-isystem", str(torch_folder / "include")]
    rest.append(f"-DTORCH_TARGET_VERSION={build.torch_target():#x}ULL")
    objects += build.compile_all([csrc / "cpu" / "bindings.cpp"], rest)
    library = [*chosen.flags, "-shared", f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    ours = shutil.ignore_patterns("_c*.so", "_c*.json", "__pycache__")
    shutil.copytree(build.ROOT / "cmimtl_kernels", folder / "cmimtl_kernels", ignore=ours)
    shutil.copy(build.link(objects, library, "_cpu.so"), folder / "cmimtl_kernels")
    (folder / "tests").symlink_to(build.ROOT / "tests")
    return folder


def outcomes(folder: Path, count: int, seed: int) -> dict[str, tuple[int, str]]:
    """Exit status and output of `count` random calls of each op: by the fault that is awake."""
    run = ADDRESS.run(
        [sys.executable, "-m", "tests.kernels.sanitized", folder, count, seed],
        cwd=folder,
        **ADDRESS.preloaded(),
        CMIMTL_CPU_CAPABILITY=level(),
        OMP_NUM_THREADS="1",
        PYTHONPATH=str(folder),
    )
    assert run.returncode == 0, run.stdout
    return json.loads((folder / "outcomes.json").read_text())


def _run_larger() -> int:
    """Checks larger calls than the random ones, both passes. -> their number."""
    from tests.kernels import matrix

    cases = [matrix.Case("causal_conv1d", {"width": 19, "dtype": torch.bfloat16})]
    for op in matrix.SCANS:
        soft, back = {"delta_softplus": True}, {"delta_softplus": True, "reverse": True}
        # In phases, with one segment and with two; results above 4 MiB, which may be stored past
        # the caches.
        long, large = 4200 if op == "selective_scan" else 1030, {"length": 258, "dim": 4096}
        cases += [matrix.Case(op, {"batch": 1, "length": long, "dim": 2, "dstate": 2}, back)]
        cases += [matrix.Case(op, large | {"batch": 1, "dstate": 1}, soft)]
        cases += [
            matrix.Case(op, {"dim": dim, "ngroups": 2, "batch": 3}, soft) for dim in (34, 130)
        ]
        cases += [matrix.Case(op, {"dstate": dstate}, back) for dstate in (32, 100, 256)]
    torch.set_num_threads(7)  # more than there are lines: the scans in phases
    for case in cases:
        matrix.check(case, backend="cpu")
    return len(cases)


def _run_each(folder: Path, count: int, seed: int) -> None:
    """Does the runs, each in a copy of this process, which has imported torch and not yet the
    library."""
    found = {}
    for fault, name in enumerate((CLEAN, *FAULTS)):
        output = folder / "output"
        child = os.fork()
        if child == 0:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            os.environ["CMIMTL_PLANTED_FAULT"] = str(fault)
            import cmimtl_kernels
            from tests.kernels import raw_calls

            assert Path(cmimtl_kernels.__file__).is_relative_to(folder), cmimtl_kernels.__file__
            print(raw_calls.run_all("cmimtl", count, seed), flush=True)
            if name == CLEAN:
                print(_run_larger(), "larger calls", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found[name] = os.waitstatus_to_exitcode(status), output.read_text(errors="replace")
    (folder / "outcomes.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _run_each(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
