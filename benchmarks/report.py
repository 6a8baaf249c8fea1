"""Records -> pictures, one self-contained page, and the numbers of the README.

    cmimtl bench report RECORD… [--page FILE] [--pictures DIR] [--readme README.md]

The section of the README between its two markers is `readme_section(record)` of the committed
record; benchmarks/test_report.py holds that.
"""

import argparse
import base64
import html
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import limits

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
COMMITTED = Path(__file__).parent / "records"

# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Bytes that the scan moves at least for one channel step, float32. Forward: u, delta, z in, out
# out. Backward: these and dout in, du, ddelta, dz out. B and C are shared by all channels.
BYTES_PER_STEP = {"forward": 16, "backward": 32}


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def _rows(record: dict, suite: str, **fields) -> list[dict]:
    return [
        row
        for row in record["rows"]
        if row["suite"] == suite and all(row.get(k) == v for k, v in fields.items())
    ]


def _by_name(rows: Iterable[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


# Pictures


def roofline(record: dict):
    """Each scan workload between the two limits that were measured in its run."""
    peak = record["limits"]["fma_per_second"]
    rows = [
        row
        for row in _rows(record, "ops")
        if "seconds" in row and row["which"] in BYTES_PER_STEP and row.get("share_of_limit")
    ]
    ours = _ours(record)
    rows = [row for row in rows if row["name"] == ours]
    if not rows or not peak:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    bandwidth = record["limits"]["bytes_per_second"]
    intensities = [0.25, peak / bandwidth, 64]
    axes.plot(intensities, [min(peak, bandwidth * i) / 1e9 for i in intensities], "k-", lw=1.5)
    axes.annotate("FMA pipes", (40, peak / 1e9), ha="right", va="bottom")
    axes.annotate(
        "memory",
        (0.5, bandwidth * 0.5 / 1e9),
        xytext=(0, 4),
        textcoords="offset points",
        rotation=35,
        ha="center",
        va="bottom",
    )
    for which, marker, colour in (("forward", "o", COLOURS[0]), ("backward", "s", COLOURS[1])):
        chosen = [row for row in rows if row["which"] == which]
        intensity = 16 * limits.FMA_OPS[which] / BYTES_PER_STEP[which]
        rates = [
            row["batch"] * row["length"] * row["dim"] * row["dstate"] * limits.FMA_OPS[which]
            / row["seconds"] / 1e9
            for row in chosen
        ]  # fmt: skip
        axes.plot([intensity] * len(rates), rates, marker, color=colour, label=which, alpha=0.7)
    axes.set(xscale="log", yscale="log", xlabel="FMA operations per byte of inputs and outputs")
    axes.set_ylabel("10⁹ FMA operations per second")
    axes.set_title("Selective scan, float32, all workloads")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def against_length(record: dict):
    """Time of one fusion layer against the visual length, batch 1."""
    panels = [w for w in ("forward", "forward+backward") if _rows(record, "length", which=w)]
    if not panels:
        return None
    memory = _by_name(_rows(record, "length memory"))
    count = len(panels) + bool(memory)
    figure, all_axes = plt.subplots(1, count, figsize=(4.2 * count, 4.2), layout="constrained")
    all_axes = [all_axes] if count == 1 else list(all_axes)
    for axes, which in zip(all_axes, panels, strict=False):
        for (name, rows), colour in zip(
            _by_name(_rows(record, "length", which=which)).items(), COLOURS, strict=False
        ):
            rows = [row for row in rows if "seconds" in row]
            xs, ys = [row["length"] for row in rows], [1e3 * row["seconds"] for row in rows]
            axes.plot(xs, ys, "o-", color=colour, label=name, ms=4)
        axes.set(title=which, ylabel="milliseconds")
    if memory:
        for (name, rows), colour in zip(memory.items(), COLOURS, strict=False):
            xs, ys = [row["length"] for row in rows], [row["peak_bytes"] / 2**20 for row in rows]
            all_axes[-1].plot(xs, ys, "o-", color=colour, label=name, ms=4)
        all_axes[-1].set(title="peak memory, forward+backward", ylabel="MiB")
    for axes in all_axes:
        axes.set(xscale="log", yscale="log", xlabel="visual tokens (batch 1, 32 text tokens)")
        axes.grid(alpha=0.3)
    all_axes[0].legend(fontsize=8)
    figure.suptitle("One fusion layer, d_model 768")
    return figure


def block_profile(record: dict):
    """The parts of a block's forward and backward pass, stacked."""
    rows = _rows(record, "block")
    if not rows:
        return None
    sizes = sorted({(r["batch"], r["n_visual"], r["n_text"]) for r in rows}, reverse=True)
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.7 * len(sizes)), layout="constrained")
    labels = [f"batch {b}, {v} + {t} tokens" for b, v, t in sizes]
    left = [0.0] * len(sizes)
    for (part, own), colour in zip(_by_name(rows).items(), COLOURS, strict=False):
        shares = {(r["batch"], r["n_visual"], r["n_text"]): 100 * r["share"] for r in own}
        widths = [shares[size] for size in sizes]
        bars = axes.barh(labels, widths, left=left, color=colour, label=part)
        texts = [f"{w:.0f} %" if w >= 4 else "" for w in widths]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=8)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="% of the time of forward and backward", xlim=(0, 100))
    axes.legend(ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def ops_bars(record: dict):
    """How many times the time of our kernel each baseline takes."""
    rows = [r for r in _rows(record, "ops") if "ratio" in r and r["name"] != _ours(record)]
    if not rows:
        return None
    workloads = sorted(
        {(r["batch"], r["length"], r["dim"]) for r in rows}, key=lambda w: -w[0] * w[1]
    )
    figure, all_axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
    names = list(_by_name(rows))
    for axes, which in zip(all_axes, ("forward", "forward+backward"), strict=True):
        height = 0.8 / len(names)
        for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            ratios = {
                (r["batch"], r["length"], r["dim"]): r["ratio"]
                for r in rows
                if r["which"] == which and r["name"] == name
            }
            places = [j + i * height for j, w in enumerate(workloads) if w in ratios]
            bars = axes.barh(
                places,
                [ratios[w] for w in workloads if w in ratios],
                height,
                color=colour,
                label=name,
            )
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.axvline(1, color="k", lw=1)
        axes.set(xscale="log", title=which, xlabel="times the time of our kernel")
        axes.set_yticks([j + 0.4 - height / 2 for j in range(len(workloads))])
        axes.set_yticklabels([f"{b} x {n} x {d}" for b, n, d in workloads])
        axes.margins(x=0.15)
    all_axes[0].invert_yaxis()
    all_axes[0].set_ylabel("batch x length x dim")
    figure.legend(
        *all_axes[0].get_legend_handles_labels(), ncols=3, fontsize=8, loc="outside lower center"
    )
    return figure


PICTURES: dict[str, Callable] = {
    "scan-against-baselines": ops_bars,
    "roofline": roofline,
    "fusion-against-length": against_length,
    "block-profile": block_profile,
}


def _ours(record: dict) -> str:
    names = {row["name"] for row in _rows(record, "ops")}
    return next((name for name in ("cuda", "triton", "cpu") if name in names), "cpu")


# Tables


def fusion_table(record: dict) -> list[list[str]]:
    header = [
        "fusion (batch, visual + text tokens)", "parameters", "forward", "forward + backward",
        "samples/s in training", "time against Cross-Mamba", "kept for backward", "peak",
    ]  # fmt: skip
    table = [header]
    for row in _rows(record, "fusion", which="forward+backward"):
        if "parameters" not in row and "not_run" not in row:
            continue
        size = {k: row[k] for k in ("batch", "n_visual", "n_text")}
        label = f"{row['name']} ({size['batch']}, {size['n_visual']} + {size['n_text']})"
        if "not_run" in row:
            table.append([label, "", "", f"not run: {row['not_run']}", "", "", "", ""])
            continue
        forward = next(
            iter(_rows(record, "fusion", which="forward", name=row["name"], **size)), None
        )
        memory = next(iter(_rows(record, "fusion memory", name=row["name"], **size)), None)
        table.append(
            [
                label,
                f"{row['parameters'] / 1e6:.1f} M",
                _milliseconds(forward["seconds"]) if forward else "",
                _milliseconds(row["seconds"]),
                f"{row['samples_per_second']:.1f}",
                f"{row['ratio']:.1f}x",
                _megabytes(memory["kept_bytes"]) if memory else "",
                _megabytes(memory["peak_bytes"]) if memory else "",
            ]
        )
    return table


def ops_table(record: dict) -> list[list[str]]:
    header = [
        "batch x length x dim",
        "pass",
        "who",
        "ns/element",
        "spread",
        "of the limit",
        "against ours",
    ]
    table = [header]
    for row in _rows(record, "ops"):
        shape = f"{row['batch']} x {row['length']} x {row['dim']}"
        if "not_run" in row:
            table.append(
                [shape, row["which"], row["name"], f"not run: {row['not_run']}", "", "", ""]
            )
            continue
        share = row.get("share_of_limit")
        table.append(
            [
                shape,
                row["which"],
                row["name"],
                f"{row['ns_per_element']:.3f}",
                f"{100 * row['spread']:.0f} %",
                f"{100 * share:.0f} %" if share else "",
                f"{row['ratio']:.1f}x" if "ratio" in row else "",
            ]
        )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.2f} ms"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _markdown(table: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


