"""Compiles the CUDA kernels, or small ones, with the engine for a CPU: plain and with sanitizers.

Objects are kept in build/cuda_on_cpu under a digest of their command and of all that they include,
so a run compiles what changed. The kernels are compiled with faults planted in them, asleep: see
faults.py.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.cuda_on_cpu import faults

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_on_cpu"
CXX = "g++"  # and no other: the sanitizers' libraries are found by its name for them
JOBS = min(2, len(os.sched_getaffinity(0)))  # compilations at once
WHOLE_MATRIX = os.environ.get("CMIMTL_WHOLE_MATRIX") == "1"  # see conftest.py

COMMON = ["-std=c++20", "-Wall", "-Wno-unknown-pragmas", "-g1", "-fPIC", "-fvisibility=hidden"]


@dataclass(frozen=True)
class Build:
    """How the kernels are compiled and run.

    Attributes:
        name: of the build.
        flags: of kernels.
        engine: of the engine, which is compiled without the sanitizer and told of it.
        runtime: the sanitizer's library, which must be the first that a process loads: a program
            does, Python has to be told.
        environment: of the process that runs the kernels.
    """

    name: str
    flags: tuple[str, ...]
    engine: tuple[str, ...] = ()
    runtime: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def few(self) -> bool:
        """Whether it runs few cases, for memory and order, and leaves values to the plain build."""
        return self.runtime is not None and not WHOLE_MATRIX

    def require(self) -> None:
        """Skip the test where this build cannot be made."""
        if shutil.which(CXX) is None:
            pytest.skip(f"no {CXX} found")
        if self.runtime and not Path(_file(self.runtime)).is_file():
            pytest.skip(f"{CXX} has no {self.runtime}")
        if said := self.trouble():
            pytest.skip(f"a program with {self.runtime} does not start here: {said}")

    @functools.cache  # noqa: B019  builds are few and stay
    def trouble(self) -> str | None:
        """What the sanitizer says where this system lets no program with it start, or None.

        The thread sanitizer of older compilers takes no addresses with more random bits than 28
        (sysctl vm.mmap_rnd_bits), which a container may forbid to switch off.
        """
        if self.runtime is None:
            return None
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            source, program = Path(folder, "empty.cpp"), Path(folder, "empty")
            source.write_text("int main() {}\n")
            _run([CXX, *self.flags, str(source), "-o", str(program)])
            done = self.run([program])
        if done.returncode == 0:
            return None
        return " ".join(done.stdout.split()) or f"exit {done.returncode}"

    def run(
        self, command: list, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run a program of this build, its errors among its output."""
        return subprocess.run(
            [*_at_fixed_addresses(), *map(str, command)],
            cwd=cwd,
            env=os.environ | dict(self.environment) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def python(self, library: Path, *arguments: str) -> subprocess.CompletedProcess:
        """Run Python with the kernels of `library`, a build of this kind, for conftest.py.

        The same process runs no second thread, so that a data race is one of the kernels'.
        """
        environment = {
            "CMIMTL_CUDA_ON_CPU": self.name,
            "CMIMTL_CUDA_ON_CPU_LIBRARY": str(library),
            "CMIMTL_PLANTED_FAULT": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        return self.run([sys.executable, *arguments], **environment | self.preloaded())

    def preloaded(self) -> dict[str, str]:
        """The environment in which Python starts with the sanitizer's library."""
        if self.runtime is None:
            return {}
        # The address sanitizer looks for the exceptions of libstdc++ at its start.
        return {"LD_PRELOAD": f"{_file(self.runtime)} {_file('libstdc++.so.6')}"}


PLAIN = Build("plain", ("-O1",))
UCONTEXT = Build("ucontext", ("-O1",), ("-DSIMT_UCONTEXT",))
ADDRESS = Build(
    "address",
    # With -O1 it takes three times as long to compile, and all of "undefined" twice.
    (
        "-O0",
        "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow",
        "-fno-sanitize-recover=all",
    ),
    ("-DSIMT_ADDRESS",),
    "libasan.so",
    (("ASAN_OPTIONS", "detect_leaks=0"),),  # CPython keeps much to its end
)
THREAD = Build(
    "thread",
    # Loops must not become calls of memset and memcpy, in which the sanitizer may see no race.
    ("-O1", "-fsanitize=thread", "-fno-tree-loop-distribute-patterns"),
    ("-DSIMT_THREAD",),
    "libtsan.so",
    (("TSAN_OPTIONS", "halt_on_error=1 exitcode=66 report_thread_leaks=0"),),
)
BUILDS = {build.name: build for build in (PLAIN, UCONTEXT, ADDRESS, THREAD)}


@functools.cache
def engine(build: Build) -> Path:
    """The engine's object file."""
    return compile_all([HERE / "engine.cpp"], [*COMMON, "-O2", *build.engine])[0]


@functools.cache
def executable(build: Build, source: Path) -> Path:
    """A program of one .cu file and the engine."""
    build.require()
    flags = [*COMMON, *build.flags, f"-I{HERE}", f"-I{CSRC}"]
    return link([*compile_all([source], flags), engine(build)], list(build.flags), source.stem)


@functools.cache
def library(source: Path) -> Path:
    """A shared library of one source that includes headers of csrc/ and needs no engine."""
    PLAIN.require()
    objects = compile_all([source], [*COMMON, "-O1", f"-I{CSRC}"])
    return link(objects, ["-shared"], f"lib{source.stem}.so")


@functools.cache
def planted_sources() -> Path:
    """A copy of csrc/ with every fault of faults.py planted in it."""
    files = [*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()]
    texts = {str(path.relative_to(CSRC)): path.read_text() for path in sorted(files)}
    texts = {name: faults.planted(name.removeprefix("cuda/"), text) for name, text in texts.items()}
    target = CACHE / f"csrc-{_digest([part for item in texts.items() for part in item])}"
    with _made_once(target) as part:
        if part:
            shutil.rmtree(part, ignore_errors=True)
            (part / "cuda").mkdir(parents=True)
            for name, text in texts.items():
                (part / name).write_text(text)
    return target


@functools.cache
def kernels(build: Build, csrc: Path | None = None) -> Path:
    """The CUDA library on CPU tensors, namespace `cmimtl_cuda_on_cpu`, of the sources with the
    faults of faults.py or of others."""
    build.require()
    csrc = csrc or planted_sources()
    cuda, flags = csrc / "cuda", device_flags(build, csrc)
    sources = cuda.glob("*.cu")
    objects = compile_all(without_float16(sources) if build.few else sorted(sources), flags)
    host = [*sorted(cuda.glob("*.cpp")), HERE / "controls.cpp", HERE / "workspaces.cpp"]
    objects += compile_all(host, [*flags, *binding_flags()])
    torch_lib = Path(torch.__file__).parent / "lib"
    arguments = [*build.flags, "-shared", f"-L{torch_lib}", "-ltorch_cpu"]
    return link([*objects, engine(build)], arguments, "libkernels.so")


def binding_flags() -> list[str]:
    return [
        "-isystem",
        str(Path(torch.__file__).parent / "include"),
        f"-DTORCH_TARGET_VERSION={torch_target():#x}ULL",
        "-DCMIMTL_CUDA_NAMESPACE=cmimtl_cuda_on_cpu",
        "-DCMIMTL_CUDA_KEY=CPU",
        "-DCMIMTL_CUDA_LIBRARY=cmimtl_cuda_on_cpu_library",
        "-DCMIMTL_CUDA_ON_CPU",
    ]


def without_float16(sources: Iterable[Path]) -> list[Path]:
    """The sources with a refusal in place of what is instantiated for float16."""
    return [*sorted(s for s in sources if not s.stem.endswith("_float16")), HERE / "no_float16.cpp"]


def device_flags(build: Build, csrc: Path) -> list[str]:
    return [*COMMON, *build.flags, f"-I{HERE}", f"-I{csrc}", f"-I{csrc / 'cuda'}"]


@functools.cache
def counted() -> Path:
    """The scans' kernels as the thread build has them, with counts.cpp in place of its library."""
    THREAD.require()
    csrc = planted_sources()
    cuda = csrc / "cuda"
    sources = [*cuda.glob("scan_*.cu"), cuda / "split.cu", cuda / "introspection.cu"]
    objects = compile_all(without_float16(sources), device_flags(THREAD, csrc))
    plain = [*COMMON, f"-I{HERE}", f"-I{csrc}"]
    objects += compile_all(
        [HERE / "engine.cpp", HERE / "counts.cpp", HERE / "controls.cpp"], [*plain, "-O2"]
    )
    return link(objects, ["-shared", "-Wl,-z,defs"], "libcounted.so")


def torch_target() -> int:
    """The oldest torch to run under, as setup.py passes it to the compiler."""
    sys.path.insert(0, str(CSRC))
    try:
        from build_backend import MIN_TORCH
    finally:
        sys.path.remove(str(CSRC))
    return MIN_TORCH[0] << 56 | MIN_TORCH[1] << 48


def compile_all(sources: Iterable[Path], flags: list[str]) -> list[Path]:
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda source: _compile(source, flags), sources))


