"""Baselines that cannot be installed beside today's PyTorch: peers, each in its own process.

`pytest benchmarks/ --peers PYTHON` names the Python that runs them; benchmarks/peers.txt lists what
to install there.
"""

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Elsewhere

VARIABLE = "CMIMTL_BENCH_PEERS"


@functools.cache
def missing(module: str) -> str | None:
    """Why the peers' Python cannot import a module, or None."""
    run = _run(f"import {module}")
    if run is None:
        return "no interpreter of peers given (--peers)"
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1]
        return f"the peers' interpreter cannot import {module}: {reason}"
    return None


@functools.cache
def version(distribution: str) -> str | None:
    """The version that the peers' Python has of a package, or None."""
    run = _run(f"import importlib.metadata as m; print(m.version({distribution!r}))")
    return (run and run.stdout.strip()) or None


def _run(code: str) -> subprocess.CompletedProcess | None:
    """What the peers' Python says of some code; None where no such Python was named."""
    if not (interpreter := os.environ.get(VARIABLE)):
        return None
    command = [interpreter, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Peer:
    """A peer's worker. It lives as long as this process, so that rounds load nothing again."""

    def __init__(self, interpreter: str, name: str, threads: int):
        worker = str(Path(__file__).with_name("peer_worker.py"))
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # what the library prints
        self.process = subprocess.Popen(
            [interpreter, "-I", worker, name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            bufsize=1,
            # As many threads as torch has in this process; by default it might take all cores.
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, **request) -> dict:
        """The worker's answer to a request.

        Raises:
            RuntimeError: the worker has died, or its kernel has failed.
        """
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            said = self.errors.read()[-500:]
            raise RuntimeError(f"peer {self.name}: must answer, has ended; it said: {said}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"peer {self.name}: {answer['error']}")
        return answer

    def prepare(self, inputs: dict[str, Tensor]) -> Elsewhere:
        """The peer's call on these arguments of `selective_scan`; it gives `out`, channels-last."""
        with tempfile.TemporaryDirectory(prefix="cmimtl-peer-") as folder:
            path = str(Path(folder) / "inputs.npz")
            np.savez(path, **{n: x.numpy() for n, x in inputs.items() if x is not None})
            self.ask(load=path)
        return Elsewhere(lambda: self.ask(run=True)["seconds"], self._result)

    def _result(self) -> Tensor:
        with tempfile.TemporaryDirectory(prefix="cmimtl-peer-") as folder:
            path = str(Path(folder) / "out.npy")
            self.ask(save=path)
            return torch.from_numpy(np.load(path))


@functools.cache
def start(name: str) -> Peer:
    """The only worker of a peer."""
    return Peer(os.environ[VARIABLE], name, torch.get_num_threads())
