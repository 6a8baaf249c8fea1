"""Native build: csrc/cpu -> cmimtl_kernels/_cpu.so, csrc/cuda -> cmimtl_kernels/_cuda.so.

Both libraries use PyTorch's stable ABI and no Python API: one build serves every Python and every
torch from MIN_TORCH on, and torch is not imported here. Beside each library lies a small JSON
record of how it was built, or of why it was not; cmimtl_kernels/_library.py reads it. A library
that cannot be built does not fail the install: `python -m cmimtl_kernels` tells why.

Environment variables:
    CMIMTL_REQUIRE_EXT=1    a library that should be built and fails to fails the install
    CMIMTL_CUDA=0|1         never, or always, build CUDA; the default builds it where nvcc is found
                            and torch is a CUDA build
    TORCH_CUDA_ARCH_LIST    "8.0;9.0;10.0;12.0+PTX", or what nvcc knows of it, unless set
    MAX_JOBS                files compiled at once; the number of cores unless set
    CXX, CXXFLAGS, NVCC_FLAGS, CUDA_HOME    as usual
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import MIN_TORCH, find_nvcc, find_torch, torch_version  # noqa: E402

CUDA_ARCHS = ("8.0", "9.0", "10.0", "12.0")
STANDARD = "-std=c++20"
HOST_FLAGS = ["-O3", "-fPIC", "-fvisibility=hidden"]
# No errno and no trap to keep lets loops vectorise; contraction lets a * b + c be one FMA. None of
# them changes what NaN and infinity do.
MATH_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# The oldest torch to run under: major in bits 56-63, minor in bits 48-55.
TARGET = f"-DTORCH_TARGET_VERSION={MIN_TORCH[0] << 56 | MIN_TORCH[1] << 48:#x}ULL"


class NotBuilt(Exception):
    """Nothing to build here, for a reason that is no failure."""


def env(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def run(command: list[str]) -> str:
    """Run a command in ROOT, echoing it and its output.

    Raises:
        RuntimeError: it failed. The first line is the telling one of its output, then all of it.
    """
    print(shlex.join(command), flush=True)
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    if done.returncode:
        lines = done.stdout.splitlines() or [f"{command[0]} exited with {done.returncode}"]
        telling = re.compile(r"\berror:|cannot find|not found|No such file", re.IGNORECASE)
        summary = next(filter(telling.search, lines), lines[-1]).strip()
        raise RuntimeError(f"{summary}\n{done.stdout[-8000:]}")
    return done.stdout


def sources(*patterns: str) -> list[str]:
    """Files of csrc/ that match, relative to ROOT, sorted."""
    found = {path for pattern in patterns for path in (ROOT / "csrc").glob(pattern)}
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.is_file())


def architectures(nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or what this nvcc knows of CUDA_ARCHS with PTX of the last.

    Raises:
        RuntimeError: an entry of TORCH_CUDA_ARCH_LIST is no number.
    """
    if wanted := env("TORCH_CUDA_ARCH_LIST").strip():
        archs = re.split(r"[;, ]+", wanted)
        for arch in archs:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
                raise RuntimeError(
                    f"TORCH_CUDA_ARCH_LIST must hold numbers such as 9.0 or 12.0+PTX, got {arch!r}"
                )
        return archs
    known = set(re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"])))
    archs = [arch for arch in CUDA_ARCHS if arch.replace(".", "") in known]
    if not archs:
        raise RuntimeError(f"{nvcc} must know one of {', '.join(CUDA_ARCHS)}, got none")
    return [*archs[:-1], f"{archs[-1]}+PTX"]


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


def build_all(compiles: list[tuple[list[str], str, str]], link: list[str], library: Path) -> None:
    """Run the (command, source, object) steps in parallel, then link.

    With ninja, which the build environment has wherever it exists, only what changed is compiled.
    """
    jobs = int(env("MAX_JOBS", str(os.cpu_count() or 1)))
    ninja = shutil.which("ninja")
    if ninja is None:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, [command for command, _, _ in compiles]))
        run(link)
        return
    plan = [f"builddir = {ninja_escape(str(library.parent))}"]  # where ninja keeps its own notes
    plan += ["rule cc", "  command = $cmd", "  depfile = $out.d", "  deps = gcc"]
    plan += ["rule ld", "  command = $cmd"]
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
        super().run()
        if self.failures and env("CMIMTL_REQUIRE_EXT") == "1":
            raise SystemExit(f"CMIMTL_REQUIRE_EXT=1, but {'; '.join(self.failures)}")

    def build_extension(self, ext):
        out = Path(self.build_lib, self.get_ext_filename(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            record = {"built": True, **build_library(ext, out)}
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


def build_library(ext: Extension, out: Path) -> dict:
    """Compile and link one library to `out`; returns what the record says about it.

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

    # Relative to ROOT, so that ccache finds what another checkout compiled.
    build = Path("build", f"native-{sysconfig.get_platform()}")
    cpp = [*ccache, *cxx, STANDARD, "-Wall", *HOST_FLAGS, *MATH_FLAGS, "-Icsrc", TARGET]
    cpp += ["-isystem", str(torch / "include"), *(["-DUSE_CUDA"] if cuda else [])]
    cpp += shlex.split(env("CXXFLAGS"))
    archs = architectures(nvcc) if cuda else []
    cu = [*ccache, nvcc or "", STANDARD, "-O3", "-Icsrc", *gencode(archs)]
    cu += ["-Xcompiler", ",".join(HOST_FLAGS), *shlex.split(env("NVCC_FLAGS"))]
    compiles = []
    for source in ext.sources:  # .cu files see no torch header, which would cost 8 s each
        obj = build / f"{source}.o"
        (ROOT / obj).parent.mkdir(parents=True, exist_ok=True)
        tool = cu if source.endswith(".cu") else cpp
        compiles.append(([*tool, "-c", source, "-o", str(obj)], source, str(obj)))

    library = build / out.name
    linker = [nvcc, "-cudart=static"] if cuda else cxx  # static: no libcudart to match with torch's
    link = [*linker, "-shared", *(obj for _, _, obj in compiles)]
    link += ["-Xlinker", "--no-as-needed"] if sys.platform == "linux" else []
    # The CUDA library too needs no more of torch (see csrc/cuda/stream.h), so it loads beside any.
    link += [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    if cuda:  # nvcc from PyPI keeps libcudart_static.a in lib and looks for it in lib64
        link.append(f"-L{Path(nvcc).resolve().parents[1] / 'lib'}")
    build_all(compiles, [*link, "-o", str(library)], library)
    shutil.copy2(ROOT / library, out)

    record = {
        "sources": digests(device),
        "torch headers": torch_version(torch),
        "compiler": run([*cxx, "--version"]).splitlines()[0],
    }
    if cuda:
        record["nvcc"] = "nvcc " + re.search(r"release .*", run([nvcc, "--version"]))[0]
        record["architectures"] = ";".join(archs)
    return record


def digests(device: str) -> dict[str, str]:
    """SHA-256 of every file a library is compiled from; _library.py tells by it what changed."""
    files = sources("*.h", f"{device}/*")
    return {file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest() for file in files}


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python: nothing in it links against libpython."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    headers = sources("*.py", "*.h", "cpu/*", "cuda/*")  # named so that the sdist has them
    setup(
        ext_modules=[
            Extension("cmimtl_kernels._cpu", sources("cpu/*.cpp"), depends=headers),
            Extension("cmimtl_kernels._cuda", sources("cuda/*.cpp", "cuda/*.cu"), depends=headers),
        ],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
    )
