"""From examples to batches: what is decoded when, in which order it comes, what a batch holds."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from cmimtl.data import AnswerVocabulary, DataError, VQAExample, batches
from cmimtl.data.batches import EpochOrder, ImageCache, VQACollator, VQADataset, shuffled_answers
from tests.model.conftest import ANSWERS, QUESTIONS

SIZE = 8
ONE = 3 * SIZE**2  # bytes of a picture


@pytest.fixture
def files(tmp_path):
    """Three pictures of one grey each: 0, 100 and 200."""
    paths = []
    for grey in (0, 100, 200):
        paths.append(tmp_path / f"{grey}.png")
        Image.new("L", (16, 12), grey).save(paths[-1])
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """How often each file was opened."""
    counts, load_image = Counter(), batches.load_image

    def counted(path):
        counts[path.name] += 1
        return load_image(path)

    monkeypatch.setattr(batches, "load_image", counted)
    return counts


def example(number, image, answer_type="open"):
    return VQAExample(
        qid=str(number),
        image=image,
        image_id=image.name,
        question=QUESTIONS[number],
        answer=ANSWERS[number].title(),
        answer_normalized=ANSWERS[number],
        answer_type=answer_type,
        content_type="any",
        split="train",
    )


# ImageCache


def test_pictures_that_fit_are_decoded_once(files, decoded):
    images = ImageCache([files[0], files[1], files[0], files[2]], SIZE, limit_bytes=2 * ONE + 1)
    assert decoded == {"0.png": 1, "100.png": 1}
    for _ in range(2):
        for path, grey in zip(files, (0, 100, 200), strict=True):
            picture = images[path]
            assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
            assert (picture == grey).all()
    assert decoded == {"0.png": 1, "100.png": 1, "200.png": 2}  # the last at each use


def test_a_picture_that_is_none_is_named(files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"ImageCache: .*text.png must be a readable image"):
        ImageCache([tmp_path / "text.png"], SIZE)
    images = ImageCache(files, SIZE)
    with pytest.raises(DataError, match=r"ImageCache: .*none.png must be a readable image"):
        images[tmp_path / "none.png"]


# EpochOrder and VQADataset


def test_an_order_is_of_seed_and_epoch_alone():
    """A resumed run sees the order that it would have seen, and so does one of an older version."""
    order = EpochOrder(6, seed=7)
    assert len(order) == 6
    expected = [[5, 2, 0, 4, 1, 3], [9, 6, 8, 7, 10, 11]]
    assert [sorted(part) for part in expected] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    for epoch in (0, 1, 1, 0):
        order.set_epoch(epoch)
        assert list(order) == expected[epoch]
    assert list(EpochOrder(6, seed=8)) != expected[0]


def test_an_index_holds_epoch_and_example(files):
    examples = [example(0, files[1]), example(1, files[2]), example(2, files[1])]
    data = VQADataset(examples, ImageCache(files, SIZE))
    assert len(data) == 3
    for epoch in (0, 4):
        items = [data[3 * epoch + number] for number in range(3)]
        assert [item["example"] for item in items] == examples
        assert [int(item["picture"].mean()) for item in items] == [100, 200, 100]
        assert [item["image_index"] for item in items] == [0, 1, 0]
        assert [item["question_index"] for item in items] == [0, 1, 2]


def test_questions_about_a_picture_see_it_augmented_alike(tmp_path):
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    images = ImageCache([path], SIZE)
    data = VQADataset([example(0, path), example(1, path)], images, augmentation=True, seed=1)
    first, second, later = (data[index]["picture"] for index in (0, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, noise) and not np.array_equal(first, later)
    assert np.array_equal(images[path], noise)
    assert np.array_equal(data[2]["picture"], later)


def test_shuffled_answers(files):
    """Those of open questions, each within its content type; a closed one keeps its own."""
    examples = [
        dataclasses.replace(
            example(1, files[0]),
            answer_normalized=f"{kind} {number}",
            content_type=kind,
            answer_type="closed" if kind == "size" else "open",
        )
        for number in range(30)
        for kind in ("organ", "place", "size")
    ]
    answers = [e.answer_normalized for e in examples]
    shuffled = shuffled_answers(examples, seed=0)
    assert shuffled == shuffled_answers(examples, seed=0) != shuffled_answers(examples, seed=1)
    for first, kind in enumerate(("organ", "place", "size")):
        before, after = answers[first::3], shuffled[first::3]
        assert sorted(after) == sorted(before)
        # Of 30, one is expected to stay by chance, and 8 in one of a million cases.
        stayed = sum(a == b for a, b in zip(before, after, strict=True))
        assert stayed == 30 if kind == "size" else stayed < 8
    assert [e.answer_normalized for e in examples] == answers


# VQACollator


def test_what_is_written_may_be_another_answer(processor, files):
    """The decoder learns the other one; the class stays the example's own."""
    examples = [example(1, files[0]), example(2, files[1])]
    data = VQADataset(examples, ImageCache(files, 64), written=[ANSWERS[2], ANSWERS[1]])
    batch = VQACollator(processor, AnswerVocabulary(["lung"]))([data[0], data[1]])
    assert processor.batch_decode_answers(batch["labels"]) == [ANSWERS[2], ANSWERS[1]]
    assert batch["answer_scores"].tolist() == [[1], [0]]


