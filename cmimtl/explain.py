"""Pictures of answers, with the Q-Former's attention over the image."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cmimtl.answer import Answer, QuestionAnswerer
from cmimtl.files import check_writable, temporary_name

_PANEL_INCHES = 3.2
_DPI = 150
_LINE = 46  # characters of text beside the panels


def draw(
    path: str | os.PathLike[str], answers: Sequence[Answer], truths: Sequence[str | None]
) -> None:
    """Draw answers one below the other: image, attention over it, question and what was answered.

    Args:
        path: the file, of a kind that matplotlib writes (png, pdf, svg, …).
        answers: at least one.
        truths: the true answer of each, or None where it is not known.
    Raises:
        ValueError: nothing to draw, another number of truths, or an unknown suffix.
    """
    path = Path(path)
    if not answers or len(answers) != len(truths):
        raise ValueError(
            "draw: answers and truths must have one length of at least 1,"
            f" got {len(answers)} and {len(truths)}."
        )
    check_suffix(path)
    rows = len(answers)
    figure = Figure(
        figsize=(3.6 * _PANEL_INCHES, rows * _PANEL_INCHES), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 3, squeeze=False, width_ratios=(1, 1.16, 1.4))
    for (image, overlay, text), answer, truth in zip(panels, answers, truths, strict=True):
        for panel in (image, overlay, text):
            panel.set_axis_off()
        image.imshow(answer.picture)
        size = answer.picture.shape[0]
        overlay.imshow(answer.picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        # 1 where attention is what it would be if all patches had the same
        relative = answer.attention * answer.attention.size
        shown = overlay.imshow(
            relative,
            cmap="inferno",
            alpha=0.55,
            extent=(-0.5, size - 0.5, size - 0.5, -0.5),
            interpolation="bilinear",
            vmin=0,
            vmax=max(2.0, float(np.max(relative))),
        )
        figure.colorbar(shown, ax=overlay, shrink=0.85, label="attention / mean")
        text.text(0, 0.95, _words(answer, truth), va="top", fontsize=10, transform=text.transAxes)
    panels[0, 0].set_title("image", fontsize=11)
    panels[0, 1].set_title("Q-Former's attention", fontsize=11)
    temporary = temporary_name(path)
    try:
        figure.savefig(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_suffix(path: Path) -> None:
    """Raises: ValueError: matplotlib writes no such files."""
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(
            f"draw: path must end in one of {', '.join('.' + kind for kind in sorted(kinds))},"
            f" got {path.name!r}."
        )


def _words(answer: Answer, truth: str | None) -> str:
    parts = [answer.question, ""]
    if truth is not None:
        parts += [f"true answer: {truth}", ""]
    parts += ["classifier:"]
    parts += [f"    {text} ({probability:.0%})" for text, probability in answer.classes]
    parts += ["", "decoder:", f"    {answer.generated} ({answer.generated_probability:.0%})"]
    lines = [textwrap.wrap(part, _LINE, subsequent_indent="    ") or [""] for part in parts]
    return "\n".join(line for wrapped in lines for line in wrapped)


def answer_and_draw(
    run: str | os.PathLike[str],
    image: str | os.PathLike[str],
    question: str,
    *,
    output: str | os.PathLike[str] | None = None,
) -> Answer:
    """Answer a question about an image with both heads, print the answers and draw them.

    Args:
        run: folder that ``cmimtl train`` left.
        image: a path of a PNG, JPEG, DICOM, … file.
        question: in words.
        output: where the picture goes; None for none.
    Raises:
        ValueError: run holds no finished model, image is none, or output cannot be written.
    """
    if output is not None:
        output = check_writable("answer", "output", output)
        check_suffix(output)
    answer = QuestionAnswerer.from_run(run).answer(image, question)
    print(_words(answer, None))
    if output is not None:
        draw(output, [answer], [None])
    return answer
