"""Native build: csrc/cpu -> cmimtl_kernels/_cpu.so, csrc/cuda -> cmimtl_kernels/_cuda.so.

Both libraries use PyTorch's stable ABI and no Python API: one build serves every Python and every
torch from MIN_TORCH on, and torch is not imported here. Beside each library lies a small JSON
record of how it was built, or of why it was not; cmimtl_kernels/_library.py reads it. A library
that cannot be built does not fail the install: `python -m cmimtl_kernels` tells why.

Environment variables:
    CMIMTL_REQUIRE_EXT=1    a library that should be built and fails to fails the install
    CMIMTL_CUDA=0|1         never, or always, build CUDA; the default builds it where nvcc is found
                            and torch is a CUDA build
    TORCH_CUDA_ARCH_LIST    compute capabilities to compile for, "8.0;9.0+PTX"
    CMIMTL_CUDA_ARCHS       where that is not set: "local", for the GPUs of this machine, or for any
                            where it has none; or "all", for everybody's. An editable install and
                            build_ext --inplace are "local" unless set, a wheel is "all"
    MAX_JOBS                files compiled at once; the number of cores unless set
    CXX, CXXFLAGS, NVCC_FLAGS, CUDA_HOME    as usual
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import (  # noqa: E402
    MIN_TORCH,
    find_gpus,
    find_nvcc,
    find_torch,
    torch_version,
)

MIN_CAPABILITY = (8, 0)  # the first whose GPUs copy to shared memory in the background
# For everybody: one for each generation, and PTX of the last for those to come.
ALL_ARCHS = ("8.0", "9.0", "10.0", "12.0")
# What one core takes for a library, to say how long it will be: with CUDA, and for each target.
CORE_SECONDS = {"cpu": (68, 0), "cuda": (50, 160)}
STANDARD = "-std=c++20"
HOST_FLAGS = ["-O2", "-fPIC", "-fvisibility=hidden"]
# The kernels are written in vectors and unrolled where that matters, so -O3 makes of their loops
# what -O2 does, and takes half as long again to copy the others. Loops over states, whose number
# only a call knows, are to become vectors all the same.
VECTOR_FLAGS = ["-ftree-vectorize", "-fvect-cost-model=dynamic"]
# Takes two thirds of the time, for files in which no call spends any: the bindings, and on x86-64,
# where AVX2's kernels run on every processor since 2013, those for any other.
QUICK_FLAGS = ["-O1"]
QUICK_FILES = ["bindings.cpp", *(["baseline.cpp"] if platform.machine() == "x86_64" else [])]
# No errno and no trap to keep lets loops vectorise; contraction lets a * b + c be one FMA. None of
# them changes what NaN and infinity do.
MATH_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# The oldest torch to run under: major in bits 56-63, minor in bits 48-55.
TARGET = f"-DTORCH_TARGET_VERSION={MIN_TORCH[0] << 56 | MIN_TORCH[1] << 48:#x}ULL"


class NotBuilt(Exception):
    """Nothing to build here, for a reason that is no failure."""


def env(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def run(command: list[str], echo: bool = True) -> str:
    """Run a command in ROOT, echoing it and its output line by line as it comes.

    Raises:
        RuntimeError: it failed. The first line is the telling one of its output, then all of it.
    """
    if echo:
        print(shlex.join(command), flush=True)
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if echo:
                print(line, end="", flush=True)
    output = "".join(lines)
    if process.returncode:
        lines = output.splitlines() or [f"{command[0]} exited with {process.returncode}"]
        telling = re.compile(r"\berror:|cannot find|not found|No such file", re.IGNORECASE)
        summary = next(filter(telling.search, lines), lines[-1]).strip()
        raise RuntimeError(f"{summary}\n{output[-8000:]}")
    return output


def sources(*patterns: str) -> list[str]:
    """Files of csrc/ that match, relative to ROOT, sorted."""
    found = {path for pattern in patterns for path in (ROOT / "csrc").glob(pattern)}
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.is_file())


def architectures(nvcc: str, local: bool) -> tuple[list[str], str]:
    """Compute capabilities to compile for, such as "9.0" or "12.0+PTX", and why these.

    Args:
        nvcc: the compiler, which may not know them all.
        local: for this machine, unless CMIMTL_CUDA_ARCHS says otherwise.

    Raises:
        NotBuilt: no GPU of this machine can run the kernels.
        RuntimeError: a setting is none, or nvcc is too old for all of them.
    """
    if wanted := env("TORCH_CUDA_ARCH_LIST").strip():
        archs = re.split(r"[;, ]+", wanted)
        for arch in archs:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
                raise RuntimeError(
                    f"TORCH_CUDA_ARCH_LIST must hold numbers such as 9.0 or 12.0+PTX, got {arch!r}"
                )
        return archs, "TORCH_CUDA_ARCH_LIST"
    setting = env("CMIMTL_CUDA_ARCHS", "local" if local else "all")
    if setting not in ("local", "all"):
        raise RuntimeError(f"CMIMTL_CUDA_ARCHS must be local, all or unset, got {setting!r}")
    found = re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"], echo=False))
    known = {(int(number[:-1]), int(number[-1])) for number in found}
    known = {arch for arch in known if arch >= MIN_CAPABILITY}
    if not known:
        raise RuntimeError(f"{nvcc} must know {dotted(MIN_CAPABILITY)} or one after it, got none")
    if setting == "local":
        gpus, none = find_gpus()
        if able := {gpu for gpu in gpus if gpu >= MIN_CAPABILITY}:
            return for_gpus(able, known), "the GPUs of this machine"
        if gpus and env("CMIMTL_CUDA") != "1":
            raise NotBuilt(
                f"the GPUs of this machine have compute capability {dotted(max(gpus))}, the kernels"
                f" need {dotted(MIN_CAPABILITY)} (CMIMTL_CUDA=1 builds them all the same)"
            )
        # Code of the oldest GPUs that the kernels run on, which all of 8.x run, and PTX beside it,
        # which the driver of any newer one compiles at the first call of a kernel, and keeps. A
        # newer target would leave A100 and RTX 30 out, and more of them take as much longer.
        return [f"{dotted(min(known))}+PTX"], f"any GPU, as {none or 'none here runs them'}"
    archs = [arch for arch in ALL_ARCHS if capability(arch) in known]
    if not archs:
        raise RuntimeError(f"{nvcc} must know one of {', '.join(ALL_ARCHS)}, got none")
    return [*archs[:-1], f"{archs[-1]}+PTX"], "every GPU"


def capability(arch: str) -> tuple[int, int]:
    """(12, 0) for "12.0+PTX"."""
    major, minor = re.match(r"(\d+)\.(\d)", arch).groups()
    return int(major), int(minor)


def dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def for_gpus(gpus: set[tuple[int, int]], known: set[tuple[int, int]]) -> list[str]:
    """What to compile for GPUs; one that nvcc does not know gets PTX of the last before it."""
    archs = {}
    for gpu in gpus:
        runs = max((arch for arch in known if arch <= gpu), default=min(known))
        archs[runs] = archs.get(runs, False) or runs != gpu
    return [dotted(arch) + "+PTX" * ptx for arch, ptx in sorted(archs.items())]


def gencode(archs: list[str]) -> list[str]:
    """nvcc's flags for architectures such as "9.0" or "12.0+PTX"."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def ninja_escape(path: str) -> str:
    return re.sub(r"([$ :])", r"$\1", path)