def test_a_batch_with_targets(processor, files):
    """Of a closed question, and of two open ones, the second of which has an answer of no class."""
    examples = [example(0, files[0], "closed"), example(1, files[2]), example(2, files[0])]
    data = VQADataset(examples, ImageCache(files, 64))
    collator = VQACollator(processor, AnswerVocabulary(["no", "lung", "yes"]))
    batch = collator([data[number] for number in range(3)])
    assert set(batch) == {
        "pixel_values", "input_ids", "attention_mask", "labels", "answer_scores", "image_index",
        "question_index",
    }  # fmt: skip
    assert batch["answer_scores"].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert batch["image_index"].tolist() == [0, 1, 0]
    assert batch["question_index"].tolist() == [0, 1, 2]
    # Black is -1 and white would be 1.
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    for picture, grey in zip(batch["pixel_values"], (0, 200, 0), strict=True):
        torch.testing.assert_close(picture, torch.full_like(picture, grey / 127.5 - 1))
    labels = batch["labels"]
    assert (labels[0] == -100).all()
    assert processor.batch_decode_answers(labels[1:]) == ANSWERS[1:]
    assert (labels[1:] != -100).sum(1).tolist() == [2, 8]  # the words and the end
    # The mark of the beginning, the words with their question mark, the mark of the end.
    assert batch["attention_mask"].sum(1).tolist() == [7, 11, 6]


def test_a_batch_without_targets(processor, files):
    data = VQADataset([example(1, files[1])], ImageCache(files, 64))
    batch = VQACollator(processor)([data[0]])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}


# Augmentation, of which the five draws are given


class Drawn:
    """A generator that draws angle, x, y, contrast and brightness as they are given."""

    def __init__(self, **drawn):
        names = ("angle", "x", "y", "contrast", "brightness")
        self.drawn = np.array([drawn.pop(name, 0.0) for name in names])
        assert not drawn

    def uniform(self, low, high, count):
        assert (low, high, count) == (-1, 1, 5)
        return self.drawn


def test_augmentation_moves_and_changes_greys_as_far_as_it_says():
    noise = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    assert np.array_equal(batches.augment(noise, Drawn()), noise)
    right, down = round(100 * batches.MAX_SHIFT), round(50 * batches.MAX_SHIFT)
    assert right > down > 0
    moved = batches.augment(noise, Drawn(x=1))
    np.testing.assert_array_equal(moved[:, : 100 - right - 1], noise[:, right:-1])
    assert not moved[:, 101 - right :].any()
    moved = batches.augment(noise, Drawn(y=1))
    np.testing.assert_array_equal(moved[: 50 - down - 1], noise[down:-1])
    for bright in (-1, 1):
        wanted = np.clip(np.rint(noise + bright * 255 * batches.MAX_BRIGHTNESS), 0, 255)
        np.testing.assert_array_equal(batches.augment(noise, Drawn(brightness=bright)), wanted)
        wanted = (noise - 127.5) * (1 + bright * batches.MAX_CONTRAST) + 127.5
        actual = batches.augment(noise, Drawn(contrast=bright)).astype(float)
        np.testing.assert_allclose(actual, np.clip(wanted, 0, 255), atol=0.51)


def test_augmentation_turns_around_the_middle():
    picture = np.zeros((61, 121, 3), np.uint8)
    spots = [(30, 60), (30, 110), (5, 60)]
    for y, x in spots:
        picture[y - 1 : y + 2, x - 1 : x + 2] = 255
    turned = batches.augment(picture, Drawn(angle=1))[..., 0].astype(float)
    cosine, sine = np.cos(batches.MAX_ROTATION), np.sin(batches.MAX_ROTATION)
    for y, x in spots:
        dy, dx = y - 30, x - 60
        to_y, to_x = 30 + sine * dx + cosine * dy, 60 + cosine * dx - sine * dy
        window = turned[round(to_y) - 3 : round(to_y) + 4, round(to_x) - 3 : round(to_x) + 4]
        rows, columns = np.mgrid[-3:4, -3:4]
        assert window.sum() > 1500
        assert abs((rows * window).sum() / window.sum() + round(to_y) - to_y) < 1
        assert abs((columns * window).sum() / window.sum() + round(to_x) - to_x) < 1
