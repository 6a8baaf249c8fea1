"""Time and memory of the fusions by the lengths of their streams, which no training has to have.

Each fusion has a process of its own, in which it takes the lengths in rising order. A length whose
step would take too long, by how those before it grew, is left out with all longer ones.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from cmimtl.experiments import statistics
from cmimtl.experiments.costs import elsewhere, peak_memory, taken
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.fusion import build_fusion
from cmimtl.modelling.presets import PRESETS

ROUNDS = 5
LONGEST_STEP = 10.0  # seconds


def measure(
    fusions: Sequence[str], sizes: Sequence[tuple[int, int]], *, rounds: int = ROUNDS
) -> dict[str, list[dict[str, Any]]]:
    """Measure a forward and backward pass of fusions of the tiny preset, of one sample.

    Args:
        fusions: of `cmimtl.names.FUSIONS`.
        sizes: tokens of the visual and of the text stream, in rising order.
        rounds: passes that are timed, after one whose memory is measured.
    Returns:
        fusion -> a dict a size: visual, text, ms (one of each round), memory_mb.
    """
    return {fusion: elsewhere(_measure, fusion, list(sizes), rounds) for fusion in fusions}


def _measure(
    fusion: str, sizes: Sequence[tuple[int, int]], rounds: int, sender: Connection
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    module = build_fusion(CMIMTLConfig(**PRESETS["tiny"].config, fusion=fusion)).to(device)
    width = PRESETS["tiny"].config["d_model"]

    def step(visual: int, text: int) -> None:
        streams = [
            torch.randn(1, n, width, device=device, requires_grad=True) for n in (visual, text)
        ]
        out = module(*streams, None, None)
        (out[0].sum() + out[1].sum()).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    step(2, 2)  # what is made once, such as gradients and threads, is no length's
    before = taken()
    found: list[dict[str, Any]] = []
    for size in sizes:
        if found and expected(found, sum(size)) > LONGEST_STEP:
            break
        memory = peak_memory(functools.partial(step, *size), before)
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            step(*size)
            times.append(1e3 * (time.perf_counter() - began))
        found.append({"visual": size[0], "text": size[1], "ms": times, "memory_mb": memory})
    sender.send(found)


def expected(found: Sequence[Mapping[str, Any]], tokens: int) -> float:
    """Seconds that a step of so many tokens takes, by the power law through the last two sizes.

    The power is 1 at least and 2 at most; 2 where there is only one size.
    """
    n, seconds = (np.array(values) for values in zip(*map(_point, found[-2:]), strict=True))
    power = 2.0
    if len(found) > 1:
        power = float(np.clip(np.log(seconds[1] / seconds[0]) / np.log(n[1] / n[0]), 1, 2))
    return float(seconds[-1] * (tokens / n[-1]) ** power)


def _point(one: Mapping[str, Any]) -> tuple[int, float]:
    """Tokens of both streams, and the median time of a step in seconds."""
    return one["visual"] + one["text"], float(np.median(one["ms"])) / 1e3


def exponent(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """b of time = a * tokens ** b, by least squares of the logarithms, with its 95 % interval.

    Each round is a fit of its own, and the interval is Student's, of their mean.

    Args:
        found: of one fusion, at least two sizes of at least two rounds.
    """
    x = np.log([one["visual"] + one["text"] for one in found])
    y = np.log(np.array([one["ms"] for one in found]))  # (sizes, rounds)
    of_round = np.polyfit(x, y, 1)[0]
    value = float(of_round.mean())
    drawn = statistics.with_seeds(np.full(statistics.RESAMPLES, value), of_round)
    low, high = statistics.interval(drawn)
    return {"value": value, "low": low, "high": high}


def crossing(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> int | None:
    """The first number of tokens from which on a is quicker than b at every size that both have.

    None where there is no such size.
    """
    found = None
    for (tokens, of_a), (_, of_b) in zip(map(_point, a), map(_point, b), strict=False):
        if of_a >= of_b:
            found = None
        elif found is None:
            found = tokens
    return found


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Time and memory by size, a column a fusion."""
    sizes = sorted({(one["visual"], one["text"]) for of in found.values() for one in of}, key=sum)
    rows = [["visual + text tokens", *(f"{name}: ms, MB" for name in found)]]
    for size in sizes:
        cells = []
        for of_fusion in found.values():
            at = [one for one in of_fusion if (one["visual"], one["text"]) == size]
            cells.append(f"{np.median(at[0]['ms']):.1f}, {at[0]['memory_mb']:.1f}" if at else "-")
        rows.append([f"{size[0]:,} + {size[1]:,}", *cells])
    return rows
