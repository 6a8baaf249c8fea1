"""The phantom set: the same at every drawing, split by image, balanced, its answers as promised."""

import itertools
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from cmimtl.data import AnswerVocabulary, DataError, load_dataset, write_phantom
from cmimtl.data.phantom_pictures import BODIES, LESION, ORGANS, PLACES, Grid, draw_picture
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
from cmimtl.data.phantom_reports import report
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
    assert len(files) == 2 * N_IMAGES + 6
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


def test_the_pictures_are_those_of_version_2():
    """Masks and options came with version 3, and draw no random numbers of their own."""
    phantom = Phantom("CT", "Chest", ("large", "mixed", "lower", "left"))
    picture, _ = draw_picture(phantom, Grid(32), np.random.default_rng(0))
    sums = picture.astype(int).sum(1)
    assert sums[[4, 16, 21, 26]].tolist() == [1525, 2334, 3927, 2816]


def test_a_mask_has_the_body_and_the_lesion(root, splits):
    """Ellipses have the area pi a b: of a chest, a and b are near 0.46 and 0.38 of the side, and of
    a lesion both are its radius."""
    shares = defaultdict(list)
    for e in {e.image: e for e in splits["train"]}.values():
        with Image.open(e.image.with_name("mask.png")) as opened:
            mask = np.asarray(opened)
        assert mask.shape == (32, 32)
        assert set(np.unique(mask)) <= {0, ORGANS[e.extra["organ"]], LESION}
        shares[e.extra["organ"]].append((mask > 0).mean())
    for part, (width, height) in BODIES.items():
        assert np.mean(shares[part]) == pytest.approx(np.pi * width * height, rel=0.05)
    for diameter, contrast in ((0.5, 1.0), (0.1, 0.25)):
        phantom = Phantom("CT", "Head", ("small", "bright", "middle", "left"), diameter, contrast)
        picture, mask = draw_picture(phantom, Grid(200), np.random.default_rng(0))
        lesion = mask == LESION
        assert lesion.mean() == pytest.approx(np.pi * diameter**2 / 4, rel=0.02)
        x = np.nonzero(lesion)[1].mean() / 200
        assert x == pytest.approx(PLACES["left"], abs=0.04)  # "left" is on the right
        # From soft tissue (0.45) a quarter, or all, of the way to white.
        grey = np.median(picture[lesion]) / 255
        assert grey == pytest.approx(0.45 + contrast * 0.55, rel=0.1)


def test_the_training_split_has_as_many_pictures_as_wanted(root, tmp_path):
    """And the others are the same for any number of them."""
    read = {}
    for n_train in (100, 150):
        place = write_phantom(tmp_path / str(n_train), 200, image_size=32, n_train=n_train)
        train = load_dataset("phantom", place, "train")
        assert n_train * 0.9 <= len({e.image_id for e in train}) <= n_train
        test = load_dataset("phantom", place, "test")
        read[n_train] = [(e.question, e.answer, e.image.read_bytes()) for e in test]
    assert read[100] == read[150]
    assert json.loads((place / "phantom.json").read_text()) == {
        "n_images": 200, "seed": 0, "image_size": 32, "n_train": 150, "diameters": [],
        "contrasts": [], "report_tokens": [], "version": 3,
    }  # fmt: skip


def test_lesions_of_given_sizes(tmp_path):
    """Each combination is as frequent as the others, its answers are balanced, and its questions
    do not tell the size."""
    sizes = {"diameters": [0.1, 0.5], "contrasts": [0.25, 1.0]}
    place = write_phantom(tmp_path / "set", 400, image_size=32, **sizes)
    answers, areas = defaultdict(Counter), defaultdict(list)
    for e in load_dataset("phantom", place, "train"):
        kind = re.match(r"Is there|On which|At which", e.question)[0]
        answers[e.content_type, kind][e.answer_normalized] += 1
        assert not set(SIZES) & set(e.question.split())
        with Image.open(e.image.with_name("mask.png")) as mask:
            area = (np.asarray(mask) == LESION).mean()
        assert bool(area) == (e.answer_normalized != "no")
        areas[e.content_type].append(area)
    assert len(answers) == 4 * 3
    assert all(len(set(counts.values())) == 1 for counts in answers.values())
    for diameter, contrast in itertools.product(*sizes.values()):
        found = areas[f"Lesion of {diameter:g}, contrast {contrast:g}"]
        assert max(found) == pytest.approx(np.pi * diameter**2 / 4, rel=0.35)


@pytest.mark.parametrize("tokens", [16, 17, 64, 1024])
def test_reports(tokens, processor):
    """As long as promised, with the asked sentence at its place and every part once."""
    rng = np.random.default_rng(tokens)
    for part, distance in itertools.product(PARTS, ("near", "middle", "far")):
        question = report(Phantom("CT", part, None), tokens, distance, rng)
        assert tokens - 2 <= processor.tokens_of(question.text) <= tokens
        *sentences, last = re.findall(r"\w+ \w+[.?]", question.text)
        assert last == "Size here?" and " ".join([*sentences, last]) == question.text
        organs = [sentence.split()[0] for sentence in sentences]
        assert all(organs.count(one) == 1 for one in PARTS)
        place = {"near": len(organs) - 1, "middle": len(organs) // 2, "far": 0}[distance]
        assert sentences[place] == f"{part} {question.answer}."
        assert question.content_type == f"Report of {tokens} tokens, {distance}"


def test_a_set_of_reports(tmp_path):
    """Each picture is asked once for each length in training, and at each distance else; the kinds'
    answers are balanced, so that not all are kept."""
    place = write_phantom(tmp_path / "set", 200, image_size=32, report_tokens=[16, 40])
    train, test = (load_dataset("phantom", place, split) for split in ("train", "test"))
    asked = Counter((e.image_id, e.content_type.split(",")[0]) for e in train)
    assert set(asked.values()) == {1} and 200 < len(asked) <= 2 * 156
    assert len({e.content_type for e in test}) == 6 and 4 * 24 < len(test) <= 6 * 24
    with pytest.raises(DataError, match="must hold a list of rows, got an empty"):
        load_dataset("phantom", place, "descriptions")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_images": 199}, "n_images must be at least 200, got 199"),
        ({"image_size": 31}, "image_size must be at least 32, got 31"),
        ({"n_train": 99}, "n_train must be at least 100, got 99"),
        ({"diameters": [0.1]}, r"given together, .*, got \[0.1\], \(\) and \(\)"),
        ({"diameters": [0.7], "contrasts": [1]}, r"in \[0.0208333, 0.6\], got 0.7"),
        ({"diameters": [0.1], "contrasts": [0]}, r"contrasts must lie in \[0.01, 1\], got 0"),
        ({"report_tokens": [64, 15]}, r"report_tokens must lie in \[16, 1024\], got 15"),
    ],
)
def test_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "set", **arguments)
