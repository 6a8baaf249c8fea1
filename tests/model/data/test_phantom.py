"""The phantom set: the same at every drawing, split by image, balanced, its answers as promised."""

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from cmimtl.data import AnswerVocabulary, DataError, load_dataset, write_phantom
from cmimtl.data.phantom_questions import (
    DESCRIPTION,
    HELD_OUT,
    LEVELS,
    NO_FINDING,
    PARTS,
    SHADES,
    SIDES,
    SIZES,
    Phantom,
    ask,
    draw_phantom,
)
from cmimtl.evaluation import metrics

SPLITS = ("train", "validation", "test", "descriptions", "compositional")
N_IMAGES = 600


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", N_IMAGES, image_size=32)


@pytest.fixture(scope="module")
def splits(root):
    return {split: load_dataset("phantom", root, split) for split in SPLITS}


def test_the_slake_reader_reads_it(root, splits):
    assert load_dataset("slake", root, "train") == splits["train"]


def test_split_by_image(splits):
    """The descriptions are of the test pictures; all else is apart."""
    images = {split: {e.image_id for e in splits[split]} for split in SPLITS}
    assert images.pop("descriptions") <= images["test"]
    assert sum(map(len, images.values())) == len(set().union(*images.values())) <= N_IMAGES
    assert all(images.values())


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


def kind_of(question):
    """What is asked, without what the question says of the picture."""
    for beginning, kind in KINDS.items():
        if question.startswith(beginning):
            return kind
    raise AssertionError(question)


KINDS = {
    "What modality": "modality",
    "Which imaging": "modality",
    "What part": "part",
    "Which body": "part",
    "Is this a": "is modality",
    "Does the image show": "shows part",
    "Is there": "abnormal",
    "Does this": "abnormal",
    "Is the": "on side",
    "How large": "size",
    "On which": "side",
    "At which": "level",
    "How bright": "shade",
    "Where is": "where",
    "What does": "look",
}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answers_to_each_kind_of_question_are_balanced(splits, split):
    answers = defaultdict(Counter)
    for e in splits[split]:
        if e.content_type != DESCRIPTION:
            answers[kind_of(e.question)][e.answer_normalized] += 1
    assert set(answers) == set(KINDS.values())
    for kind, counts in answers.items():
        assert len(counts) in (2, 3, 9) and len(set(counts.values())) == 1, (kind, counts)


def test_a_question_alone_does_not_tell_its_answer(splits):
    lookup = metrics.score(splits["test"], metrics.question_only(splits["train"], splits["test"]))
    assert lookup["overall"] < 0.5
    for e in (e for examples in splits.values() for e in examples):
        if e.answer_normalized in ("yes", "no"):
            continue
        # The first two words, such as "How bright", are those of every question of the kind.
        said = set(re.findall(r"[\w-]+", e.question.lower())[2:])
        told = set(re.findall(r"[\w-]+", e.answer.lower())) - {"in", "the", "of", "and", "lesion"}
        assert told and not said & told, (e.question, e.answer)


def test_a_question_names_what_its_picture_shows(splits):
    """So that question and picture belong together, as those of a real set do."""
    named = 0
    for e in (e for examples in splits.values() for e in examples):
        if (place := re.search(r"this (head|chest|abdomen) (CT|MRI|X-Ray)", e.question)) is None:
            continue
        assert place.groups() == (e.extra["organ"].lower(), e.extra["modality"]), e
        named += e.split == "train"
    ordinary = sum(e.content_type != DESCRIPTION for e in splits["train"])
    assert named > 0.3 * ordinary


def test_what_is_said_of_a_lesion_is_one_in_all_questions_of_a_picture(splits):
    """Size, shade, level and side by a description are those by each other question."""
    lesions = {
        e.image_id: re.match(
            r"(\w+) (\w+) lesion in the (\w+) (\w+) of the (\w+)", e.answer
        ).groups()
        for e in (*splits["train"], *splits["descriptions"])
        if e.question == "Describe the abnormality."
    }
    checked = Counter()
    for e in (*splits["train"], *splits["test"]):
        if e.content_type == DESCRIPTION:
            continue
        kind = kind_of(e.question)
        if kind == "abnormal":
            assert (e.answer == "Yes") == (e.image_id in lesions), e
            continue
        if e.image_id not in lesions:
            continue
        size, shade, level, side, part = lesions[e.image_id]
        words = set(e.question.rstrip("?").split())
        expected = {
            "size": (size, {shade}),
            "shade": (shade, {size}),
            "level": (level, {size}),
            "side": (side, {size}),
            "where": (f"{level} {side}", {shade}),
            "look": (f"{size} and {shade}", {level, side}),
            "part": (part, set()),
            "on side": ("yes" if side in words - {"on"} else "no", {shade}),
        }
        if kind in expected:
            answer, said = expected[kind]
            assert e.answer_normalized == answer and said <= words, e
            checked[kind] += 1
    assert min(checked.values()) > 5 and len(checked) == 8


