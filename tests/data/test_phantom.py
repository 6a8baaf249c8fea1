"""The phantom set: the same at every drawing, split by image, balanced, its answers as promised."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from cmimtl import metrics
from cmimtl.data import AnswerVocabulary, DataError, load_dataset, write_phantom

SPLITS = ("train", "validation", "test", "compositional")
N_IMAGES = 400


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", N_IMAGES, image_size=32)


@pytest.fixture(scope="module")
def splits(root):
    return {split: load_dataset("phantom", root, split) for split in SPLITS}


def test_the_slake_reader_reads_it(root, splits):
    assert load_dataset("slake", root, "train") == splits["train"]


def test_split_by_image(splits):
    images = [{e.image_id for e in splits[split]} for split in SPLITS]
    assert sum(map(len, images)) == len(set().union(*images)) <= N_IMAGES
    assert all(images)


def test_every_picture_is_one_of_its_size(splits):
    pictures = {e.image for examples in splits.values() for e in examples}
    for path in sorted(pictures)[:20]:
        with Image.open(path) as picture:
            assert picture.size == (32, 32)
            assert np.asarray(picture).std() > 5


def test_both_kinds_of_question(splits):
    for split in ("train", "test"):
        kinds = Counter(e.answer_type for e in splits[split])
        assert min(kinds.values()) > 0.2 * sum(kinds.values()) and len(kinds) == 2


def test_balanced_per_question(splits):
    """A closed question's answers occur equally often, so that it gives nothing away."""
    answers = defaultdict(Counter)
    for e in splits["train"]:
        if e.answer_type == "closed":
            answers[e.question][e.answer_normalized] += 1
    assert answers
    for question, counts in answers.items():
        assert max(counts.values()) - min(counts.values()) <= 1, (question, counts)
    lookup = metrics.score(splits["test"], metrics.question_only(splits["train"], splits["test"]))
    assert lookup["overall"] < 0.5


def test_answers_of_the_compositional_split_are_new_as_a_whole_and_known_by_word(splits):
    train = [e.answer_normalized for e in splits["train"]]
    words = {word for answer in train for word in answer.split()}
    vocabulary = AnswerVocabulary.from_examples(splits["train"])
    for e in splits["compositional"]:
        assert e.answer_normalized not in vocabulary
        assert set(e.answer_normalized.split()) <= words
    assert vocabulary.coverage(splits["test"])["out_of_vocabulary"] == 0


def test_the_same_arguments_draw_the_same_set(root, tmp_path):
    again = write_phantom(tmp_path / "again", N_IMAGES, image_size=32)
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    assert len(files) == N_IMAGES + 5
    assert all((root / name).read_bytes() == (again / name).read_bytes() for name in files)
    other = write_phantom(tmp_path / "other", N_IMAGES, seed=1, image_size=32)
    assert (root / "train.json").read_bytes() != (other / "train.json").read_bytes()


def test_a_drawn_set_is_kept_and_another_folder_refused(root, tmp_path):
    written = (root / "train.json").stat().st_mtime_ns
    assert write_phantom(root, N_IMAGES, image_size=32) == root
    assert (root / "train.json").stat().st_mtime_ns == written
    with pytest.raises(DataError, match="root must be empty or hold a set drawn with"):
        write_phantom(root, N_IMAGES, seed=1, image_size=32)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        write_phantom(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_images": 199}, "n_images must be at least 200, got 199"),
        ({"image_size": 31}, "image_size must be at least 32, got 31"),
    ],
)
def test_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "set", **arguments)
