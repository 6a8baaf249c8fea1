"""Records -> pictures."""

import math
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import fusions
from benchmarks.baselines import BASELINES
from benchmarks.records import (
    LARGE,
    PATCHES_SIZE,
    QUERIES_SIZE,
    by_name,
    exponent,
    one,
    ours,
    rows,
    size,
    workload,
)

# Colours that stay apart for colour-blind readers (Okabe and Ito).
BLUE, RED, GREEN, PINK, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
GREY = "#777777"

# One colour for one fusion in all pictures.
FUSION_COLOURS = {
    fusions.OURS: BLUE,
    fusions.GATED: GREEN,
    fusions.BIDIRECTIONAL: SKY,
    fusions.TRANSFORMER: RED,
    "Transformer co-attention": RED,
    fusions.PLAIN: GREY,
    fusions.MAMBAS: "#AAAAAA",
}
SHORT = {fusions.TRANSFORMER: "Transformer", "Transformer co-attention": "Transformer"}

plt.rcParams.update(
    {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
)


def _plain_ticks(axis, values, form: Callable[[float], str] = lambda x: f"{x:g}") -> None:
    """These ticks alone, written out and not as powers."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: form(x)))


def _powers(low: float, high: float, step: int = 10) -> list[float]:
    """Powers of `step` that enclose a range."""
    first, last = (math.log(x, step) for x in (low, high))
    return [step**k for k in range(math.floor(first + 1e-9), math.ceil(last - 1e-9) + 1)]


def _human(x: float) -> str:
    return f"{x:,.0f}" if x >= 1 else f"{x:g}"


def _short(x: float) -> str:
    """Three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def ops_bars(record: dict):
    """How many times the time of our kernel each baseline takes."""
    names = [
        b.name for b in BASELINES if any("ratio" in r for r in rows(record, "ops", name=b.name))
    ]
    if not names:
        return None
    height = 0.27
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 2.4 + 0.6 * len(names)), layout="constrained", sharey=True
    )
    most = max(r["ratio"] for r in rows(record, "ops") if "ratio" in r)
    for axes, which in zip(panels, ("forward", "forward+backward"), strict=True):
        for i, (of, colour) in enumerate(zip(LARGE, (BLUE, ORANGE, GREEN), strict=True)):
            for j, name in enumerate(names):
                row = one(record, "ops", name=name, which=which, **workload(of))
                place = j + (i - 1) * height
                if row and "ratio" in row:
                    axes.barh(place, row["ratio"], 0.9 * height, color=colour)
                    text = _short(row["ratio"])
                elif row and "expected_ratio" in row:
                    text = f"not run, about {row['expected_ratio']:,.0f} expected"
                else:
                    text = "not run" if row else ""
                start = row["ratio"] if row and "ratio" in row else 1
                axes.annotate(
                    text, (start, place), (3, 0), textcoords="offset points", va="center",
                    fontsize=8, color="black" if row and "ratio" in row else GREY,
                )  # fmt: skip
        axes.axvline(1, color="black", lw=1)
        axes.set(xscale="log", title=which.replace("+", " + "), xlabel="times our kernel's time")
        axes.set_xlim(0.7, 4 * most)
        _plain_ticks(axes.xaxis, _powers(1, most), _human)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    patches = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (BLUE, ORANGE, GREEN)]
    labels = [f"batch {b}, length {n:,}, dim {d:,}" for b, n, d in LARGE]
    figure.legend(patches, labels, ncols=3, loc="outside lower center", frameon=False)
    figure.suptitle(f"Selective scan, float32: baselines against our kernel ({ours(record)})")
    return figure


