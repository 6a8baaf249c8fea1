"""How answers are normalised, and the vocabulary of a training split."""

from pathlib import Path

import pytest

from cmimtl.data import AnswerVocabulary, VQAExample, normalize_answer


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The X-ray, none.", "x ray 0"),
        ("x-ray", "x ray"),
        ("T2 - weighted", "t2 weighted"),
        ("1,000 ml", "1000 ml"),
        ("3.5 cm.", "3.5 cm"),
        ("Two LESIONS", "2 lesions"),
        ("dont know", "don't know"),
        ("its wall", "its wall"),
        ("a\tbig  mass", "big mass"),
        ("right/left", "right left"),
        ("ratio 3:1", "ratio 3:1"),
        ("the", ""),
        ("2.0", "2"),
        ("3.50 cm", "3.5 cm"),
        ("0.05", "0.05"),
        ("10", "10"),
        ("X\u2010ray", "x ray"),
        ("3\u20135 cm", "3 5 cm"),
        ("don\u2019t know", "don't know"),
        ("\u201cleft\u201d lung", "left lung"),
        ("left\u00a0lung", "left lung"),
        ("no\u200b", "no"),
        ("\u80ba\u3002", "\u80ba"),
        ("…", "…"),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected
    assert normalize_answer(expected) == expected


def test_normalize_answer_takes_text_alone():
    with pytest.raises(TypeError, match="text must be a str, got int"):
        normalize_answer(3)


def example(answer, split="train"):
    return VQAExample(
        "0", Path("x.png"), "x", "q", answer, normalize_answer(answer), "open", "PRES", split
    )


def test_the_most_frequent_come_first_and_ties_alphabetically():
    answers = ["lung", "yes", "Heart", "yes.", "the heart", "no"]
    vocabulary = AnswerVocabulary.from_examples(map(example, answers))
    assert vocabulary.answers == ("heart", "yes", "lung", "no")
    assert vocabulary.index("The HEART") == 0 and vocabulary.index("liver") is None
    assert "Lung." in vocabulary and "liver" not in vocabulary and len(vocabulary) == 4


def test_training_answers_alone():
    with pytest.raises(ValueError, match="must be of the split 'train', got 'test'"):
        AnswerVocabulary.from_examples([example("yes"), example("no", "test")])


def test_coverage():
    vocabulary = AnswerVocabulary(["yes", "no"])
    assert vocabulary.coverage([example(a, "test") for a in ("Yes", "no", "lung", "no")]) == {
        "questions": 4,
        "out_of_vocabulary": 1,
        "out_of_vocabulary_share": 0.25,
    }
    with pytest.raises(ValueError, match="examples must hold at least one, got none"):
        vocabulary.coverage([])


def test_rare_answers_are_no_classes():
    examples = [example(answer) for answer in ("yes", "no", "yes", "lung", "no", "yes")]
    for least, expected in ((1, ("yes", "no", "lung")), (2, ("yes", "no")), (3, ("yes",))):
        assert AnswerVocabulary.from_examples(examples, min_count=least).answers == expected
    with pytest.raises(ValueError, match="at least one answer, got none"):
        AnswerVocabulary.from_examples(examples, min_count=4)


def test_answers_must_be_distinct_and_some():
    with pytest.raises(ValueError, match="got 'yes' more than once"):
        AnswerVocabulary(["yes", "no", "yes"])
    with pytest.raises(ValueError, match="at least one answer, got none"):
        AnswerVocabulary([])
