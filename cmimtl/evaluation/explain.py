"""Draw answers, each with its image and with the Q-Former's attention over the image."""

from __future__ import annotations

import os
import textwrap
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font

from cmimtl.evaluation.answer import Answer, QuestionAnswerer
from cmimtl.files import check_writable, temporary_name

_PANEL_INCHES = 3.2
_DPI = 150
_LINE = 46  # characters in a line of text beside the panels; wide characters count twice
_POINTS = 10  # size of that text
_LINE_INCHES = 1.25 * _POINTS / 72

# This note tells how to read a picture: by the convention of radiology, which the phantom set
# follows, and by what attention to a place does not mean.
_CAPTION = (
    "The left of a picture is the patient's right. Patches are attended to after the encoder's"
    " layers have exchanged\nwhat they hold, so that attention to a place need not mean that this"
    " place is looked at."
)


def draw(
    path: str | os.PathLike[str], answers: Sequence[Answer], truths: Sequence[str | None]
) -> None:
    """Draw answers one below the other, each with its image, the attention over it and the text.

    Args:
        path: the file to write, of a kind that matplotlib writes (png, pdf, svg, …).
        answers: at least one answer.
        truths: the true answer to each question, or None where it is not known.
    Raises:
        ValueError: there is nothing to draw, another number of truths, or an unknown suffix.
    """
    path = Path(path)
    if not answers or len(answers) != len(truths):
        raise ValueError(
            "draw: answers and truths must have one length of at least 1,"
            f" got {len(answers)} and {len(truths)}."
        )
    check_suffix(path)
    texts = [_words(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    fonts, texts = _drawable(texts)
    heights = [max(_PANEL_INCHES, (text.count("\n") + 2) * _LINE_INCHES) for text in texts]
    figure = Figure(figsize=(3.6 * _PANEL_INCHES, sum(heights)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(answers), 3, squeeze=False, width_ratios=(1, 1.16, 1.4), height_ratios=heights
    )
    for (image, overlay, text), answer, words in zip(panels, answers, texts, strict=True):
        for panel in (image, overlay, text):
            panel.set_axis_off()
        image.imshow(answer.picture)
        size = answer.picture.shape[0]
        overlay.imshow(answer.picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        # The ratio is 1 where attention is what it would be if all patches had the same.
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
        text.text(
            0,
            1,
            words,
            va="top",
            fontsize=_POINTS,
            fontfamily=fonts,
            parse_math=False,
            transform=text.transAxes,
        )
    panels[0, 0].set_title("image, as the model sees it", fontsize=11)
    panels[0, 1].set_title("Q-Former's attention", fontsize=11)
    figure.supxlabel(_CAPTION, fontsize=9, x=0, ha="left")
    temporary = temporary_name(path)
    try:
        figure.savefig(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_suffix(path: Path) -> None:
    """Check that matplotlib writes files of this suffix.

    Raises:
        ValueError: it does not.
    """
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(
            f"draw: path must end in one of {', '.join('.' + kind for kind in sorted(kinds))},"
            f" got {path.name!r}."
        )


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose fonts that have the letters of some texts.

    -> the font families, the usual one first, and the texts. A letter that no installed font has is
    replaced by its number, with a warning, so that it is not drawn as an empty box.
    """
    fonts = ["DejaVu Sans"]  # this font comes with matplotlib
    missing = {letter for text in texts for letter in text if not letter.isspace()}
    missing -= _letters(font_manager.findfont("DejaVu Sans"))
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name):
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # this font draws every letter as a box
            continue
        if missing & (found := _letters(entry.fname)):
            fonts.append(entry.name)
            missing -= found
    if missing:
        warnings.warn(
            "draw: an installed font must have every letter of the text, got none with"
            f" {''.join(sorted(missing))!r}; install one, such as Noto Sans.",
            stacklevel=3,
        )
    numbers = {ord(letter): f"[U+{ord(letter):04X}]" for letter in missing}
    return fonts, [text.translate(numbers) for text in texts]


def _letters(font: str) -> set[str]:
    try:
        return set(map(chr, get_font(font).get_charmap()))
    except RuntimeError:  # matplotlib lists the font, but cannot read it
        return set()


def _wrap(text: str) -> list[str]:
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    width = _LINE // 2 if wide else _LINE
    return textwrap.wrap(text, width, subsequent_indent="    ") or [""]


def _words(answer: Answer, truth: str | None) -> str:
    parts = [answer.question, ""]
    if answer.unread:
        parts[1:1] = [f"({answer.unread} tokens at its end were not read)"]
    if truth is not None:
        parts += [f"true answer: {truth}", ""]
    parts += ["classifier:"]
    parts += [f"    {text} ({probability:.0%})" for text, probability in answer.classes]
    if answer.generated is not None:
        parts += ["", "decoder:", f"    {answer.generated} ({answer.generated_probability:.0%})"]
    return "\n".join(line for part in parts for line in _wrap(part))


def answer_and_draw(
    run: str | os.PathLike[str],
    image: str | os.PathLike[str],
    question: str,
    *,
    frame: int | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Answer:
    """Answer a question about an image with both heads, print the answers and draw them.

    Args:
        run: a folder with a model that ``cmimtl train`` wrote.
        image: a path of a PNG, JPEG, DICOM, … file.
        question: the question, in words.
        frame: which frame or page of several, counted from 0; None takes the middle one.
        output: where the picture is written; None for no picture.
    Raises:
        ValueError: run holds no finished model, image is not an image or has no such frame, or
            output cannot be written.
    """
    if output is not None:
        output = check_writable("answer", "output", output)
        check_suffix(output)
    answer = QuestionAnswerer.from_run(run).answer(image, question, frame=frame)
    print(_words(answer, None))
    if output is not None:
        draw(output, [answer], [None])
    return answer