def roofline(record: dict):
    """Scans and fusions between the limits that were measured in their run."""
    if not record["limits"]:
        return None
    peak, bandwidth = (record["limits"][k] for k in ("fma_per_second", "bytes_per_second"))
    points = [
        (row, label, marker, colour)
        for suite, label, marker, colour, fields in (
            ("kernel", "scan, forward", "o", BLUE, {"name": ours(record), "which": "forward"}),
            ("kernel", "scan, backward", "s", RED, {"name": ours(record), "which": "backward"}),
            ("fusion", "Cross-Mamba fusion", "D", GREEN, {"name": fusions.OURS}),
            ("fusion", "Transformer fusion", "^", ORANGE, {"name": fusions.TRANSFORMER}),
        )
        for row in rows(record, suite, **fields)
        if row.get("fma")
    ]
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    least = min(row["fma"] / row["seconds"] for row, *_ in points) / 1e9
    most_x = 2 * max(row["fma"] / row["bytes"] for row, *_ in points)
    ridge = peak / bandwidth
    xs = [min(1.0, ridge / 2), ridge, most_x]
    axes.plot(xs, [min(peak, bandwidth * x) / 1e9 for x in xs], "-", color="black", lw=1.5)
    axes.annotate(
        f"FMA pipes, {peak / 1e9:.0f}·10⁹/s", (most_x, peak / 1e9), (0, 5),
        textcoords="offset points", ha="right", va="bottom",
    )  # fmt: skip
    axes.annotate(
        f"memory, {bandwidth / 1e9:.0f} GB/s", (xs[0], bandwidth * xs[0] / 1e9), (8, -4),
        textcoords="offset points", va="top",
    )  # fmt: skip
    seen = set()
    for row, label, marker, colour in points:
        axes.plot(
            row["fma"] / row["bytes"], row["fma"] / row["seconds"] / 1e9, marker, color=colour,
            ms=8, alpha=0.75, mec="white", label=None if label in seen else label,
        )  # fmt: skip
        seen.add(label)
    low = min(least, bandwidth * xs[0] / 1e9)
    axes.set(xscale="log", yscale="log", ylim=(low / 1.8, peak / 1e9 * 4))
    axes.set_xlabel("least FMA operations per least byte of memory traffic")
    axes.set_ylabel("10⁹ FMA operations per second")
    _plain_ticks(axes.xaxis, [2**k for k in range(0, 12, 1) if xs[0] <= 2**k <= most_x])
    _plain_ticks(
        axes.yaxis,
        [
            t
            for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
            if low / 1.8 <= t <= peak / 5e8
        ],
    )
    axes.set_title("Every workload against the machine's limits, float32")
    axes.legend(loc="upper left", frameon=False)
    axes.grid(alpha=0.3)
    return figure


