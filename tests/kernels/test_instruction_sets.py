"""The CPU kernels of every instruction set, those that this processor lacks included, and on other
machines than this one: how many cores there are changes nothing."""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cmimtl_kernels import _library
from tests.cuda_on_cpu import build

ROOT = Path(__file__).parents[2]
NOT_BUILT = _library.load_libraries()["cpu"]
pytestmark = pytest.mark.skipif(NOT_BUILT is not None, reason=f"the CPU library: {NOT_BUILT}")

ON_X86 = platform.machine() in ("x86_64", "AMD64")
AVX2, AVX512 = {"avx2", "fma"}, {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
# Level, the best first -> what its code needs of the processor, as Linux names it. That of
# avx512_sapphire_rapids is tuned for cores that also have avx512_fp16, but needs no more than
# avx512 does.
LEVELS = {
    "avx512_sapphire_rapids": AVX2 | AVX512,
    "avx512": AVX2 | AVX512,
    "avx2": AVX2,
    "baseline": set(),
}


@functools.cache
def features() -> frozenset[str]:
    """What this processor has, by the kernel and not by the code under test."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def present() -> list[str]:
    """The levels of this processor, the best for it first."""
    return [level for level, needed in LEVELS.items() if needed <= features()]


def expected(cap: str) -> str:
    """The level that runs where ATEN_CPU_CAPABILITY is `cap`."""
    best = "avx512_sapphire_rapids" if "avx512_fp16" in features() else "avx512"
    least = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}.get(cap, best)
    names = list(LEVELS)
    return next(level for level in present() if names.index(level) >= names.index(least))


def python(code: str, folder: Path = ROOT, **environment: str) -> str:
    """What a new process prints; the level is chosen once in one."""
    settings = {"CMIMTL_CPU_CAPABILITY": "", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stdout.strip()


# The ops, and all conversions: through a convolution of width 1, where with weight 1 every value
# comes back, and on 0 the bias, in float32, is what is rounded.
CHECKS = """
import torch
from cmimtl_kernels import causal_conv1d, testing
for op in ("selective_scan", "cross_selective_scan"):
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for dstate in (1, 16, 17):
            inputs = testing.scan_inputs(
                2, 70, 19, dstate, cross=op.startswith("cross"), dtype=dtype
            )
            testing.check_op(op, inputs, backend="cpu", delta_softplus=True)
    for layout in ("sliced", "transposed"):
        inputs = testing.scan_inputs(2, 37, 32, 4, cross=op.startswith("cross"))
        for name in ("u", "v", "t", "delta", "B", "C", "z", "z_v", "z_t"):
            if inputs.get(name) is not None:
                inputs[name] = testing.with_layout(inputs[name], layout)
        testing.check_op(op, inputs, backend="cpu", delta_softplus=True, reverse=True)
    # Above 4 MiB, where results may be stored past the caches, and for few states.
    inputs = testing.scan_inputs(1, 270, 4096, 1, cross=op.startswith("cross"))
    testing.check_op(op, inputs, backend="cpu", delta_softplus=True)
testing.check_op("causal_conv1d", testing.conv_inputs(dim=19), backend="cpu")

bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
wide = torch.randint(-2**31, 2**31, (2**16,), dtype=torch.int64).to(torch.int32).view(torch.float32)
for dtype in (torch.bfloat16, torch.float16):
    x = bits.view(dtype).reshape(1, -1, 16)
    back = causal_conv1d(x, torch.ones(16, 1), backend="cpu")
    assert torch.equal(back.isnan(), x.isnan()) and torch.equal(back.nan_to_num(), x.nan_to_num())
    zero, none = torch.zeros(1, 1, wide.numel(), dtype=dtype), torch.zeros(wide.numel(), 1)
    rounded, expected = causal_conv1d(zero, none, wide, backend="cpu")[0, 0], wide.to(dtype)
    assert torch.equal(rounded.isnan(), expected.isnan())
    assert torch.equal(rounded.nan_to_num(), expected.nan_to_num())
print(torch.ops.cmimtl_cpu.isa())
"""


@pytest.fixture(scope="module")
def any_processor(tmp_path_factory) -> Path:
    """A copy of the package whose kernels have AVX-512's instructions from avx512_on_any/, so that
    every level runs on any x86-64 processor: their arithmetic is held, not that of a processor."""
    build.PLAIN.require()
    folder = tmp_path_factory.mktemp("any")
    cpu, mine = build.CSRC / "cpu", folder / "csrc"
    mine.mkdir()
    target = re.compile(r"^#pragma GCC target.*\n", re.MULTILINE)
    for file in cpu.glob("avx*.cpp"):
        text, found = target.subn("", file.read_text())
        assert found == 1, f"{file.name}: the target must be one pragma"
        (mine / file.name).write_text(text)
    flags = ["-std=c++20", "-w", "-Wno-psabi", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
    flags += ["-fno-math-errno", "-fno-trapping-math", f"-I{build.CSRC}", f"-I{cpu}"]
    emulated = f"-I{Path(__file__).with_name('avx512_on_any')}"
    kernels = [*sorted(mine.glob("*.cpp")), cpu / "baseline.cpp"]
    objects = build.compile_all(kernels, [emulated, *flags])  # -O0: to compile takes the time
    torch_folder = Path(torch.__file__).parent
    everything = ["-D__builtin_cpu_supports(feature)=true"]
    include = ["-isystem", str(torch_folder / "include")]
    version = f"-DTORCH_TARGET_VERSION={build.torch_target():#x}ULL"
    objects += build.compile_all([cpu / "bindings.cpp"], [*flags, *include, version, *everything])
    library = build.link(
        objects, ["-shared", f"-L{torch_folder / 'lib'}", "-ltorch_cpu"], "_cpu.so"
    )
    package = folder / "cmimtl_kernels"
    mine_alone = shutil.ignore_patterns("_c*.so", "_c*.json", "__pycache__")
    shutil.copytree(ROOT / "cmimtl_kernels", package, ignore=mine_alone)
    shutil.copy(library, package)
    return folder


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level, request):
    if level in present():
        assert python(CHECKS, CMIMTL_CPU_CAPABILITY=level) == level
    elif not ON_X86:
        pytest.skip(f"{level} is code for x86-64, this is {platform.machine()}")
    else:
        folder = request.getfixturevalue("any_processor")
        assert python(CHECKS, folder, CMIMTL_CPU_CAPABILITY=level) == level


# Chooses in a child for each setting, as the level is chosen once in a process; by then PyTorch has
# chosen its own, which takes ATEN_CPU_CAPABILITY at its word and dies where there is less.
CHOICES = """
import os, sys
import torch
import cmimtl_kernels
torch.zeros(64) + 1
for setting in sys.stdin.read().split(";"):
    sys.stdout.flush()
    if os.fork() == 0:
        name, _, value = setting.partition("=")
        os.environ[name] = value
        try:
            print(torch.ops.cmimtl_cpu.isa(), flush=True)
        except RuntimeError as error:
            print(str(error).splitlines()[0], flush=True)
        os._exit(0)
    os.wait()
"""


def choices(settings: list[str]) -> list[str]:
    """The level, or the error, with each NAME=VALUE in the environment."""
    code = CHOICES.replace("sys.stdin.read()", repr(";".join(settings)))
    removed = {"CMIMTL_CPU_CAPABILITY": "", "ATEN_CPU_CAPABILITY": ""}
    return python(code, **removed).splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_level_is_what_the_processor_has_and_the_environment_allows():
    """Never more than there is: ATEN_CPU_CAPABILITY only lowers it, CMIMTL_CPU_CAPABILITY names one
    and is refused where it is not there."""
    caps = ["", "default", "avx2", "avx512", "of another system"]
    names = [*LEVELS, "AVX2", "sse9"]
    settings = [f"ATEN_CPU_CAPABILITY={cap}" for cap in caps]
    settings += [f"CMIMTL_CPU_CAPABILITY={name}" for name in names]
    found = dict(zip(settings, choices(settings), strict=True))
    for cap in caps:
        assert found[f"ATEN_CPU_CAPABILITY={cap}"] == expected(cap), cap
    for name in names:
        refused = (
            "cmimtl: CMIMTL_CPU_CAPABILITY must be one of what this processor has"
            f" ({', '.join(present())}), got {name}; unset it for the best of them"
        )
        wanted = name if name in present() else refused
        assert found[f"CMIMTL_CPU_CAPABILITY={name}"] == wanted, name


def test_the_report_says_that_a_level_is_refused():
    code = "from cmimtl_kernels import __main__; print(__main__.report())"
    assert "the kernels: cmimtl: CMIMTL_CPU_CAPABILITY must be one of" in python(
        code, CMIMTL_CPU_CAPABILITY="sse9"
    )


# Operands that only wider instructions than a namespace's have.
WIDER = {
    "baseline": re.compile(r"%[yz]mm|%xmm(1[6-9]|2\d|3[01])\b|%k[0-7]\b"),
    "avx2": re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b"),
}
FP16 = re.compile(r"\tv\w+(ph|sh)\b")  # arithmetic in halves; those that convert are F16C's
CONVERSIONS = re.compile(r"\tvcvtp(h2ps|s2ph)\b")


def room(function: str) -> str:
    """The instruction set that a function of the library may use, by its mangled name."""
    for level in LEVELS:
        if f"3cpu{len(level)}{level}" in function:
            return level
    return "baseline"  # everybody runs it


def violations(disassembly: str) -> tuple[list[str], dict[str, int]]:
    """Instructions that are wider than their function's room, and the vectors of each room."""
    found, used = [], dict.fromkeys(LEVELS, 0)
    function, where = "", "baseline"
    for line in disassembly.splitlines():
        if line.endswith(">:"):
            function = line.split("<", 1)[1]
            where = room(function)
        elif "mm" in line or "%k" in line:
            used[where] += 1
            wider = WIDER.get(where)
            if (wider and wider.search(line)) or (
                FP16.search(line) and not CONVERSIONS.search(line)
            ):
                found.append(f"{function} {line.strip()}")
    return found, used


def compiled_for_more() -> bool:
    """Whether what all levels share is compiled for more than x86-64, as some systems have it."""
    if shutil.which("c++") is None:
        return False
    command = ["c++", *shlex.split(os.environ.get("CXXFLAGS", "")), "-dM", "-E", "-x", "c++"]
    done = subprocess.run([*command, os.devnull], capture_output=True, text=True, check=False)
    return "__AVX__" in done.stdout


@pytest.mark.skipif(not ON_X86, reason="the levels are of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump found")
@pytest.mark.skipif(compiled_for_more(), reason="the compiler's own target has AVX")
def test_no_function_has_instructions_of_more_than_its_level():
    """A processor that lacks an instruction meets none: neither in the kernels of a lower level nor
    in what all of them share, such as a template that the linker took from the best of them."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(_library.HERE / "_cpu.so")]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, used = violations(dump)
    assert not found, found[:10]
    assert all(count > 1000 for count in used.values()), used


def test_wider_instructions_are_seen():
    shared, avx2 = "_ZNSt6vectorIiE4pushEv", "_ZN6cmimtl3cpu4avx27forwardEv"
    avx512 = "_ZN6cmimtl3cpu6avx5127forwardEv"
    lines = {
        shared: "vaddps %ymm0,%ymm1,%ymm2",
        avx2: "vaddps %xmm16,%xmm1,%xmm2",
        avx512: "vaddph %zmm0,%zmm1,%zmm2",
    }
    for function, instruction in lines.items():
        found, _ = violations(f"0000 <{function}>:\n 10:\t{instruction}")
        assert len(found) == 1 and instruction in found[0], function
    for function, instruction in (
        (shared, "addps %xmm0,%xmm1"),
        (avx2, "vfmadd231ps %ymm0,%ymm1,%ymm2"),
        (avx512, "vcvtps2ph $0x8,%zmm0,%ymm1"),
    ):
        assert violations(f"0000 <{function}>:\n 10:\t{instruction}")[0] == []


# Processes that have another number of cores than this machine, as far as they can see. Their
# PyTorch has a thread for each.
CORES = {
    "one": "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "many": "os.sched_getaffinity = lambda process: set(range(32)); os.cpu_count = lambda: 32",
}
TESTS = ["tests/kernels/test_cpu_kernels.py", "tests/model/data/test_phantom.py"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
@pytest.mark.parametrize("cores", CORES)
def test_on_one_core_and_on_many(cores):
    chosen = ["-k", "threads or finer or returns or draw"]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, *TESTS]
    code = f"""
import os, sys
{CORES[cores]}
import pytest, torch
from tests.conftest import cores
code = pytest.main({options!r})
assert torch.get_num_threads() == cores(), torch.get_num_threads()
sys.exit(code)
"""
    alone = {"PYTEST_XDIST_WORKER_COUNT": "1", "PYTEST_ADDOPTS": "", "OMP_WAIT_POLICY": "passive"}
    printed = python(code, **alone)
    assert re.search(r"\d{2,} passed", printed) and "skipped" not in printed, printed
