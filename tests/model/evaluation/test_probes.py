"""What a model is shown and asked under each probe."""

import json
from pathlib import Path

import numpy as np
import pytest

from cmimtl import names
from cmimtl.data import CLOSED, OPEN, VQAExample
from cmimtl.evaluation.answer import Answers
from cmimtl.evaluation.probes import PROBES, ask_under
from tests.model.commands import run

SIZE = 32


class Pictures(dict):
    """Pictures by path, as `ImageCache` gives them."""

    image_size = SIZE


def picture(seed: int) -> np.ndarray:
    """A grey picture that is dark but for a bright square off its middle."""
    grey = np.full((SIZE, SIZE), 40 + seed, np.uint8)
    grey[8:16, 18:26] = 200
    return np.repeat(grey[..., None], 3, -1)


class Recorder:
    """Answers every question with its number, and keeps what it was asked."""

    def ask(self, questions, pictures, in_words) -> Answers:
        self.questions, self.pictures, self.in_words = list(questions), list(pictures), in_words
        numbers = [str(i) for i in range(len(self.questions))]
        written = [n if words else None for n, words in zip(numbers, in_words, strict=True)]
        return Answers(numbers, [0.5] * len(numbers), written)


@pytest.fixture
def examples():
    """Two questions about each of three images; one in three is closed."""
    return [
        VQAExample(
            image=Path(f"folder {i}", "source.jpg"),
            question=f"Is it number {i}{j}?",
            answer="yes",
            answer_normalized="yes",
            split="test",
            answer_type=CLOSED if j else OPEN,
            content_type="Position",
            qid=f"{i}{j}",
            image_id=f"image {i}",
        )
        for i in range(3)
        for j in range(2)
    ]


@pytest.fixture
def asked(examples):
    def ask(name):
        recorder = Recorder()
        images = Pictures({e.image: picture(i // 2) for i, e in enumerate(examples)})
        rows = ask_under(name, recorder, examples, images)
        return recorder, rows, [images[e.image] for e in examples]

    return ask


def test_names_are_those_of_the_command():
    assert tuple(PROBES) == names.PROBES


@pytest.mark.parametrize("name", PROBES)
def test_only_the_pictures_or_the_words_change(asked, examples, name):
    recorder, rows, own = asked(name)
    assert recorder.in_words == [True, False] * 3  # the open questions
    assert [row["qid"] for row in rows] == [e.qid for e in examples]
    assert [row["classified"] for row in rows] == list("012345")
    assert [row["question"] for row in rows] == recorder.questions
    same_words = recorder.questions == [e.question for e in examples]
    same = [np.array_equal(shown, mine) for shown, mine in zip(recorder.pictures, own, strict=True)]
    assert (same_words and not any(same)) or (not same_words and all(same))
    for shown in recorder.pictures:
        assert shown.shape == (SIZE, SIZE, 3) and shown.dtype == np.uint8


def test_black_and_mixed_up_pictures(asked):
    recorder, _, _ = asked("blank")
    assert not any(shown.any() for shown in recorder.pictures)
    recorder, _, _ = asked("shuffled")
    numbers = [int(shown[0, 0, 0]) - 40 for shown in recorder.pictures]
    assert numbers[::2] == numbers[1::2]  # both questions about an image get the same one
    assert sorted(numbers[::2]) == [0, 1, 2] and all(n != i for i, n in enumerate(numbers[::2]))


def test_words(asked):
    assert asked("in-haste")[0].questions[0] == "is it number 00"
    assert asked("at-length")[0].questions[0] == (
        "Please look at the image and answer: Is it number 00?"
    )


def far(name, asked) -> float:
    """How far the pictures are from those as they are, in grey values (RMS)."""
    recorder, _, own = asked(name)
    difference = np.stack(recorder.pictures).astype(float) - np.stack(own)
    return float(np.sqrt((difference**2).mean()))


@pytest.mark.parametrize("kind", names.ARTEFACTS)
def test_an_artefact_grows_with_its_strength_and_is_the_same_every_time(asked, kind):
    weak, middle, strong = (far(f"{kind}-{strength}", asked) for strength in names.STRENGTHS)
    assert 1 < weak < middle < strong < 110
    first, again = (asked(f"{kind}-2")[0].pictures for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[0] is first[1]  # one array is one picture, which is encoded once


def test_artefacts_are_what_they_are_called(asked):
    """By what each must leave alone or change, on a dark picture with a bright square."""
    own = asked("in-haste")[2][0].astype(float)[..., 0]
    shown = {kind: asked(f"{kind}-3")[0].pictures[0].astype(float) for kind in names.ARTEFACTS}
    for kind, of_kind in shown.items():
        assert np.ptp(of_kind, axis=-1).max() == 0, f"{kind} has colours"
    shown = {kind: of_kind[..., 0] for kind, of_kind in shown.items()}
    middle = own.mean()
    for kind in ("blur", "motion"):  # no grey is lost, and the edges are softer
        assert shown[kind].mean() == pytest.approx(middle, abs=3)
        assert np.abs(np.diff(shown[kind])).max() < np.abs(np.diff(own)).max() / 2
    # Motion is along rows alone: the edges between rows of the square's columns stay sharp.
    assert (
        np.abs(np.diff(shown["motion"], axis=0)).max()
        > 5 * np.abs(np.diff(shown["motion"], axis=1)).mean()
    )
    square, around = (slice(8, 16), slice(18, 26)), (slice(18, None), slice(0, 16))
    noise = shown["noise"] - own
    assert 30 < noise[around].std() < 60
    # 4 quanta: a noise of sqrt(grey * 255 / 4), which is twice as large in the brighter square.
    dose = shown["low-dose"] - own
    assert 1.2 < dose[square].std() / dose[around].std() < 4
    assert shown["crop"].std() >= own.std() * 0.9


def test_the_command(trained, tmp_path, capsys):
    path = tmp_path / "scores.json"
    assert run("evaluate", trained, "--data", "phantom", "--probe", "blank", "--json", path) == 0
    scores = json.loads(path.read_text())
    assert scores["probe"] == "blank"
    out = " ".join(capsys.readouterr().out.split())
    assert "black pictures: the classifier is right in" in out
    assert f"of {len(scores['predictions'])} questions" in out
    assert run("evaluate", trained, "--data", "slake", "--probe", "blank") == 2
    assert "root must be given where data is not the run's own" in capsys.readouterr().err
    assert run("evaluate", trained, "--probe", "sepia") == 2
    assert "--probe must be one of blank, shuffled" in capsys.readouterr().err
