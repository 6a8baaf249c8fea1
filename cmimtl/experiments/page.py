"""The page of a study: one HTML file, with nothing beside it, that begins with what was found."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cmimtl.experiments.record import arm_of
from cmimtl.experiments.study import Study

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #1a1a1a; background: #fff }
.found { font-size: 1.25em; border-left: 4px solid #0072B2; padding-left: .8em }
.warning { background: #fff3cd; padding: .5em .8em }
div { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
caption { text-align: left; color: #555; padding-bottom: .3em }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd;
         vertical-align: bottom }
th { border-bottom: 2px solid #888 }
td:first-child, th:first-child { text-align: left }
svg { max-width: 100%; height: auto }
"""
# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

Table = Sequence[Sequence[str]]


def page(study: Study, record: Mapping[str, Any]) -> str:
    """The page of a record."""
    escape = html.escape
    parts = [
        f"<h1>{escape(record['study'])}</h1>",
        f'<p class="found">{escape(record["found"])}</p>',
    ]
    if record["quick"]:
        parts.append(
            '<p class="warning">The trainings were shortened to seconds, to test the study itself.'
            " Its numbers say nothing.</p>"
        )
    parts += [
        f"<p><b>Question.</b> {escape(record['question'])}</p>",
        f"<p>{escape(_how(record))}</p>",
        f"<p><b>Bounds.</b> {escape(study.bounds)}</p>" if study.bounds else "",
        _svg(scores_picture(study, record)),
        _table("scores in %, with 95 % intervals over images and seeds", _scores(study, record)),
    ]
    if record["comparisons"]:
        parts.append(
            _table(
                "differences in percentage points, paired by question; p-values are corrected"
                " after Holm for all comparisons of this page",
                _differences(study, record),
            )
        )
    for caption, table in study.tables(record):
        parts.append(_table(caption, table))
    for figure in study.pictures(record):
        parts.append(_svg(figure))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>cmimtl experiment {escape(record['study'])}</title><style>{STYLE}</style>"
        f"{''.join(parts)}\n"
    )


def _how(record: Mapping[str, Any]) -> str:
    """How the numbers came about, in two sentences."""
    machine, versions = record["machine"], record["versions"]
    arguments = ", ".join(f"{name} {value}" for name, value in record["arguments"].items())
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return (
        f"{len(record['arms'])} arms of {len(record['seeds'])} seeds each, trained with {arguments}"
        f" on {where}; cmimtl {versions['cmimtl']}, torch {versions['torch']},"
        f" {record['created'][:10]}, commit {(record['commit'] or 'unknown')[:12]}."
    )


def percent(estimate: Mapping[str, Any]) -> str:
    """A score with its interval, in percent."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _scores(study: Study, record: Mapping[str, Any]) -> Table:
    measures, summaries = shown(study, record), study.summaries
    heads = [f"{study.measures[name].title} ({_questions(record, name)})" for name in measures]
    costs = ("step, ms", "memory, MB", "parameters") if study.costs else ()
    rows = [["", *heads, *(summary.title for summary in summaries.values()), *costs, "warnings"]]
    for arm in record["arms"]:
        of_arm = arm["measures"]
        cells = [percent(of_arm[name]) if name in of_arm else "-" for name in measures]
        for name in summaries:
            by_seed = ", ".join(f"{100 * value:.1f}" for value in arm["summaries"][name]["by_seed"])
            cells.append(f"{100 * arm['summaries'][name]['value']:.1f} ({by_seed})")
        if study.costs:
            costs_of = arm["costs"]
            cells += [f"{costs_of['step_ms']:.1f}", f"{costs_of['memory_mb']:.0f}"]
            cells.append(f"{costs_of['parameters']:,}")
        cells.append(str(sum(map(len, arm["warnings"]))))
        rows.append([arm["title"], *cells])
    return rows


def shown(study: Study, record: Mapping[str, Any]) -> list[str]:
    """The measures that the page shows of all arms."""
    counted = {name for arm in record["arms"] for name in arm["measures"]}
    return [name for name, m in study.measures.items() if m.shown and name in counted]


def _questions(record: Mapping[str, Any], name: str) -> str:
    """How many questions a measure counts; "40 to 60" where arms are asked different ones."""
    found = [
        arm["measures"][name]["questions"] for arm in record["arms"] if name in arm["measures"]
    ]
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"


def _differences(study: Study, record: Mapping[str, Any]) -> Table:
    rows = [["", "by", "difference", "95 % interval", "p", "p corrected", ""]]
    for c in record["comparisons"]:
        value, low, high = (f"{100 * c[name]:+.1f}" for name in ("value", "low", "high"))
        rows.append(
            [
                " - ".join(
                    arm_of(record, c[which])["title"] for which in ("better", "than") if c[which]
                ),
                study.measures[c["measure"]].title,
                value,
                f"{low} to {high}",
                f"{c['p']:.2g}",
                f"{c['p_corrected']:.2g}",
                "significant" if c["significant"] else "not significant",
            ]
        )
    return rows


def scores_picture(study: Study, record: Mapping[str, Any]) -> Figure:
    """Every score of every arm, with its interval; small marks are the seeds."""
    names = shown(study, record)
    arms = record["arms"]
    figure, panels = plt.subplots(
        1, len(names), figsize=(2 + 2.6 * len(names), 1.2 + 0.36 * len(arms)), sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axes, name in zip(panels[0], names, strict=True):
        for y, arm in enumerate(arms):
            if name not in arm["measures"]:
                continue
            measure, colour = arm["measures"][name], COLOURS[y % len(COLOURS)]
            axes.plot([100 * measure["low"], 100 * measure["high"]], [y, y], color=colour, lw=2)
            axes.plot(100 * measure["value"], y, "o", color=colour)
            seeds = [100 * value for value in measure["by_seed"]]
            axes.plot(seeds, [y] * len(seeds), "|", color=colour, ms=9)
        axes.set_title(study.measures[name].title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("%")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(arms)), [arm["title"] for arm in arms])
    panels[0][0].invert_yaxis()
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Without date and with a fixed salt, the same record gives the same page.
    with plt.rc_context({"svg.hashsalt": "cmimtl", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return f"<p>{text[text.index('<svg') :]}</p>"


def _table(caption: str, table: Table) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in table[1:])
    return (
        f"<div><table><caption>{html.escape(caption)}</caption>{line(table[0], 'th')}{body}"
        "</table></div>"
    )
