"""Pictures of answers: everything that is said is on them, in letters that can be read."""

import itertools
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from cmimtl.evaluation import explain
from cmimtl.evaluation.answer import Answer

LONG = (
    "Is there, in the upper left part of this picture of a chest, a lesion that is brighter? " * 12
)


def answer(question="Where is the lesion?", *, unread=0, generated="upper left"):
    return Answer(
        question=question,
        picture=np.full((16, 16, 3), 90, np.uint8),
        classes=[("left", 0.9), ("right", 0.05)],
        generated=generated,
        generated_probability=None if generated is None else 0.8,
        unread=unread,
        attention=np.full((4, 4), 1 / 16, np.float32),
    )


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw and give the figure; a letter that becomes an empty box is an error."""
    figures = []

    class Kept(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            figures.append(self)

    monkeypatch.setattr(explain, "Figure", Kept)

    def draw(answers, truths):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=r"Glyph .* missing from")
            explain.draw(tmp_path / "answers.png", answers, truths)
        assert [path.name for path in tmp_path.iterdir()] == ["answers.png"]
        return figures[-1]

    return draw


def texts_of(figure):
    return [text for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("question", [LONG, LONG.upper(), "hyperechogenicity" * 30])
def test_a_long_question_stays_inside_the_picture(drawn, question):
    """Beside a short one, whose text must not run into it either."""
    figure = drawn([answer(), answer(question, unread=7), answer()], ["left", "left", None])
    boxes = [text.get_window_extent() for text in texts_of(figure)]
    assert len(boxes) == 3
    for box in boxes:
        assert box.x0 >= figure.bbox.x0 and box.x1 <= figure.bbox.x1
        assert box.y0 >= figure.bbox.y0 and box.y1 <= figure.bbox.y1
    for above, below in itertools.pairwise(boxes):
        assert above.y0 >= below.y1
    written = "".join(texts_of(figure)[1].get_text().split())
    assert "".join(question.split()) in written and "(7tokensatitsendwerenotread)" in written


def test_letters_twice_as_wide_are_half_as_many_on_a_line():
    assert max(map(len, explain._wrap("病" * 60))) == 23
    assert len(explain._wrap("x" * 46)) == 1 and len(explain._wrap("x" * 47)) == 2


def test_what_is_said_of_a_closed_question(drawn):
    figure = drawn([answer(), answer(generated=None)], ["left", "right"])
    first, second = (text.get_text() for text in texts_of(figure))
    assert "decoder:" in first and "upper left (80%)" in first and "true answer: left" in first
    assert "decoder" not in second and "None" not in second and "classifier:" in second
    assert "not read" not in first + second


def test_it_says_whose_left_is_left(drawn):
    figure = drawn([answer()], [None])
    assert "The left of a picture is the patient's right." in figure.get_supxlabel()


@pytest.mark.parametrize("text", ["Où est la lésion de 5 µm?", "$x_1$ and $y", "Wo? ≥ 3 → β"])
def test_letters_of_the_usual_font(drawn, text):
    """And signs of mathematics as they are typed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = drawn([answer(text)], [None])
    assert texts_of(figure)[0].get_text().startswith(text)


def test_letters_of_another_font(drawn, monkeypatch):
    """An installed font that has them is taken: here, one of mathematics that matplotlib brings."""
    name, letter = "STIXGeneral", "\N{DOUBLE-STRUCK CAPITAL C}"
    own = explain.font_manager.findfont("DejaVu Sans")
    usual = explain._letters
    monkeypatch.setattr(
        explain, "_letters", lambda font: usual(font) - ({letter} if font == own else set())
    )
    other = explain.font_manager.findfont(name)
    assert letter in usual(other)
    fonts, texts = explain._drawable([f"Is {letter} seen?"])
    assert fonts[0] == "DejaVu Sans" and len(fonts) == 2 and texts == [f"Is {letter} seen?"]
    assert letter in usual(explain.font_manager.findfont(fonts[1]))
    drawn([answer(f"Is {letter} seen?")], [None])


def test_a_letter_of_no_font_becomes_its_number(drawn):
    """With a warning; U+10FFFD is for private use, and no font's."""
    with pytest.warns(UserWarning, match=r"draw: an installed font must have every letter"):
        figure = drawn([answer("Is \U0010fffd seen?")], [None])
    assert texts_of(figure)[0].get_text().startswith("Is [U+10FFFD] seen?")