# Where they go


def readme_section(record: dict) -> str:
    """The text between the markers of the README, every number of it from the record."""
    ours = _ours(record)
    lines = [
        f"Measured on {record['device']}, torch {record['versions']['torch']}, float32,"
        f" {record['created'][:10]}; the record is in `benchmarks/records/`.",
        "",
        "Fusion alone, d_model 768, one training step without the optimizer:",
        "",
        _markdown(fusion_table(record)),
        "",
        "The scan with softplus, bias, D and gate, dstate 16; the limit is that of the FMA pipes:",
        "",
        _markdown([row for row in ops_table(record) if row[2] in ("who", ours, _STRONGEST)]),
    ]
    return "\n".join(lines)


_STRONGEST = "torch.compile of a 16-step loop"


def replace_section(text: str, section: str) -> str:
    """The README with the section between its markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README: it must hold {BEGIN} and {END} once each")
    head, rest = text.split(BEGIN)
    body = f"{section}\n" if section else ""
    return f"{head}{BEGIN}\n{body}{END}{rest.split(END)[1]}"


def page(records: list[dict]) -> str:
    """One HTML page without any file beside it."""
    parts = []
    for record in records:
        versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        about = (
            f"{record['device']}; {versions}; commit {record['commit'][:12]}; {record['created']}"
        )
        parts.append(f"<h2>{html.escape(record['device'])}</h2><p>{html.escape(about)}</p>")
        for name, draw in PICTURES.items():
            if (figure := draw(record)) is not None:
                data = base64.b64encode(_png(figure)).decode()
                parts.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
        for title, table in (("Fusion", fusion_table(record)), ("Scan", ops_table(record))):
            if len(table) > 1:
                parts.append(f"<h3>{title}</h3>{_html(table)}")
    style = (
        "body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .7em}"
        "img{max-width:100%}"
    )
    return (
        "<!doctype html><meta charset=utf-8><title>cmimtl benchmarks</title>"
        f"<style>{style}</style><h1>cmimtl benchmarks</h1>{''.join(parts)}\n"
    )


def _html(table: list[list[str]]) -> str:
    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in row) + "</tr>"

    return f"<table>{line(table[0], 'th')}{''.join(line(row, 'td') for row in table[1:])}</table>"


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def write(path: Path, content: str | bytes) -> None:
    """Write to a temporary name and move."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="cmimtl bench report", description=__doc__)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    parser.add_argument("--page", type=Path, default=Path("benchmarks.html"))
    parser.add_argument("--pictures", type=Path, help="folder for the pictures as PNG files")
    parser.add_argument(
        "--readme", type=Path, help="file whose section is written from the first record"
    )
    options = parser.parse_args(arguments)
    records = [load(path) for path in options.records]
    write(options.page, page(records))
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for name, draw in PICTURES.items():
            if (figure := draw(records[0])) is not None:
                write(options.pictures / f"{name}.png", _png(figure))
    if options.readme:
        text = options.readme.read_text()
        write(options.readme, replace_section(text, readme_section(records[0])))


if __name__ == "__main__":
    main()