def _compile(source: Path, flags: list[str]) -> Path:
    command = [CXX, *flags, "-x", "c++", str(source)]
    rule = _run([*command, "-MM", "-MT", "x"]).replace("\\\n", " ")
    digest = _digest([_without_paths(flags), *map(Path, rule.split()[1:])])
    target = CACHE / f"{source.stem}-{digest}.o"
    return _made(target, [*command, "-c"])


def link(objects: list[Path], arguments: list[str], name: str) -> Path:
    digest = _digest([" ".join(arguments), *(path.name for path in objects)])
    return _made(CACHE / digest / name, [CXX, *map(str, objects), *arguments])


def _file(library: str) -> str:
    """Where a library of the compiler is; its bare name where it is not."""
    return _run([CXX, f"-print-file-name={library}"]).strip()


@functools.cache
def _at_fixed_addresses() -> list[str]:
    """The thread sanitizer of older compilers stops where addresses are drawn too far apart."""
    command = ["setarch", "-R"]
    if shutil.which("setarch") is None:
        return []
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if allowed else []


def _without_paths(flags: list[str]) -> str:
    """What of the flags changes the code: where it lies does not."""
    return " ".join(flag for flag in flags if not flag.startswith(("-I", "/")))


def _digest(parts: list[str | Path]) -> str:
    digest = hashlib.sha256(f"{_compiler()}\0{torch.__version__}".encode())
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(b"\0" + content)
    return digest.hexdigest()[:24]


@functools.cache
def _compiler() -> str:
    return _run([CXX, "--version"])


def _made(target: Path, command: list[str]) -> Path:
    """`target`, made by `command -o` unless it is there."""
    with _made_once(target) as part:
        if part:
            _run([*command, "-o", str(part)])
    return target


@contextmanager
def _made_once(target: Path) -> Iterator[Path | None]:
    """Where to make `target`, which it becomes then; None where it is. One process at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        part = target.with_name(target.name + ".part")
        yield part
        part.rename(target)


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout
