"""What `evaluate` shows an answerer, and every number it makes of the answers, by hand."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cmimtl.data import CLOSED, OPEN, AnswerVocabulary, VQAExample
from cmimtl.evaluation.answer import Answers
from cmimtl.evaluation.evaluate import (
    evaluate,
    evaluate_generation,
    print_generation,
    print_scores,
    shuffled,
)
from tests.model.commands import run

SIZE = 4


def example(image: str, question: str, answer: str, kind: str = OPEN) -> VQAExample:
    content = {"Which organ?": "Organ", "Is it large?": "Size"}.get(question, "Other")
    return VQAExample(
        qid=f"{image} {question}",
        image=Path(image, "source.jpg"),
        image_id=image,
        question=question,
        answer=answer,
        answer_normalized=answer.lower(),
        answer_type=kind,
        content_type=content,
        split="test",
    )


TRAIN = [
    example("x", "Which organ?", "lung"),
    example("y", "Which organ?", "lung"),
    example("z", "Which organ?", "liver"),
    example("x", "Is it large?", "no", CLOSED),
    example("y", "Is it large?", "no", CLOSED),
    example("z", "Is it large?", "yes", CLOSED),
    example("x", "Is it bright?", "yes", CLOSED),
    example("y", "Is it bright?", "yes", CLOSED),
]
# The classifier is right in 3 of 5: 2 of 3 open ones and 1 of 2 closed ones. The decoder is right
# in 1 of 3, and has 2 of 3 words of another answer, with 1 of 2 words of the third.
TEST = [
    example("a", "Which organ?", "Lung"),
    example("a", "Is it large?", "yes", CLOSED),
    example("b", "Which organ?", "liver"),
    example("b", "Is it large?", "no", CLOSED),
    example("c", "What is seen?", "dark spot"),
]
IMAGES = ("a", "b", "c")
BLACK = "black"
# What the answerer takes each picture for.
CLASSIFIED = {
    "Which organ?": {"a": "lung", "b": "liver", "c": "heart", BLACK: "lung"},
    "Is it large?": {"a": "yes", "b": "yes", "c": "no", BLACK: "no"},
    "What is seen?": {"a": "nothing", "b": "nothing", "c": "spot", BLACK: "nothing"},
}
WRITTEN = {
    "Which organ?": {"a": "LUNG.", "b": "the liver lobe", "c": "a heart"},
    "What is seen?": {"a": "a rib", "b": "a rib", "c": "bright spot"},
}


class Pictures(dict):
    """A picture for each image, all of one grey that is its number."""

    image_size = SIZE

    def __init__(self):
        for number, image in enumerate(IMAGES, 1):
            self[Path(image, "source.jpg")] = np.full((SIZE, SIZE, 3), number, np.uint8)


class Recorder:
    """An answerer that answers by question and picture, and keeps all that it is asked."""

    def __init__(self):
        self.asked = []

    def ask(self, questions, pictures, in_words) -> Answers:
        shown = []
        for picture in pictures:
            assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
            assert len(np.unique(picture)) == 1
            shown.append((BLACK, *IMAGES)[picture[0, 0, 0]])
        assert len(questions) == len(shown) == len(in_words)
        self.asked.append((list(questions), shown, list(in_words)))
        pairs = list(zip(questions, shown, strict=True))
        return Answers(
            [CLASSIFIED[question][image] for question, image in pairs],
            [0.1 * number for number in range(len(pairs))],
            [
                WRITTEN[question][image] if words else None
                for (question, image), words in zip(pairs, in_words, strict=True)
            ],
        )


@pytest.fixture(scope="module")
def scored():
    recorder = Recorder()
    vocabulary = AnswerVocabulary(["lung", "liver", "yes", "no"])
    scores = evaluate(recorder, vocabulary, TRAIN, TEST, Pictures())
    return recorder, scores


def test_what_is_shown(scored):
    """Every question once with its own picture, once with another image's and once with a black
    one; the decoder is asked the open ones, and not in the dark."""
    recorder, _ = scored
    own, others, dark = recorder.asked
    questions, is_open = [e.question for e in TEST], [True, False, True, False, True]
    assert own == (questions, ["a", "a", "b", "b", "c"], is_open)
    assert dark == (questions, [BLACK] * 5, [False] * 5)
    assert others[0] == questions and others[2] == is_open
    assert others[1][0] == others[1][1] and others[1][2] == others[1][3]
    assert sorted([others[1][0], others[1][2], others[1][4]]) == ["a", "b", "c"]
    assert all(shown != e.image_id for shown, e in zip(others[1], TEST, strict=True))


def test_accuracies(scored):
    _, scores = scored
    assert (scores["questions"], scores["images"]) == (5, 3)
    assert (scores["open_questions"], scores["closed_questions"]) == (3, 2)
    assert scores["overall"] == pytest.approx(3 / 5)
    assert scores["open"] == pytest.approx(2 / 3)
    assert scores["closed"] == pytest.approx(1 / 2)
    # One answer of five is no class.
    assert scores["out_of_vocabulary_share"] == pytest.approx(1 / 5)
    for low, high in scores["intervals"].values():
        assert 0 <= low <= high <= 1
    # Two of the three images have one score each, 2 of 2 and 1 of 2; the third has 0 of 1.
    assert scores["intervals"]["overall"] == [0, 1]
    kinds = scores["by_content_type"]
    assert {name: (row["questions"], row["accuracy"]) for name, row in kinds.items()} == {
        "Organ": (2, 1.0),
        "Size": (2, 0.5),
        "Other": (1, 0.0),
    }


def test_controls(scored):
    """The look-up and the majority are of the training split: in the test split, "yes" is no more
    frequent than any other answer, and "dark spot" answers its question."""
    recorder, scores = scored
    # Look-up: lung, no, lung, no and, to a question that is new, the most frequent open answer.
    assert scores["question_only"] == pytest.approx(2 / 5)
    only = scores["controls"]["question_only"]
    assert (only["open"], only["closed"]) == (pytest.approx(1 / 3), 0.5)
    # Of eight training answers three are yes.
    assert scores["majority"] == pytest.approx(1 / 5)
    assert scores["controls"]["majority"]["closed"] == 0.5
    # In the dark: lung, no, lung, no, nothing.
    assert scores["blank_images"] == pytest.approx(2 / 5)
    assert scores["controls"]["blank_images"]["open"] == pytest.approx(1 / 3)
    questions, shown, _ = recorder.asked[1]
    right = [
        CLASSIFIED[question][image] == e.answer_normalized
        for question, image, e in zip(questions, shown, TEST, strict=True)
    ]
    assert scores["shuffled_images"] == pytest.approx(sum(right) / 5) and sum(right) < 3
    kinds = scores["by_content_type"]
    assert [kinds[name]["question_only"] for name in ("Organ", "Size", "Other")] == [0.5, 0.5, 0]
    for control in scores["controls"].values():
        assert control.keys() == {"overall", "open", "closed", "intervals"}


def test_the_decoder(scored):
    """Its "LUNG." is lung, and "bright spot" has one word of two."""
    _, scores = scored
    generated = scores["generated"]
    assert generated["questions"] == 3
    assert scores["exact_match"] == generated["exact_match"] == pytest.approx(1 / 3)
    f1 = (1 + F1_OF_LOBE + 1 / 2) / 3
    assert scores["token_f1"] == generated["token_f1"] == pytest.approx(f1)
    assert set(generated["intervals"]) == {"exact_match", "token_f1"}
    assert generated["intervals"]["token_f1"][0] >= 1 / 2 - 1e-9
    assert generated["shuffled_images"] == {"exact_match": 0, "token_f1": 0}


# Articles do not count: "liver lobe" against "liver" has a precision of 1/2 and a recall of 1.
F1_OF_LOBE = 2 / 3


def test_predictions(scored):
    _, scores = scored
    rows = scores["predictions"]
    assert [row["classified"] for row in rows] == ["lung", "yes", "liver", "yes", "spot"]
    assert [row["generated"] for row in rows] == [
        "LUNG.", None, "the liver lobe", None, "bright spot",
    ]  # fmt: skip
    assert [row["probability"] for row in rows] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert rows[0] == {
        "qid": "a Which organ?",
        "image": "a",
        "question": "Which organ?",
        "answer": "Lung",
        "answer_type": "open",
        "content_type": "Organ",
        "classified": "lung",
        "probability": 0.0,
        "generated": "LUNG.",
    }


def test_a_split_for_the_decoder_alone():
    recorder = Recorder()
    test = [e for e in TEST if e.answer_type == OPEN]
    scores = evaluate_generation(recorder, TRAIN, test, Pictures())
    own, others = recorder.asked
    assert own[1] == ["a", "b", "c"] and own[2] == others[2] == [True] * 3
    assert all(shown != e.image_id for shown, e in zip(others[1], test, strict=True))
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["shuffled_images"] == {"exact_match": 0, "token_f1": 0}
    # The classifier's lung and liver are right, and "spot" has one word of two.
    assert scores["classifier"] == {
        "exact_match": pytest.approx(2 / 3),
        "token_f1": pytest.approx((1 + 1 + 2 / 3) / 3),
    }
    assert scores["question_only"]["exact_match"] == pytest.approx(1 / 3)  # lung, to everything
    assert [row["generated"] for row in scores["predictions"]] == [
        "LUNG.", "the liver lobe", "bright spot",
    ]  # fmt: skip


def test_without_an_open_question():
    test = [e for e in TEST if e.answer_type == CLOSED]
    scores = evaluate(Recorder(), AnswerVocabulary(["yes", "no"]), TRAIN, test, Pictures())
    assert scores["open"] is None and scores["closed"] == scores["overall"] == 0.5
    assert scores["generated"] == {"questions": 0, "exact_match": None, "token_f1": None}
    assert scores["exact_match"] is None and scores["token_f1"] is None
    print_scores(scores, "nothing open", Console(file=io.StringIO()))


def test_every_image_is_mixed_up():
    """Whatever their number and order; another seed mixes otherwise."""
    for count in (2, 3, 10):
        examples = [example(f"{i}", "Which organ?", "lung") for i in range(count)]
        paths = shuffled(examples)
        assert sorted(paths) == sorted(e.image for e in examples)
        assert all(path != e.image for path, e in zip(paths, examples, strict=True))
        # By the images and not by the order in which they are asked about.
        back = shuffled(examples[::-1])[::-1]
        assert back == paths
    assert shuffled(examples, 0) == paths and shuffled(examples, 1) != paths
    with pytest.raises(ValueError, match=r"questions about at least 2 images, .*, got 1"):
        shuffled(examples[:1])


def text_of(print_, *arguments) -> list[list[str]]:
    """The rows of the tables that are printed, without their frames."""
    console = Console(width=200, record=True, file=io.StringIO())
    print_(*arguments, console)
    lines = console.export_text().splitlines()
    return [line.replace("┃", "│").strip("│ ").split("│") for line in lines]


def test_what_is_printed(scored):
    _, scores = scored
    rows = {
        row[0].strip(): [c.strip() for c in row[1:]] for row in text_of(print_scores, scores, "T")
    }
    assert rows["classifier"][0].startswith("60.0 (") and rows["classifier"][2].startswith("50.0 (")
    assert rows["question alone (look-up)"][0].startswith("40.0 (")
    assert rows["model, black images"][1].startswith("33.3 (")
    assert rows["decoder"] == ["33.3 (0.0-100.0)", "72.2 (50.0-100.0)"]
    assert rows["decoder, images mixed up"] == ["0.0", "0.0"]
    assert rows["Size"][0] == "2" and rows["Size"][2] == "50.0"
    assert any("20.0 % of the answers are none of the classifier's classes" in r for r in rows)
    alone = text_of(print_generation, scores["generated"], "T")
    assert any("T: 3 questions" in row[0] for row in alone)


def test_a_run_of_others_draws_nothing(trained, tmp_path, capsys):
    """Its `run.json` names a folder, which is only read; one that the user names is drawn."""
    other, place = tmp_path / "run", tmp_path / "set"
    shutil.copytree(trained, other)
    record = json.loads((other / "run.json").read_text())
    record["arguments"]["root"] = str(place)
    (other / "run.json").write_text(json.dumps(record))
    assert run("evaluate", other) == 2
    assert str(place) in capsys.readouterr().err and not place.exists()
