"""Peers that cannot live beside today's PyTorch, each in a process of another interpreter.

`pytest benchmarks/ --peers PYTHON` names it; benchmarks/peers.txt is what to install there.
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
    """Why the peers' interpreter cannot import a module, or None."""
    interpreter = os.environ.get(VARIABLE)
    if not interpreter:
        return "no interpreter of peers given (--peers)"
    command = [interpreter, "-I", "-c", f"import {module}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1]
        return f"the peers' interpreter cannot import {module}: {reason}"
    return None


@functools.cache
def version(distribution: str) -> str | None:
    """The version that the peers' interpreter has of a package, or None."""
    interpreter = os.environ.get(VARIABLE)
    if not interpreter:
        return None
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    command = [interpreter, "-I", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


class Peer:
    """One worker; it lives as long as this process, so that nothing is loaded between rounds."""

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
            # As torch does in this process; a library's own pool would take all cores otherwise.
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, **request) -> dict:
        """One request, and its answer.

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
        """The call on these arguments of `selective_scan`; its result is `out`, channels-last."""
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
    """The worker of a peer, started once."""
    return Peer(os.environ[VARIABLE], name, torch.get_num_threads())
