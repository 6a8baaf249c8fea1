"""Commands that run the tools of ``benchmarks/``, which a checkout has and the package has not."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cmimtl.messages import is_ours, one_line

USER_ERROR = 2


def run_bench(tool: str, arguments: Sequence[str]) -> None:
    """Run a package of ``benchmarks/`` in a process of its own, in the current folder.

    Args:
        tool: "report" or "static".
        arguments: the tool's arguments.
    Raises:
        FileNotFoundError: cmimtl is not installed from a checkout.
        SystemExit: the tool failed, and has said why.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / "benchmarks" / tool).is_dir():
        raise FileNotFoundError(
            f"cmimtl bench: cmimtl must be installed from a checkout (`pip install -e .`), got"
            f" {checkout} without benchmarks/{tool}/."
        )
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "cmimtl.bench", tool, *arguments]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False)
    if run.returncode:
        raise SystemExit(run.returncode)


def _main() -> int:
    """Run the tool, in its own process; an error of its user's becomes one line."""
    tool = sys.argv.pop(1)
    try:
        runpy.run_module(f"benchmarks.{tool}", run_name="__main__", alter_sys=True)
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, ImportError) and is_ours(error):
            raise
        print(one_line(f"cmimtl bench {tool}", error), file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(_main())
