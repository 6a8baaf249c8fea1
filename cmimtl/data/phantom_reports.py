"""Long questions of the phantom set: a report of several organs, and what is asked of it.

A report is sentences of two words and a mark, "Chest large.", one of them for each body part that
a picture can show. The question after them, "Size here?", asks for the one of the part that the
picture shows: it needs the picture and one place of the report. The other sentences distract. They
are of other organs, and have the same sizes.

Lengths are in tokens of words and marks, with the two that begin and end a question: a report of n
sentences has 3 n + 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmimtl.data.phantom_questions import PARTS, SIZES, Phantom, Question

SHORTEST, LONGEST = 16, 1024  # tokens
# Where the sentence stands that is asked for, seen from the question.
DISTANCES = ("near", "middle", "far")
OTHERS = ("Liver", "Lung", "Heart", "Spine", "Spleen", "Kidney", "Bladder", "Stomach", "Colon")
_SENTENCE, _AROUND = 3, 5


def sentences_of(tokens: int) -> int:
    """The most sentences of a report that has at most so many tokens."""
    return (tokens - _AROUND) // _SENTENCE


def kind_of(tokens: int, distance: str) -> str:
    """The content type of the questions of a length, asked at a distance."""
    return f"Report of {tokens} tokens, {distance}"


def report(p: Phantom, tokens: int, distance: str, rng: np.random.Generator) -> Question:
    """Ask for what a report says of the part that a picture shows.

    Args:
        p: the picture.
        tokens: the report with its question has at most so many, and two less at least.
        distance: of DISTANCES: "near" is the last sentence, "far" the first.
    """
    count = sentences_of(tokens)
    at = {"far": 0, "middle": count // 2, "near": count - 1}[distance]
    others = [place for place in range(count) if place != at]
    parts = [part for part in PARTS if part != p.part]
    places = dict(zip(rng.permutation(others)[: len(parts)].tolist(), parts, strict=True))
    places[at] = p.part
    organs = [places.get(place) or OTHERS[rng.integers(len(OTHERS))] for place in range(count)]
    sizes = [SIZES[i] for i in rng.integers(len(SIZES), size=count)]
    text = " ".join(f"{organ} {size}." for organ, size in zip(organs, sizes, strict=True))
    kind = kind_of(tokens, distance)
    return Question(kind, f"{text} Size here?", sizes[at], "CLOSED", kind)


def reports(
    p: Phantom, rng: np.random.Generator, *, lengths: Sequence[int], every: bool
) -> list[Question]:
    """Questions of every length about a picture: at every distance, or at one drawn for each."""
    return [
        report(p, tokens, distance, rng)
        for tokens in lengths
        for distance in (DISTANCES if every else (str(rng.choice(DISTANCES)),))
    ]
