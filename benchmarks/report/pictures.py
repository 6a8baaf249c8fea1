"""Records -> pictures. Each is None where a record has no rows for it."""

from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from benchmarks import fusions
from benchmarks.baselines import BASELINES, LARGE
from benchmarks.report.records import BOTH, FORWARD, PASSES, one, ours, rows, workload

# Colours that stay apart for colour-blind readers (Okabe and Ito).
BLUE, RED, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
LEAST = 0.7  # where the axis of the bars begins
LAYERS = {fusions.OURS: BLUE, fusions.BIDIRECTIONAL: SKY, fusions.CO_ATTENTION: RED}

plt.rcParams.update(
    {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
)


def _log(axes, **labels: str) -> None:
    """Logarithmic axes with these labels, their numbers written out and not as powers."""
    for name, label in labels.items():
        axes.set(**{f"{name}scale": "log", f"{name}label": label})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if name == "y" else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def against_baselines(record: dict) -> Figure | None:
    """How many times the time of our scan each baseline takes."""
    ran = {row["name"] for row in rows(record, "ops") if "ratio" in row}
    names = [baseline.name for baseline in BASELINES if baseline.name in ran]
    if not names:
        return None
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 2.4 + 0.6 * len(names)), layout="constrained", sharex=True, sharey=True
    )
    height = 0.27  # of a bar, in the distance of two baselines
    for axes, which in zip(panels, PASSES, strict=True):
        for i, (of, colour) in enumerate(zip(LARGE, (BLUE, RED, GREEN), strict=True)):
            found = [one(record, "ops", name=name, which=which, **workload(of)) for name in names]
            places = [j + (i - 1) * height for j in range(len(names))]
            label = "batch {}, length {:,}, dim {:,}".format(*of) if axes is panels[0] else None
            widths = [row.get("ratio", LEAST) for row in found]
            bars = axes.barh(places, widths, 0.9 * height, color=colour, label=label)
            axes.bar_label(bars, [_bar_text(row) for row in found], padding=3, fontsize=8)
        _log(axes, x="times our scan's time")
        axes.axvline(1, color="black", lw=1)
        axes.set_title(which.replace("+", " + "))
    most = max(row["ratio"] for row in rows(record, "ops") if "ratio" in row)
    axes.set_xlim(LEAST, 8 * most)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    figure.legend(ncols=3, loc="outside lower center", frameon=False)
    figure.suptitle(f"Selective scan, float32: baselines against our kernel ({ours(record)})")
    return figure


def _bar_text(row: dict) -> str:
    if "ratio" in row:
        return f"{row['ratio']:,.3g}" if row["ratio"] < 100 else f"{row['ratio']:,.0f}"
    expected = row.get("expected_ratio")
    return "not run" + (f", about {expected:,.0f} expected" if expected else "") if row else ""


def against_length(record: dict) -> Figure | None:
    """Time and memory of one fusion layer against the visual length, and time against the batch."""
    ms, mb = ("seconds", 1e3, "ms"), ("peak_bytes", 1e-6, "MB")
    panels = [
        (rows(record, "length", which=FORWARD), "length", ms, "forward, batch 1"),
        (rows(record, "length", which=BOTH), "length", ms, "forward + backward, batch 1"),
        (rows(record, "length memory"), "length", mb, "peak memory, forward + backward, batch 1"),
        (rows(record, "batch"), "batch", ms, "forward + backward, 32 + 32 tokens"),
    ]
    panels = [panel for panel in panels if any(panel[2][0] in row for row in panel[0])]
    if not panels:
        return None
    figure, grid = plt.subplots(2, 2, figsize=(11, 8.4), layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (chosen, x, (y, scale, unit), title) in zip(grid.flat, panels, strict=False):
        for name, colour in LAYERS.items():
            points = sorted(
                (row[x], scale * row[y]) for row in chosen if row["name"] == name and y in row
            )
            label = name
            if x == "length" and unit == "ms" and len(points) > 2:
                label += f", $\\propto$ length$^{{{exponent(points[-3:]):.2f}}}$"
            axes.plot(*zip(*points, strict=True) if points else ((), ()), "o-", color=colour, ms=4,
                      lw=1.8, label=label)  # fmt: skip
        _log(axes, x="visual tokens" if x == "length" else x, y=unit)
        axes.xaxis.set_major_locator(FixedLocator(sorted({row[x] for row in chosen})))
        axes.set_title(title)
        axes.margins(y=0.2)  # room for the names
        axes.tick_params(labelsize=8)
        axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    figure.suptitle(
        "One fusion layer, d_model 768, float32, 32 text tokens; slopes of the last three lengths"
    )
    return figure


def exponent(points: list[tuple[float, float]]) -> float:
    """p of the power law y = c * x**p that fits best, by least squares of the logarithms."""
    return float(np.polyfit(*np.log(points).T, 1)[0])


PICTURES: dict[str, Callable[[dict], Figure | None]] = {
    "scan-against-baselines": against_baselines,
    "fusion-against-length": against_length,
}
