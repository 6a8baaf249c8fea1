"""What the arms of a study cost: time and memory of a training step, side by side in one process.

The trainings themselves are no measurement: they run beside others, some on other machines. Here
every arm takes one step in each round, so that whatever disturbs the machine disturbs all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cmimtl import runs
from cmimtl.data import read_split
from cmimtl.data.batches import ImageCache, VQACollator, VQADataset
from cmimtl.evaluation.answer import QuestionAnswerer
from cmimtl.experiments.runner import RunFailed, processes
from cmimtl.experiments.study import Study
from cmimtl.files import read_json, write_json
from cmimtl.modelling.presets import PRESETS

ROUNDS, QUESTIONS = 9, 64
QUICK_ROUNDS, QUICK_QUESTIONS = 1, 8  # where only the study itself is tested


def measure(folders: Mapping[str, Path], quick: bool, sender: Connection) -> None:
    """Measure the models of some runs, and send the result.

    It is sent as name -> {"step_ms", "parameters"}: the median time of a forward and backward pass
    over QUESTIONS training questions, and the number of parameters.

    Args:
        folders: name -> folder of a finished run; all runs are of one data set.
        quick: whether the study is only tested, for which fewer rounds and questions do.
        sender: takes the result.
    """
    steps = {name: _step(folder, quick) for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for name, (step, _) in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    sender.send(
        {
            name: {"step_ms": 1e3 * statistics.median(times[name]), "parameters": parameters}
            for name, (_, parameters) in steps.items()
        }
    )


def measure_memory(folder: Path, quick: bool, sender: Connection) -> None:
    """Send how much memory the first step of a run's model takes at most, in megabytes.

    On a CPU this must be the first step of a fresh process: memory that was freed is used again.
    """
    step, _ = _step(folder, quick)
    sender.send(peak_memory(step, taken()))


def taken() -> float:
    """How much memory is taken now, in megabytes: of the GPU where there is one, or of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 1e6
    return _resident("VmRSS")


def peak_memory(step: Callable[[], None], before: float) -> float:
    """How much memory is taken at most during a step, beyond what was `taken` before.

    On a CPU memory that was freed may be kept, so of a step that is not the first, what was taken
    before must be that before the first.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 1e6 - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """Megabytes of this process's memory, now ("VmRSS") or at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3


def measured(folders: Mapping[str, Path], kept: Path, quick: bool) -> dict[str, dict[str, float]]:
    """The costs of some runs: name -> step_ms, memory_mb, parameters.

    Args:
        folders: name -> folder of a finished run.
        kept: file of a measurement; one of the same runs is not made again.
        quick: whether the study is only tested.
    """
    keys = {name: folder.name for name, folder in folders.items()}
    if kept.is_file():
        found = read_json("experiment", "a study's costs must be those that it wrote", kept)
        if found.get("runs") == keys and "costs" in found:
            return found["costs"]
    costs = elsewhere(measure, dict(folders), quick)
    for name, folder in folders.items():
        costs[name]["memory_mb"] = elsewhere(measure_memory, folder, quick)
    write_json(kept, {"runs": keys, "costs": costs})
    return costs


def benched(study: Study, kept: Path, quick: bool) -> Mapping[str, Any]:
    """What a study's own measurement gives; one that is kept is not made again.

    Args:
        kept: file of the measurement.
        quick: whether the study is only tested.
    """
    if kept.is_file():
        found = read_json("experiment", "a study's measurement must be one that it wrote", kept)
        if found.get("quick") == quick and "bench" in found:
            return found["bench"]
    assert study.bench is not None
    bench = study.bench(quick)
    write_json(kept, {"quick": quick, "bench": bench})
    return bench


def elsewhere(function: Callable[..., None], *arguments: object) -> Any:
    """What a function sends, called in a process of its own."""
    receiver, sender = processes().Pipe(duplex=False)
    process = processes().Process(target=function, args=(*arguments, sender))
    process.start()
    sender.close()  # so that the end of the process is the end of what is received
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RunFailed(
            f"experiment: the costs must be measured, got exit code {process.exitcode}."
        ) from None
    finally:
        process.join()


def _step(folder: Path, quick: bool) -> tuple[Any, int]:
    """A training step of a run's model, without the optimizer, and its number of parameters."""
    arguments = runs.read_run(folder)
    answerer = QuestionAnswerer.from_run(folder)
    model = answerer.model.train()
    examples = read_split(arguments["data"], arguments["root"], "train")
    examples = examples[: QUICK_QUESTIONS if quick else QUESTIONS]
    data = VQADataset(examples, ImageCache([e.image for e in examples], answerer.image_size))
    collate = VQACollator(answerer.processor, answerer.vocabulary)
    batch = {
        name: tensor.to(model.device)
        for name, tensor in collate([data[i] for i in range(len(data))]).items()
    }
    threads = PRESETS[arguments["preset"]].training.cpu_threads
    if threads is not None:
        torch.set_num_threads(threads)

    def step() -> None:
        model.zero_grad()
        model(**batch).loss.backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return step, sum(parameter.numel() for parameter in model.parameters())
