"""What the pictures of the phantom set show, and what is asked and answered about them.

A picture shows a body part in a modality, and a finding of four attributes or none. Three kinds of
question are asked:

- of one attribute, closed or open. Most name what else the picture shows, as questions to a real
  picture do, but never what is asked for: "How large is the bright lesion in this chest CT?"
- of two attributes, open: "Where is the dark lesion?"
- for a description of everything, which takes five words that no other part of the answer tells.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

ARTICLES = {"CT": "a", "MRI": "an", "X-Ray": "an"}
MODALITIES = tuple(ARTICLES)

# A description tells these attributes. Each has three values. So wherever a description names a
# value that no training picture with its other attributes has, training has seen the two others.
PARTS = ("Head", "Chest", "Abdomen")
SIZES, SHADES = ("small", "medium", "large"), ("bright", "dark", "mixed")
LEVELS, SIDES = ("upper", "middle", "lower"), ("left", "center", "right")

NO_FINDING = 0.2  # share of pictures without a finding; the compositional split has none
DESCRIPTION = "Description"  # the content type

# Train, validation and test never have these combinations (part, size, shade, level, side). They
# are the 27 solutions, modulo 3, of
#
#     part + size + shade + level + side = 0
#     size + 2 shade + level + 2 side    = 0
#
# Any two of them differ in two attributes or more. So for any four attributes that a description
# begins with, training has both other values of the fifth, and no beginning tells the rest. Among
# the 27, every pair of values of two attributes occurs as often as any other, so that no pair tells
# a held-out combination from the others.
HELD_OUT = frozenset(
    tuple(values[i] for values, i in zip((PARTS, SIZES, SHADES, LEVELS, SIDES), at, strict=True))
    for at in itertools.product(range(3), repeat=5)
    if sum(at) % 3 == 0 and (at[1] + 2 * at[2] + at[3] + 2 * at[4]) % 3 == 0
)


@dataclass(frozen=True)
class Phantom:
    """What one picture shows; finding is (size, shade, level, side) or None.

    Where a diameter is given, it is the lesion's, as a share of the picture's side, in place of
    what the size says. Its contrast is the share of the way from the grey around it to white or
    black. Such lesions are not asked for their size.
    """

    modality: str
    part: str
    finding: tuple[str, str, str, str] | None
    diameter: float | None = None
    contrast: float = 1.0


@dataclass(frozen=True)
class Question:
    """A question and its answer; the answers of each kind of question are balanced."""

    kind: str
    text: str
    answer: str
    answer_type: str
    content_type: str


def draw_phantom(rng: np.random.Generator, *, held_out: bool) -> Phantom:
    """Draw one of the combinations of HELD_OUT, or else of the others, with even chances."""
    modality, part = str(rng.choice(MODALITIES)), str(rng.choice(PARTS))
    if not held_out and rng.random() < NO_FINDING:
        return Phantom(modality, part, None)
    while True:
        size, shade, level, side = (
            str(rng.choice(values)) for values in (SIZES, SHADES, LEVELS, SIDES)
        )
        finding = size, shade, level, side
        if ((part, *finding) in HELD_OUT) == held_out:
            return Phantom(modality, part, finding)


def measured_phantom(
    rng: np.random.Generator, diameter: float, contrast: float, *, held_out: bool = False
) -> Phantom:
    """As `draw_phantom`, of a lesion with a diameter and a contrast, which is bright or dark."""
    while True:
        drawn = draw_phantom(rng, held_out=held_out)
        if drawn.finding is None or drawn.finding[1] != "mixed":
            return replace(drawn, diameter=diameter, contrast=contrast)


def kind_of(diameter: float, contrast: float) -> str:
    """The content type of the questions about a lesion with a diameter and a contrast."""
    return f"Lesion of {diameter:.3g}, contrast {contrast:g}"


def ask(
    phantoms: Sequence[Phantom],
    rng: np.random.Generator,
    *,
    described: bool,
    share: float = 1.0,
    asked: Callable[[Phantom, np.random.Generator], list[Question]] | None = None,
) -> list[tuple[int, Question]]:
    """Ask questions about some pictures: (index of the picture, question), in the pictures' order.

    Within each kind of question every answer is kept equally often. So a question tells nothing of
    its answer beyond what the answers are. Descriptions need no such care, as their combinations
    are drawn with even chances.

    Args:
        described: whether to ask only for descriptions of the findings, or all other questions.
        share: the share of those other questions that is kept.
        asked: what is asked about a picture in place of those other questions.
    """
    asked = asked or (_descriptions if described else _asked)
    questions = [
        (index, question)
        for index, phantom in enumerate(phantoms)
        for question in asked(phantom, rng)
    ]
    if described:
        return questions
    # kind -> answer -> its questions
    by_kind: dict[str, dict[str, list[tuple[int, Question]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for pair in questions:
        by_kind[pair[1].kind][pair[1].answer].append(pair)
    kept = []
    for by_answer in by_kind.values():
        count = max(1, round(share * min(map(len, by_answer.values()))))
        for pairs in by_answer.values():
            kept += [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    return sorted(kept, key=lambda pair: (pair[0], pair[1].text))


def _descriptions(p: Phantom, rng: np.random.Generator) -> list[Question]:
    """Ask for everything about a finding; each answer has its words in another order."""
    if p.finding is None:
        return []
    size, shade, level, side = p.finding
    part = p.part.lower()
    answers = {
        "Describe the abnormality.": f"{size} {shade} lesion in the {level} {side} of the {part}",
        "What is abnormal in this image?": (
            f"lesion in the {part}, {level} {side}, {shade} and {size}"
        ),
        "Where is the lesion, and how does it look?": (
            f"{part}, {side} {level}, {size} and {shade}"
        ),
        "How does the lesion look, and where is it?": (
            f"{shade} and {size}, {side} {level} of the {part}"
        ),
    }
    return [Question(text, text, answer, "OPEN", DESCRIPTION) for text, answer in answers.items()]


def _asked(p: Phantom, rng: np.random.Generator) -> list[Question]:
    """Ask every other kind of question about a picture, each in one wording."""

    def pick(*wordings: str) -> str:
        return wordings[rng.integers(len(wordings))]

    def true_or_not(values: Sequence[str], true: str) -> str:
        """Choose the true value or another one, with even chances."""
        others = [value for value in values if value != true]
        return true if rng.random() < 0.5 else others[rng.integers(len(others))]

    def yes(value: bool) -> str:
        return "Yes" if value else "No"

    part, modality = true_or_not(PARTS, p.part), true_or_not(MODALITIES, p.modality)
    here = f"{p.part.lower()} {p.modality}"
    questions = [
        Question(
            "modality",
            pick("What modality is used to take this image?", "Which imaging modality is this?"),
            p.modality, "OPEN", "Modality",
        ),
        Question(
            "part",
            pick("What part of the body does this image show?", "Which body part is shown?"),
            p.part, "OPEN", "Position",
        ),
        Question(
            "is modality", f"Is this {ARTICLES[modality]} {modality} image?",
            yes(p.modality == modality), "CLOSED", "Modality",
        ),
        Question(
            "shows part", f"Does the image show the {part.lower()}?",
            yes(p.part == part), "CLOSED", "Position",
        ),
        Question(
            "abnormal",
            pick(f"Is there a lesion in this {here}?", f"Does this {here} look abnormal?"),
            yes(p.finding is not None), "CLOSED", "Abnormality",
        ),
    ]  # fmt: skip
    if p.finding is None:
        return questions
    size, shade, level, side = p.finding
    asked = true_or_not(SIDES, side)
    return [
        *questions,
        Question(
            "on side", f"Is the {shade} lesion on the {asked} of this {here}?",
            yes(side == asked), "CLOSED", "Position",
        ),
        Question(
            "size", f"How large is the {shade} lesion in this {here}?", size, "CLOSED", "Size"
        ),
        Question(
            "side", f"On which side of this {here} is the {size} lesion?",
            side, "CLOSED", "Position",
        ),
        Question(
            "level", f"At which level of this {here} is the {size} lesion?",
            level, "CLOSED", "Position",
        ),
        Question(
            "shade", f"How bright is the {size} lesion in this {here}?",
            shade, "CLOSED", "Abnormality",
        ),
        Question(
            "where", f"Where is the {shade} lesion in this {here}?",
            f"{level} {side}", "OPEN", "Position",
        ),
        Question(
            "look", f"What does the lesion in the {level} {side} look like?",
            f"{size} and {shade}", "OPEN", "Abnormality",
        ),
    ]  # fmt: skip


def about_lesion(p: Phantom, rng: np.random.Generator) -> list[Question]:
    """Ask for a lesion that has a diameter: whether there is one, and for its side and level.

    The answers are balanced for each diameter and contrast. A picture without a lesion stands
    beside those with one of its own diameter and contrast.
    """
    assert p.diameter is not None
    kind = kind_of(p.diameter, p.contrast)
    here = f"{p.part.lower()} {p.modality}"
    answer = "No" if p.finding is None else "Yes"
    questions = [
        Question(f"{kind}, abnormal", f"Is there a lesion in this {here}?", answer, "CLOSED", kind)
    ]
    if p.finding is not None:
        _, _, level, side = p.finding
        questions += [
            Question(
                f"{kind}, side", f"On which side of this {here} is the lesion?",
                side, "CLOSED", kind,
            ),
            Question(
                f"{kind}, level", f"At which level of this {here} is the lesion?",
                level, "CLOSED", kind,
            ),
        ]  # fmt: skip
    return questions
