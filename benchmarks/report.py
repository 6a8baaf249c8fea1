"""Records -> pictures, one self-contained page, and the numbers of the documents.

    cmimtl bench report RECORD… [--page FILE] [--pictures DIR] [--documents DIR]

Several records stand side by side in the page's first table and follow one another below. The
documents are those of a checkout, DIR: the section of README.md between its two markers, its plot
docs/measured.svg, and benchmarks/RESULTS.md. They come from the records in benchmarks/records/;
benchmarks/test_report.py holds that.
"""

import argparse
import base64
import html
import io
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks import claims, overview, tables
from benchmarks.pictures import PICTURES
from benchmarks.records import load, ours
from cmimtl.files import check_folder, check_writable

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

EXPLANATION = (
    "Medians of interleaved rounds. A limit is the least time that the machine could do the work"
    " in: FMA pipes, memory or EX2 pipes, whichever is slowest, with rates measured in the same run"
    " on a CPU; elementwise work is left out of the limit of a module. Kept: what lies in memory"
    " between forward and backward. Peak: the most memory in use at once in a fresh process above"
    " what was there before the call, gradients included, inputs and parameters not."
)


def about(record: dict) -> str:
    """What a record was measured on, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{record['device']}; {versions}; commit {record['commit'][:12]}; {record['created']}"


def _markdown(table: tables.Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def readme_section(records: list[dict]) -> str:
    """The text between the markers of the README, every number of it from the records."""
    if not records:
        return ""
    parts = [
        f"{overview.about(records)} `pytest benchmarks/` measures your machine."
        " [All results](benchmarks/RESULTS.md), those where others are faster included.",
        _markdown(overview.table(records)),
        "![The time per token stays the same for Cross-Mamba, and grows with the number of tokens"
        " for a Transformer.](docs/measured.svg)",
    ]
    return "\n\n".join(parts)


def results(records: list[dict]) -> str:
    """benchmarks/RESULTS.md, every number of it from the records."""
    parts = [
        "# Results",
        "`cmimtl bench report` makes this page from the records in `benchmarks/records/`."
        " [README.md](README.md) tells how they are measured, and what the columns mean.",
    ]
    for record in records:
        parts += [
            f"## {claims.short_device(record)}",
            f"Measured on {record['device']}, torch {record['versions']['torch']}, float32,"
            f" {record['created'][:10]}, kernels of commit {record['commit'][:12]}.",
            "Fusion alone, d_model 768, Cross-Mamba with 2 layers against co-attention with 6 per"
            " stream; forward + backward is a training step without the optimizer:",
            _markdown(tables.fusion_table(record)),
            _markdown(tables.slope_table(record)),
            f"The scan with softplus, bias, D and gate, dstate 16, `{ours(record)}` against the"
            " others (batch x length x dim, pass):",
            _markdown(tables.speedup_table(record)),
            "\\* Not run: from its time at a smaller size. The gradient of indexing a step is as"
            " large as the sequence, so the backward passes of mamba's reference and of"
            " transformers' slow path are quadratic in length.",
            "Each pass by itself, in a process whose allocator keeps its memory:",
            _markdown(tables.kernel_table(record)),
            _markdown(tables.memory_table(record)),
        ]
    if records:
        parts += [
            "## Claims",
            "What we claim, held to the records by a test:",
            _markdown(claims.table(records)),
        ]
    return "\n\n".join(parts) + "\n"


def documents(records: list[dict], root: Path) -> dict[Path, str]:
    """Every document of a checkout that has numbers of the records, with its text."""
    readme = root / "README.md"
    return {
        readme: replace_section(readme.read_text(), readme_section(records)),
        root / "docs" / "measured.svg": overview.plot(records),
        root / "benchmarks" / "RESULTS.md": results(records),
    }


def replace_section(text: str, section: str) -> str:
    """The README with the section between its markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README: it must hold {BEGIN} and {END} once each")
    head, rest = text.split(BEGIN)
    body = f"{section}\n" if section else ""
    return f"{head}{BEGIN}\n{body}{END}{rest.split(END)[1]}"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em;
       color: #1a1a1a; background: #fff }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #888; vertical-align: bottom }
td:first-child, th:first-child, td.text { text-align: left }
td { white-space: nowrap }
img { max-width: 100% }
.about { color: #555 }
.wide { overflow-x: auto }
"""


def page(records: list[dict]) -> str:
    """One HTML page without any file beside it."""
    parts = ["<h2>Side by side</h2>", _html(claims.table(records))]
    for record in records:
        parts.append(f"<h2>{html.escape(record['device'])}</h2>")
        parts.append(f'<p class="about">{html.escape(about(record))}</p>')
        for name, figure in pictures(record):
            data = base64.b64encode(_png(figure)).decode()
            parts.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
        named = {
            "The scan against the baselines": tables.speedup_table,
            "Each pass by itself, memory kept by the allocator": tables.kernel_table,
        } | tables.TABLES
        for title, make in named.items():
            table = make(record)
            if len(table) > 1:
                parts.append(f"<h3>{title}</h3>{_html(table)}")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>cmimtl benchmarks</title><style>{STYLE}</style><h1>cmimtl benchmarks</h1>"
        f"<p>{html.escape(EXPLANATION)}</p>{''.join(parts)}\n"
    )


def pictures(record: dict):
    """(name, figure) of every picture that the record has rows for."""
    for name, draw in PICTURES.items():
        if (figure := draw(record)) is not None:
            yield name, figure


def _html(table: tables.Table) -> str:
    def cell(text: str, tag: str) -> str:
        # words to the left, numbers to the right
        kind = "" if tag == "th" or text[:1].isdigit() or len(text) < 4 else ' class="text"'
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(cell(text, tag) for text in row) + "</tr>"

    body = "".join(line(row, "td") for row in table[1:])
    return f'<div class="wide"><table>{line(table[0], "th")}{body}</table></div>'


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
    parser.add_argument("--documents", type=Path, help="checkout whose documents are written")
    options = parser.parse_args(arguments)
    # Before the pictures, which take a while: what is written can be.
    check_writable("bench report", "--page", options.page)
    if options.pictures:
        check_folder("bench report", "--pictures", options.pictures)
    records = [load(path) for path in options.records]
    texts = documents(records, options.documents) if options.documents else {}
    for path in texts:
        check_writable("bench report", "--documents", path)
    write(options.page, page(records))
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for path, record in zip(options.records, records, strict=True):
            prefix = f"{path.stem}-" if len(records) > 1 else ""
            for name, figure in pictures(record):
                write(options.pictures / f"{prefix}{name}.png", _png(figure))
    for path, text in texts.items():
        write(path, text)


if __name__ == "__main__":
    main()
