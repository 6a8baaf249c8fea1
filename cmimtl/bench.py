"""Tools of the checkout's ``benchmarks/``, which is not part of the package, as commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_bench(tool: str, arguments: Sequence[str]) -> None:
    """Run a module of ``benchmarks/`` in a process of its own, in the current folder.

    Args:
        tool: "report" or "static".
        arguments: handed on as they are.
    Raises:
        ModuleNotFoundError: cmimtl is not installed from a checkout.
        SystemExit: the tool failed; it has said why.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / "benchmarks" / f"{tool}.py").is_file():
        raise ModuleNotFoundError(
            f"cmimtl bench: cmimtl must be installed from a checkout (`pip install -e .`), got"
            f" {checkout} without benchmarks/{tool}.py."
        )
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"benchmarks.{tool}", *arguments]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False)
    if run.returncode:
        raise SystemExit(run.returncode)
