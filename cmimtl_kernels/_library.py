"""Loads the compiled libraries, or tells why one is not there.

setup.py puts `_cpu.so` and `_cuda.so` beside this file, each with a JSON record: how it was built,
or why it was not. The libraries hold implementations alone; registration.py defines the ops that
they implement.
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
    """Load every compiled library; first called at import, after the ops are defined.

    At import, because `torch.compile` cannot trace through the loading of a library. No library
    needs a device, a driver or a CUDA build of torch to load, so importing this package never
    initialises CUDA.

    Returns:
        {"cpu": ..., "cuda": ...}: None where the library is loaded, else one line that tells why
        not.
    """
    return {name: _load(name) for name in NAMES}


def record(name: str) -> dict:
    """What setup.py noted about a library; {} where it never ran.

    Keys: built; then of a library that was built sources, torch headers, compiler, how many files
    were compiled and the seconds that it took, and of CUDA nvcc, architectures and whom they are
    for; or of one that was not reason, and log after a failure.
    """
    file = HERE / f"_{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        return {"built": False, "reason": f"{file.name} cannot be read: {error}"}


def runs_on(gpu: tuple[int, int], architectures: str) -> str | None:
    """How code that was built for "8.0;9.0+PTX" runs on a GPU: as "code", from its "PTX", or not.

    Code of x.y runs on GPUs of x.y and later ones of x, that of x.yf likewise and that of x.ya on
    x.y alone; PTX of x.y, which the driver compiles, on any GPU from x.y on, that of the other two
    where their code does.
    """
    ptx_runs = False
    for arch in architectures.split(";"):
        major, minor, kind, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch).groups()
        built = int(major), int(minor)
        if gpu == built or (kind != "a" and gpu[0] == built[0] and gpu > built):
            return "code"
        ptx_runs |= bool(ptx) and not kind and gpu > built
    return "PTX" if ptx_runs else None


def changed_sources(name: str) -> list[str]:
    """Files of this checkout that are not as they were when the library was built from them.

    Empty where nothing changed, and where the package was not installed from here with `-e`.
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
    except OSError as error:  # a symbol or a library is missing, or the file is cut short
        detail = str(error.__cause__ or error).strip().splitlines()[0]
        return f"built, but torch {torch.__version__} cannot load it: {detail}"
    return None
