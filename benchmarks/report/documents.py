"""Records -> the section of the README, RESULTS.md, and the page."""

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.report import claims, plot, tables
from benchmarks.report.pictures import PICTURES
from benchmarks.report.records import device, ours

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def documents(records: list[dict], root: Path) -> dict[Path, str]:
    """Every document of a checkout that has numbers of the records, with its text."""
    readme = root / "README.md"
    return {
        readme: replace_section(readme.read_text(), readme_section(records)),
        root / "docs" / "measured.svg": plot.svg(records),
        root / "benchmarks" / "RESULTS.md": results(records),
    }


def replace_section(text: str, section: str) -> str:
    """The README with the section between its markers replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README: it must hold {BEGIN} and {END} once each")
    head, rest = text.split(BEGIN)
    body = f"{section}\n" if section else ""
    return f"{head}{BEGIN}\n{body}{END}{rest.split(END)[1]}"


def readme_section(records: list[dict]) -> str:
    """The text between the markers of the README, every number of it from the records."""
    if not records:
        return ""
    about = " ".join(
        f"{device(record)}: {record['threads']} threads, `{ours(record)}` kernels of commit"
        f" {record['commit'][:12]}, torch {record['versions']['torch']}, float32,"
        f" {record['created'][:10]}."
        for record in records
    )
    parts = [
        f"{about} `pytest benchmarks/` measures your machine."
        " [All results](benchmarks/RESULTS.md), those where others are faster included.",
        _markdown(tables.overview_table(records)),
        "![The time per token stays the same for Cross-Mamba, and grows with the number of tokens"
        " for a Transformer.](docs/measured.svg)",
    ]
    return "\n\n".join(parts)


def sections(record: dict) -> Iterator[str | tables.Table]:
    """The texts and tables of one record."""
    yield (
        f"Measured on {record['device']}, torch {record['versions']['torch']}, float32,"
        f" {record['created'][:10]}, kernels of commit {record['commit'][:12]}."
    )
    for text, make in tables.SECTIONS:
        table = make(record)
        if len(table) > 1:
            yield from (part for part in (*text.split("\n\n"), table) if part)


def results(records: list[dict]) -> str:
    """benchmarks/RESULTS.md, every number of it from the records."""
    parts = [
        "# Results",
        "`cmimtl bench report` makes this page from the records in `benchmarks/records/`."
        " [README.md](README.md) tells how they are measured, and what the columns mean.",
    ]
    for record in records:
        parts.append(f"## {device(record)}")
        parts += (p if isinstance(p, str) else _markdown(p) for p in sections(record))
    if records:
        parts += ["## Claims", "What we claim, held to the records by a test:"]
        parts.append(_markdown(claims.table(records)))
    return "\n\n".join(parts) + "\n"


def _markdown(table: tables.Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em;
       color: #1a1a1a; background: #fff }
div { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #888; vertical-align: bottom }
td:first-child, th:first-child, td.text { text-align: left }
td { white-space: nowrap }
img { max-width: 100% }
"""
EXPLANATION = (
    "Medians of interleaved rounds. A limit is the least time in which the machine could do the"
    " work: the FMA pipes, the memory or the EX2 pipes, whichever is slowest. On a CPU their rates"
    " are measured in the same run. The limit of a module leaves out its elementwise work. Kept:"
    " what lies in memory between forward and backward pass. Peak: the most memory in use at once"
    " in a fresh process, above what was there before the call; gradients count, inputs and"
    " parameters do not."
)


def page(records: list[dict], drawn: list[dict[str, bytes]]) -> str:
    """One HTML page without any file beside it.

    Args:
        drawn: the `pictures` of each record.
    """
    parts = ["<h2>Claims</h2>", _html(claims.table(records))]
    for record, images in zip(records, drawn, strict=True):
        parts.append(f"<h2>{html.escape(record['device'])}</h2>")
        for name, image in images.items():
            data = base64.b64encode(image).decode()
            parts.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
        for part in sections(record):
            text = isinstance(part, str) and html.escape(part.removeprefix("\\"))
            parts.append(f"<p>{text}</p>" if text else _html(part))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>cmimtl benchmarks</title><style>{STYLE}</style><h1>cmimtl benchmarks</h1>"
        f"<p>{EXPLANATION}</p>{''.join(parts)}\n"
    )


def pictures(record: dict) -> dict[str, bytes]:
    """Every picture that the record has rows for, as PNG, by name."""
    drawn = {}
    for name, draw in PICTURES.items():
        if (figure := draw(record)) is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=110)
            plt.close(figure)
            drawn[name] = buffer.getvalue()
    return drawn


def _html(table: tables.Table) -> str:
    def cell(text: str, tag: str) -> str:
        # Words stand to the left, numbers to the right.
        kind = "" if tag == "th" or text[:1].isdigit() or len(text) < 4 else ' class="text"'
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    def line(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(cell(text, tag) for text in row) + "</tr>"

    body = "".join(line(row, "td") for row in table[1:])
    return f"<div><table>{line(table[0], 'th')}{body}</table></div>"
