"""Loads the compiled libraries, or tells why one is not there.

setup.py puts `_cpu.so` and `_cuda.so` beside this file, each with a JSON record: how it was built, or why
it was not. The libraries hold implementations alone; registration.py defines the ops that they implement.
"""

import hashlib
import json
from pathlib import Path

import torch

NAMES = ("cpu", "cuda")
HERE = Path(__file__).parent


def load_libraries() -> dict[str, str | None]:
    """Load every compiled library; call it once, at import and after the ops are defined.

    At import, because `torch.compile` cannot trace through the loading of a library. No library needs
    a device or a driver to load, so importing this package never initialises CUDA.

    Returns:
        {"cpu": ..., "cuda": ...}: None where the library is loaded, else one line that tells why not.
    """
    return {name: _load(name) for name in NAMES}


def record(name: str) -> dict:
    """What setup.py noted about a library: {"built": bool, "reason": str, "log": str, ...}, or {}."""
    file = HERE / f"_{name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"built": False, "reason": f"{file.name} is not readable"}


def changed_since_build(name: str) -> bool:
    """Whether a checkout's csrc/ differs from what this library was built from; False outside of one."""
    csrc = HERE.parent / "csrc"
    built_from = record(name).get("sources")
    if built_from is None or not csrc.is_dir():
        return False
    files = [
        path for pattern in ("*.h", f"{name}/*") for path in csrc.glob(pattern) if path.is_file()
    ]
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda file: file.relative_to(csrc).as_posix()):
        name_in_checkout = path.relative_to(csrc.parent).as_posix()
        digest.update(name_in_checkout.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() != built_from


def _load(name: str) -> str | None:
    library = HERE / f"_{name}.so"
    if not library.is_file():
        return record(name).get(
            "reason", "not built: this is a source tree that was never installed"
        )
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        # OSError: the loader found a symbol or library missing. RuntimeError: registration was refused.
        detail = str(error.__cause__ or error).strip().splitlines()[0]
        return f"built, but torch {torch.__version__} cannot load it: {detail}"
    return None
