"""The plot of the README, as SVG: a picture that follows the reader's light or dark colours."""

import html
import math

from benchmarks import fusions
from benchmarks.report.records import FORWARD, device, rows

STYLE = """
  text { fill: #57606a; font: 12px system-ui, sans-serif }
  .name { font-size: 13px; fill: #1f2328 }
  .grid { stroke: #d0d7de }
  .ours { stroke: #2563eb; fill: #2563eb }
  .two { stroke: #0d9488; fill: #0d9488 }
  .other { stroke: #b45309; fill: #b45309 }
  path { fill: none !important; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #9da7b3 }
    .name { fill: #e6edf3 }
    .grid { stroke: #30363d }
    .ours { stroke: #60a5fa; fill: #60a5fa }
    .two { stroke: #2dd4bf; fill: #2dd4bf }
    .other { stroke: #f59e0b; fill: #f59e0b }
  }
"""
WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 460, 300, 52, 44, 300, 206


def svg(records: list[dict]) -> str:
    """The time per token of one layer against the number of tokens, one panel for each record."""
    panels = [(record, _lines(record)) for record in records]
    panels = [(record, lines) for record, lines in panels if lines]
    most = max((y for _, lines in panels for line in lines.values() for _, y in line), default=1.0)
    top = 100 * math.ceil(most / 100)
    title = "Time per token of one fusion layer, forward, against the number of visual tokens"
    body = "".join(
        f'<g transform="translate({WIDTH * i} 0)">{_panel(record, lines, top)}</g>'
        for i, (record, lines) in enumerate(panels)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" role="img"'
        f' viewBox="0 0 {WIDTH * max(1, len(panels))} {HEIGHT}">'
        f"<title>{title}</title><style>{STYLE}</style>{body}</svg>\n"
    )


def _lines(record: dict) -> dict[str, list[tuple[float, float]]]:
    """Name -> (visual tokens, microseconds per token) of each length that was measured."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows(record, "length", which=FORWARD):
        if "seconds_per_token" in row:
            point = row["length"], 1e6 * row["seconds_per_token"]
            lines.setdefault(row["name"], []).append(point)
    return lines


def _panel(record: dict, lines: dict[str, list[tuple[float, float]]], top: float) -> str:
    lengths = sorted({x for line in lines.values() for x, _ in line})
    low, span = math.log2(lengths[0]), math.log2(lengths[-1] / lengths[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + PLOT_WIDTH * (math.log2(x) - low) / span
        return round(across, 1), round(TOP + PLOT_HEIGHT * (1 - y / top), 1)

    parts = [f'<text class="name" x="{LEFT}" y="18">{html.escape(device(record))}</text>']
    parts.append(f'<text x="{LEFT}" y="35">µs per token, one layer, forward</text>')
    for y in range(0, int(top) + 1, 100):
        _, at = place(lengths[0], y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{LEFT + PLOT_WIDTH}" y1="{at}" y2="{at}"/>'
            f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{y}</text>'
        )
    for x in lengths[:: max(1, len(lengths) // 4)]:
        across, _ = place(x, 0)
        parts.append(
            f'<text x="{across}" y="{TOP + PLOT_HEIGHT + 18}" text-anchor="middle">{x}</text>'
        )
    parts.append(
        f'<text x="{LEFT + PLOT_WIDTH / 2}" y="{TOP + PLOT_HEIGHT + 36}"'
        ' text-anchor="middle">visual tokens</text>'
    )
    # Name -> its colour and how far its label is moved, so that labels do not touch.
    kinds = {fusions.OURS: ("ours", 10), fusions.BIDIRECTIONAL: ("two", -2)}
    for name, line in lines.items():
        kind, lift = kinds.get(name, ("other", 4))
        points = [place(x, y) for x, y in line]
        path = " ".join(f"{a},{b}" for a, b in points)
        dots = "".join(f'<circle class="{kind}" cx="{a}" cy="{b}" r="2.5"/>' for a, b in points)
        label = html.escape(name.removeprefix("Cross-Mamba, ").removesuffix(" co-attention"))
        parts.append(f'<path class="{kind}" d="M {path}"/>{dots}')
        across, at = points[-1]
        parts.append(f'<text x="{across + 8}" y="{round(at + lift, 1)}">{label}</text>')
    return "".join(parts)
