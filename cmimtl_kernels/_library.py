"""Load the compiled libraries, or tell why one is missing.

setup.py puts `_cpu.so` and `_cuda.so` beside this file. Beside each it puts a JSON record, which
says how the library was built, or why it was not. The libraries hold only implementations;
registration.py defines the ops that they implement.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

import torch

NAMES = ("cpu", "cuda")
HERE = Path(__file__).parent


@functools.cache
def load_libraries() -> dict[str, str | None]:
    """Load every compiled library. This is first called at import, after the ops are defined.

    The libraries are loaded at import because `torch.compile` cannot trace through the loading of
    a library. No library needs a device, a driver or a CUDA build of torch to load, so importing
    this package never initialises CUDA.

    Returns:
        {"cpu": ..., "cuda": ...}: None where the library is loaded, otherwise one line that tells
        why it is not.
    """
    return {name: _load(name) for name in NAMES}


def record(name: str) -> dict:
    """What setup.py noted about a library; {} where setup.py never ran.

    The key "built" is always there. A library that was built also has "sources", "torch headers",
    "compiler", "compiled" (how many files were) and "seconds" (how long that took); the CUDA
    library also has "nvcc", "architectures", "architectures for" and "least capability", the least
    compute capability that the kernels run on. A library that was not built has "reason" and, after
    a failure, "log".
    """
    file = HERE / f"_{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        return {"built": False, "reason": f"{file.name} cannot be read: {error}"}


def runs_on(gpu: tuple[int, int], architectures: str) -> str | None:
    """How code that was built for architectures such as "8.0;9.0+PTX" runs on a GPU.

    Code for x.y or x.yf runs on GPUs of capability x.y and on later ones of the same x; code for
    x.ya runs on x.y alone. PTX for x.y, which the driver compiles, runs on every GPU from x.y on;
    PTX for x.yf or x.ya runs where their code does.

    Returns:
        "code" where the GPU runs compiled code, "PTX" where the driver has to compile, or None
        where nothing runs.
    """
    ptx_runs = False
    for arch in re.finditer(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        major, minor, kind, ptx = arch.groups()
        built = int(major), int(minor)
        if gpu == built or (kind != "a" and gpu[0] == built[0] and gpu > built):
            return "code"
        ptx_runs |= bool(ptx) and not kind and gpu > built
    return "PTX" if ptx_runs else None


def changed_sources(name: str) -> list[str]:
    """The files of this checkout that have changed since the library was built from them.

    The list is empty where the package was not installed from here with `-e`.
    """
    root = HERE.parent
    if not (root / "csrc").is_dir():
        return []
    return [
        path
        for path, digest in record(name).get("sources", {}).items()
        if not (root / path).is_file()
        or hashlib.sha256((root / path).read_bytes()).hexdigest() != digest
    ]


def _load(name: str) -> str | None:
    library = HERE / f"_{name}.so"
    if not library.is_file():
        return record(name).get("reason", "not built: a source tree that was never installed")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:  # a symbol or another library is missing, or the file is cut short
        detail = str(error.__cause__ or error).strip().splitlines()[0]
        return f"built, but torch {torch.__version__} cannot load it: {detail}"
    return None