def most_jobs() -> int:
    return int(env("MAX_JOBS", str(os.cpu_count() or 1)))


def build_all(compiles: list[tuple[list[str], str, str]], link: list[str], library: Path) -> None:
    """Run the (command, source, object) steps in parallel, in their order, then link.

    With ninja, which the build environment has wherever it exists, only what changed is compiled.
    """
    jobs = most_jobs()
    ninja = shutil.which("ninja")
    if ninja is None:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, [command for command, _, _ in compiles]))
        run(link)
        return
    plan = [f"builddir = {ninja_escape(str(library.parent))}"]  # where ninja keeps its own notes
    plan += ["rule cc", "  command = $cmd", "  description = $in", "  depfile = $out.d"]
    plan += ["  deps = gcc", "rule ld", "  command = $cmd", "  description = $out"]
    for command, source, obj in compiles:
        line = shlex.join([*command, "-MMD", "-MF", f"{obj}.d"]).replace("$", "$$")
        plan += [f"build {ninja_escape(obj)}: cc {ninja_escape(source)}", f"  cmd = {line}"]
    objects = " ".join(ninja_escape(obj) for _, _, obj in compiles)
    line = shlex.join(link).replace("$", "$$")
    plan += [f"build {ninja_escape(str(library))}: ld {objects}", f"  cmd = {line}", ""]
    script = ROOT / library.with_suffix(".ninja")
    script.write_text("\n".join(plan), encoding="utf-8")
    run([ninja, "-j", str(jobs), "-f", str(script)])


def not_wanted(device: str, torch: Path | None) -> str | None:
    """Why a library is not built on this machine although nothing is wrong, or None.

    Raises:
        RuntimeError: CMIMTL_CUDA is neither 0 nor 1.
    """
    setting = env("CMIMTL_CUDA")
    if setting not in ("", "0", "1"):
        raise RuntimeError(f"CMIMTL_CUDA must be 0, 1 or unset, got {setting!r}")
    if device == "cpu" or setting == "1":
        return None
    if setting == "0":
        return "switched off by CMIMTL_CUDA=0"
    if torch and not torch_version(torch, "cuda"):
        return "torch is not a CUDA build (CMIMTL_CUDA=1 builds it all the same)"
    if find_nvcc() is None:
        return "no nvcc found (set CUDA_HOME, or put nvcc on the PATH)"
    return None


class BuildNative(build_ext):
    """build_ext for shared libraries that are not Python modules and may fail to build."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"  # torch.ops.load_library: no Python tag

    def run(self):
        # First of all, so that no way of failing leaves an old library to be taken for the new one.
        for name in map(self.get_ext_filename, (ext.name for ext in self.extensions)):
            for root in [Path(self.build_lib), *([ROOT] if self.inplace else [])]:
                for suffix in (".so", ".json"):
                    (root / name).with_suffix(suffix).unlink(missing_ok=True)
        self.failures: list[str] = []
        # What is made in place is for this machine, a wheel for any. super() clears `inplace`.
        self.local = bool(self.inplace or self.editable_mode)
        super().run()
        if self.failures and env("CMIMTL_REQUIRE_EXT") == "1":
            raise SystemExit(f"CMIMTL_REQUIRE_EXT=1, but {'; '.join(self.failures)}")

    def build_extension(self, ext):
        out = Path(self.build_lib, self.get_ext_filename(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = {"built": True, **build_library(ext, out, self.local)}
        except NotBuilt as reason:
            record = {"built": False, "reason": str(reason)}
        except Exception as error:
            reason, _, log = (str(error) or repr(error)).partition("\n")
            record = {"built": False, "reason": reason, "log": log}
            self.failures.append(f"{ext.name} was not built: {reason}")
            self.warn(self.failures[-1])
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def copy_extensions_to_source(self):  # editable installs and build_ext --inplace
        for name in map(self.get_ext_filename, (ext.name for ext in self.extensions)):
            for suffix in (".so", ".json"):
                built = Path(self.build_lib, name).with_suffix(suffix)
                if built.exists():
                    target = (ROOT / name).with_suffix(suffix)
                    shutil.copy2(built, target.with_suffix(".tmp"))
                    os.replace(target.with_suffix(".tmp"), target)  # the old one may be in use


def build_library(ext: Extension, out: Path, local: bool) -> dict:
    """Compile and link one library to `out`; returns what the record says about it.

    Args:
        ext: the library.
        out: where it is to be.
        local: whether CUDA code is for this machine, see architectures().

    Raises:
        NotBuilt: there is nothing to build, or it is not wanted here.
        RuntimeError: it should have been built and was not.
    """
    device = ext.name.rpartition("_")[2]
    cuda = device == "cuda"
    torch, nvcc = find_torch(), find_nvcc()
    if not ext.sources:
        raise NotBuilt(f"this version has no {device.upper()} sources (csrc/{device} is empty)")
    if reason := not_wanted(device, torch):
        raise NotBuilt(reason)
    if torch is None:
        raise RuntimeError("no torch >= {}.{} to build against".format(*MIN_TORCH))
    if cuda and nvcc is None:
        raise RuntimeError("CMIMTL_CUDA=1, but no nvcc was found (set CUDA_HOME)")
    cxx = shlex.split(env("CXX", "c++"))
    if shutil.which(cxx[0]) is None:
        raise RuntimeError(
            f"no C++ compiler: {cxx[0]} not found (install g++ or clang, or set CXX)"
        )
    ccache = [found] if (found := shutil.which("ccache")) else []

    # Relative to ROOT, so that ccache finds what another checkout compiled. Where torch lies is
    # told to the bindings alone: the kernels need not be compiled again beside another one, such as
    # that which pip unpacks to build with where none was installed first.
    build = Path("build", f"native-{sysconfig.get_platform()}")
    cpp = [*ccache, *cxx, STANDARD, "-Wall", *HOST_FLAGS, *VECTOR_FLAGS, *MATH_FLAGS]
    cpp += ["-Icsrc", TARGET]
    of_torch = ["-isystem", str(torch / "include"), *(["-DUSE_CUDA"] if cuda else [])]
    archs, why_these = architectures(nvcc, local) if cuda else ([], "")
    cu = [*ccache, nvcc or "", STANDARD, "-O3", "-Icsrc", *gencode(archs)]
    cu += ["-Xcompiler", ",".join(HOST_FLAGS), *shlex.split(env("NVCC_FLAGS"))]
    compiles = []
    for source in ext.sources:  # .cu files see no torch header, which would cost 8 s each
        obj = build / f"{source}.o"
        (ROOT / obj).parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".cu"):
            command = [*cu]
        else:
            quick = QUICK_FLAGS if Path(source).name in QUICK_FILES else []
            headers = of_torch if source.endswith("bindings.cpp") else []
            command = [*cpp, *quick, *shlex.split(env("CXXFLAGS")), *headers]
        compiles.append(([*command, "-c", source, "-o", str(obj)], source, str(obj)))

    library = build / out.name
    linker = [nvcc, "-cudart=static"] if cuda else cxx  # static: no libcudart to match with torch's
    link = [*linker, "-shared", *(obj for _, _, obj in compiles)]
    link += ["-Xlinker", "--no-as-needed"] if sys.platform == "linux" else []
    # The CUDA library too needs no more of torch (see csrc/cuda/stream.h), so it loads beside any.
    link += [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    if cuda:  # nvcc from PyPI keeps libcudart_static.a in lib and looks for it in lib64
        link.append(f"-L{Path(nvcc).resolve().parents[1] / 'lib'}")

    objects = [ROOT / obj for _, _, obj in compiles]
    before, started = made_at(objects), time.monotonic()
    once, for_each = CORE_SECONDS[device]
    seconds = (once + for_each * len(archs)) / most_jobs()
    target = f" for {';'.join(archs)} ({why_these})" if cuda else ""
    print(f"{ext.name}: {len(objects)} files{target}; up to {seconds:.0f} s", flush=True)
    build_all(compiles, [*link, "-o", str(library)], library)
    seconds = time.monotonic() - started
    compiled = sum(old != new for old, new in zip(before, made_at(objects), strict=True))
    print(f"{ext.name}: compiled {compiled} files in {seconds:.1f} s", flush=True)
    shutil.copy2(ROOT / library, out)

    record = {
        "compiled": compiled,
        "seconds": round(seconds, 1),
        "sources": digests(device),
        "torch headers": torch_version(torch),
        "compiler": run([*cxx, "--version"], echo=False).splitlines()[0],
    }
    if cuda:
        version = run([nvcc, "--version"], echo=False)
        record["nvcc"] = "nvcc " + re.search(r"release .*", version)[0]
        record["architectures"] = ";".join(archs)
        record["architectures for"] = why_these
        record["least capability"] = dotted(MIN_CAPABILITY)
    return record


def made_at(files: list[Path]) -> list[int]:
    return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


def digests(device: str) -> dict[str, str]:
    """SHA-256 of every file a library is compiled from; _library.py tells by it what changed."""
    files = sources("*.h", f"{device}/*")
    return {file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest() for file in files}


def longest_first(files: list[str]) -> list[str]:
    """Scans' kernels take a core 12 to 20 s a file, others 1 to 8: last, they left a core idle."""
    return sorted(files, key=lambda file: "/scan_" not in file)


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python: nothing in it links against libpython."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    cuda = sources("cuda/*.cpp", "cuda/*.cu")
    headers = sources("*.py", "*.h", "cpu/*", "cuda/*")  # named so that the sdist has them
    setup(
        ext_modules=[
            Extension("cmimtl_kernels._cpu", sources("cpu/*.cpp"), depends=headers),
            Extension("cmimtl_kernels._cuda", longest_first(cuda), depends=headers),
        ],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
    )