def test_what_is_held_out_has_neighbours_in_training():
    """For each attribute, training has both other values of it where the other four are the same.

    So however a description begins, in any order of its words, several ends are in training.
    """
    values = (PARTS, SIZES, SHADES, LEVELS, SIDES)
    everything = set(itertools.product(*values))
    assert len(HELD_OUT) == 27 and everything > HELD_OUT
    for combination in HELD_OUT:
        for place, those in enumerate(values):
            for other in set(those) - {combination[place]}:
                neighbour = (*combination[:place], other, *combination[place + 1 :])
                assert neighbour not in HELD_OUT, (combination, neighbour)
    for first, second in itertools.combinations(range(5), 2):
        pairs = Counter((combination[first], combination[second]) for combination in HELD_OUT)
        assert set(pairs.values()) == {3} and len(pairs) == 9


def test_combinations_are_drawn_where_they_belong():
    rng = np.random.default_rng(0)
    for held_out in (True, False):
        drawn = [draw_phantom(rng, held_out=held_out) for _ in range(600)]
        found = {(p.part, *p.finding) for p in drawn if p.finding is not None}
        assert (found == HELD_OUT) if held_out else not found & HELD_OUT and len(found) > 150
        without = sum(p.finding is None for p in drawn) / len(drawn)
        assert without == pytest.approx(0 if held_out else NO_FINDING, abs=0.05)


def test_no_beginning_of_a_description_determines_its_rest():
    """Of a held-out one, in the words of each question, with training that has all the others."""
    rng = np.random.default_rng(0)
    lesions = itertools.product(PARTS, SIZES, SHADES, LEVELS, SIDES)
    ends = defaultdict(set)
    held_out = defaultdict(set)
    for part, *finding in lesions:
        phantom = Phantom("CT", part, tuple(finding))
        for _, question in ask([phantom], rng, described=True):
            words = re.findall(r"\w+", question.answer)
            if (part, *finding) in HELD_OUT:
                held_out[question.text].add(tuple(words))
                continue
            for n in range(len(words)):
                ends[question.text, tuple(words[:n])].add(words[n])
    told = set().union(*map(set, (PARTS, SIZES, SHADES, LEVELS, SIDES)))
    told = {word.lower() for word in told}
    assert len(held_out) == 4
    for text, answers in held_out.items():
        assert len(answers) == 27
        for words in answers:
            for n, word in enumerate(words):
                if word in told:
                    assert len(ends[text, words[:n]] - {word}) == 2, (text, words, n)
    orders = {tuple(word for word in min(a) if word in told) for a in held_out.values()}
    assert len(orders) == 4


def test_answers_of_the_compositional_split_are_new_as_a_whole_and_known_by_word(splits):
    train = [e.answer_normalized for e in splits["train"]]
    words = {word for answer in train for word in answer.split()}
    vocabulary = AnswerVocabulary.from_examples(splits["train"])
    for e in splits["compositional"]:
        assert e.answer_normalized not in vocabulary
        assert set(e.answer_normalized.split()) <= words
    assert vocabulary.coverage(splits["test"])["out_of_vocabulary"] == 0
    for split in ("descriptions", "compositional"):
        assert {e.content_type for e in splits[split]} == {DESCRIPTION}
        assert {e.answer_type for e in splits[split]} == {"open"}
        assert len({e.question for e in splits[split]}) == 4


def test_the_same_arguments_draw_the_same_set(root, tmp_path):
    drawn = []
    again = write_phantom(
        tmp_path / "again", N_IMAGES, image_size=32, progress=lambda: drawn.append(1)
    )
    assert len(drawn) == N_IMAGES
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    assert len(files) == N_IMAGES + 6
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
