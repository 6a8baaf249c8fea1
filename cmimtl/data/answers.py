"""Answers as classes: how they are normalised, and the vocabulary of a training split.

The rules are those of the evaluation of the VQA data set (Antol et al. 2015,
https://visualqa.org/evaluation.html), as METER's answer preparation applies them (Dou et al. 2022).
Published Med-VQA scores use the same rules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from cmimtl.data.example import VQAExample

_ARTICLES = frozenset({"a", "an", "the"})

_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}

# These contractions are often typed without their apostrophe. A contraction that is another word
# without it (its, were, well, hell, shed, id, ill, wed) is not in the list and stays as typed.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd "
        "he's how'd how'll how's isn't it'd it'll let's ma'am might've mightn't must've "
        "mustn't needn't o'clock oughtn't shan't she's should've shouldn't somebody'll "
        "somebody's someone'll someone's something'll something's that'd that's there'd "
        "there're there's they'd they'll they're they've wasn't we've weren't what'll what're "
        "what's what've when's where'd where's where've who'd who'll who's who've why'll "
        "why're why's won't would've wouldn't y'all you'd you'll you're you've"
    ).split()
}

# The punctuation marks, in the order in which they are treated. "." has a rule of its own, and "'"
# and ":" stay.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# What typewriters and keyboards write otherwise, and what cannot be seen.
_TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02", '"'),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " "),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict(
            zip("\u3002\uff0c\u3001\uff1f\uff01\uff1b\uff1a\uff08\uff09", ".,,?!;:()", strict=True)
        ),
    }
)
_DECIMAL = re.compile(r"(\d+)\.(\d+)")
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def normalize_answer(text: str) -> str:
    """Bring an answer to the form in which answers are compared and counted as classes.

    Hyphens, dashes, apostrophes, quotation marks and blanks of typography, and the marks of
    Chinese, count as those of ASCII, and what has no width as nothing. Then, in this order:

    1. Each mark of ``; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !`` is taken out where it stands
       beside a blank anywhere in the text, or where the text has a comma between digits ("1,000");
       otherwise it becomes a blank ("x-ray" -> "x ray").
    2. A full stop goes unless a digit follows it ("3.5 cm." -> "3.5 cm").
    3. Lower case, blanks single, articles (a, an, the) dropped; number words zero to ten become
       digits, and "none" becomes "0". A decimal fraction loses its last zeros ("2.0" -> "2").
    4. Contractions get their apostrophe back ("dont" -> "don't").

    Args:
        text: an answer as written or as generated.
    Returns:
        the normalised answer. It is empty where the text holds only articles and marks.
    Raises:
        TypeError: text is not a string.
    Examples:
        >>> normalize_answer("The X-ray, none.")
        'x ray 0'
    """
    if not isinstance(text, str):
        raise TypeError(f"normalize_answer: text must be a str, got {type(text).__name__}.")
    text = text.translate(_TYPOGRAPHIC)
    digits = _COMMA_BETWEEN_DIGITS.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if digits or beside_blank else " ")
    cleaned = _FULL_STOP.sub("", cleaned)
    words = (_number(word) for word in cleaned.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _number(word: str) -> str:
    """A number word as digits, and a decimal fraction without its last zeros; else the word."""
    if (decimal := _DECIMAL.fullmatch(word)) is not None:
        whole, fraction = decimal[1], decimal[2].rstrip("0")
        return f"{whole}.{fraction}" if fraction else whole
    return _NUMBER_WORDS.get(word, word)


class AnswerVocabulary:
    """The answer classes of a classifier: the answers of a training split, most frequent first.

    Ties are in alphabetical order, so the same split always gives the same indices.

    Attributes:
        answers: tuple of normalised answers; position = class index.
    """

    def __init__(self, answers: Sequence[str]):
        """Take normalised answers, which must be distinct.

        Raises:
            ValueError: an answer is repeated, or there is none.
        """
        if not answers:
            raise ValueError("AnswerVocabulary: answers must hold at least one answer, got none.")
        repeated = [answer for answer, count in Counter(answers).items() if count > 1]
        if repeated:
            raise ValueError(
                f"AnswerVocabulary: answers must be distinct, got {repeated[0]!r} more than once."
            )
        self.answers = tuple(answers)
        self._indices = {answer: index for index, answer in enumerate(self.answers)}

    @classmethod
    def from_examples(
        cls, examples: Iterable[VQAExample], *, min_count: int = 1
    ) -> AnswerVocabulary:
        """Make the classes of a training split; answers of other splits must not come in.

        Args:
            examples: the training split.
            min_count: how often an answer must occur to be a class.
        Raises:
            ValueError: an example is not of the training split, or no answer is left.
        """
        counts: Counter[str] = Counter()
        for example in examples:
            if example.split != "train":
                raise ValueError(
                    "AnswerVocabulary.from_examples: examples must be of the split 'train', "
                    f"got {example.split!r}; classes seen in evaluation alone would be leaked."
                )
            counts[example.answer_normalized] += 1
        frequent = [answer for answer, count in counts.items() if count >= min_count]
        return cls(sorted(frequent, key=lambda answer: (-counts[answer], answer)))

    def __len__(self) -> int:
        return len(self.answers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnswerVocabulary) and self.answers == other.answers

    def __hash__(self) -> int:
        return hash(self.answers)

    def __contains__(self, answer: str) -> bool:
        return self.index(answer) is not None

    def index(self, answer: str) -> int | None:
        """The class of an answer, or None where it is no class. The answer is normalised here."""
        return self._indices.get(normalize_answer(answer))

    def coverage(self, examples: Sequence[VQAExample]) -> dict[str, float]:
        """Count the examples whose answers are not in the vocabulary.

        Returns:
            ``{"questions": n, "out_of_vocabulary": k, "out_of_vocabulary_share": k / n}``. A
            classifier can reach an accuracy of one minus the share at most.
        Raises:
            ValueError: there are no examples.
        """
        if not examples:
            raise ValueError(
                "AnswerVocabulary.coverage: examples must hold at least one, got none."
            )
        unknown = sum(example.answer_normalized not in self._indices for example in examples)
        return {
            "questions": len(examples),
            "out_of_vocabulary": unknown,
            "out_of_vocabulary_share": unknown / len(examples),
        }