def against_length(record: dict):
    """Time and memory of one fusion layer against the visual length, and time against the batch."""
    panels = [
        (rows(record, "length", which="forward"), "length", "seconds", "forward, batch 1"),
        (rows(record, "length", which="forward+backward"), "length", "seconds",
         "forward + backward, batch 1"),
        (rows(record, "length memory"), "length", "peak_bytes",
         "peak memory, forward + backward, batch 1"),
        (rows(record, "batch"), "batch", "seconds", "forward + backward, 32 + 32 tokens"),
    ]  # fmt: skip
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return None
    figure, grid = plt.subplots(
        math.ceil(len(panels) / 2), 2, figsize=(11, 4.2 * math.ceil(len(panels) / 2)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    for axes, (chosen, x, y, title) in zip(grid.flat, panels, strict=False):
        _lines(axes, chosen, x, y)
        axes.set_title(title)
    figure.suptitle("One fusion layer, d_model 768, float32, 32 text tokens")
    return figure


def _lines(axes, chosen: list[dict], x: str, y: str) -> None:
    unit, scale = ("ms", 1e3) if y == "seconds" else ("MB", 1e-6)
    every_x = sorted({row[x] for row in chosen})
    ends = []
    for name, own in by_name(chosen).items():
        own = sorted((row for row in own if y in row), key=lambda row: row[x])
        xs, ys = [row[x] for row in own], [scale * row[y] for row in own]
        colour = FUSION_COLOURS[name]
        axes.plot(xs, ys, "o-", color=colour, ms=4, lw=1.8)
        label = SHORT.get(name, name)
        if x == "length" and y == "seconds" and len(xs) > 2:
            label += f"\n$\\propto$ length$^{{{exponent(xs[-3:], ys[-3:]):.2f}}}$ at the end"
        ends.append((xs[-1], ys[-1], label, colour))
    axes.set(xscale="log", yscale="log", ylabel=f"time, {unit}" if unit == "ms" else "peak, MB")
    axes.set_xlabel("visual tokens" if x == "length" else "batch")
    _plain_ticks(axes.xaxis, every_x, lambda n: f"{n / 1024:g}k" if n % 1024 == 0 else f"{n:g}")
    low, high = axes.get_ylim()
    high *= (high / low) ** 0.12  # room for the names at the top
    axes.set_ylim(low, high)
    ticks = _powers(low, high)
    if high / low < 1e3:
        ticks = [tick * digit for tick in ticks for digit in (1, 2, 5)]
    _plain_ticks(axes.yaxis, [tick for tick in ticks if low <= tick <= high], _human)
    axes.grid(alpha=0.3)
    axes.set_xlim(every_x[0] / 1.2, every_x[-1] * (every_x[-1] / every_x[0]) ** 0.42)
    _label_ends(axes, ends)


def _label_ends(axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Names in one column to the right of all lines, pushed apart where they would touch."""
    low, high = (math.log(y) for y in axes.get_ylim())
    column = 1.25 * max(x for x, *_ in ends)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [0.045 + 0.045 * label.count("\n") for _, _, label, _ in ends]  # of the axes
    places: list[float] = []
    for (_, y, *_), height in zip(ends, heights, strict=True):
        floor = places[-1] + 0.5 * (height + heights[len(places) - 1]) if places else 0
        places.append(max(floor, (math.log(y) - low) / (high - low)))
    ceiling = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling - 0.5 * heights[i])
        ceiling = places[i] - 0.5 * heights[i]
    for (x, y, label, colour), place in zip(ends, places, strict=True):
        at = math.exp(low + place * (high - low))
        axes.annotate(
            label, (x, y), (column, at), color=colour, va="center", fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6},
        )  # fmt: skip


def block_profile(record: dict):
    """The parts of a block's forward and backward pass, stacked."""
    chosen = [row for row in rows(record, "block") if "share" in row]
    if not chosen:
        return None
    sizes = sorted({(r["batch"], r["n_visual"], r["n_text"]) for r in chosen})
    figure, axes = plt.subplots(figsize=(9, 1.7 + 0.75 * len(sizes)), layout="constrained")
    labels = []
    for of in sizes:
        whole = one(record, "block", name="whole block", **size(of))
        kept = (
            f"\n{1e3 * whole['seconds']:.0f} ms, keeps {whole['kept_bytes'] / 1e6:.0f} MB"
            if whole
            else ""
        )
        labels.append(f"batch {of[0]}, {of[1]} + {of[2]} tokens{kept}")
    left = [0.0] * len(sizes)
    colours = (BLUE, RED, GREEN, PINK, ORANGE)
    for (part, own), colour in zip(by_name(chosen).items(), colours, strict=True):
        shares = {(r["batch"], r["n_visual"], r["n_text"]): 100 * r["share"] for r in own}
        widths = [shares[of] for of in sizes]
        bars = axes.barh(labels, widths, 0.6, left=left, color=colour, label=part, ec="white")
        texts = [f"{w:.0f} %" if w >= 3 else "" for w in widths]
        dark = "black" if colour == ORANGE else "white"
        axes.bar_label(bars, texts, label_type="center", color=dark, fontsize=9, weight="bold")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="% of the time of one block, forward + backward, float32", xlim=(0, 100))
    figure.legend(ncols=5, fontsize=9, loc="outside upper center", frameon=False)
    return figure


def fusion_bars(record: dict):
    """The table of the fusions: parameters, times and memory side by side, one row of panels per
    size."""
    sizes = [of for of in (QUERIES_SIZE, PATCHES_SIZE) if rows(record, "fusion", **size(of))]
    if not sizes:
        return None
    columns = (
        ("parameters, M", "fusion", "forward+backward", "parameters", 1e-6),
        ("forward, ms", "fusion", "forward", "seconds", 1e3),
        ("forward + backward, ms", "fusion", "forward+backward", "seconds", 1e3),
        ("samples/s in training", "fusion", "forward+backward", "samples_per_second", 1),
        ("kept activations, MB", "fusion memory", "forward+backward", "kept_bytes", 1e-6),
        ("peak memory, MB", "fusion memory", "forward+backward", "peak_bytes", 1e-6),
    )
    names = [name for name in fusions.FUSIONS if rows(record, "fusion", name=name)]
    figure, grid = plt.subplots(
        len(sizes), len(columns), figsize=(15, 0.9 + 2.7 * len(sizes)), layout="constrained",
        sharey=True, squeeze=False,
    )  # fmt: skip
    for line, of in zip(grid, sizes, strict=True):
        for axes, (title, suite, which, field, scale) in zip(line, columns, strict=True):
            found = [one(record, suite, name=n, which=which, **size(of)) or {} for n in names]
            values = [scale * row[field] if field in row else None for row in found]
            # Without kernels it takes so long that the other bars would vanish beside its own.
            fused = [
                v for n, v in zip(names, values, strict=True) if n not in fusions.UNFUSED and v
            ]
            most = max(fused, default=1.0)
            for place, (name, value) in enumerate(zip(names, values, strict=True)):
                cut = value is not None and value > 1.3 * most
                width = 1.3 * most if cut else value or 0
                axes.barh(
                    place, width, 0.7, color=FUSION_COLOURS[name], hatch="//" if cut else None,
                    ec="white" if cut else FUSION_COLOURS[name],
                )  # fmt: skip
                text = "not run" if value is None else _short(value) + (" (cut)" if cut else "")
                axes.annotate(
                    text, (width, place), (3, 0), textcoords="offset points", va="center",
                    fontsize=9, color=GREY if value is None else "black",
                )  # fmt: skip
            most *= 1.3 if any(v and v > most for v in values) else 1.0
            axes.set(title=title, xlim=(0, 1.6 * most), xticks=[])
            axes.title.set_fontsize(10)
            axes.spines["bottom"].set_visible(False)
        line[0].set_yticks(range(len(names)), [SHORT.get(n, n) for n in names])
        line[0].set_ylabel(f"batch {of[0]}\n{of[1]} + {of[2]} tokens")
    grid[0][0].invert_yaxis()
    figure.suptitle(
        "Fusion alone, d_model 768, float32; Cross-Mamba 2 layers, Transformer 6 per stream"
    )
    return figure


PICTURES: dict[str, Callable] = {
    "fusion": fusion_bars,
    "fusion-against-length": against_length,
    "scan-against-baselines": ops_bars,
    "roofline": roofline,
    "block-profile": block_profile,
}
