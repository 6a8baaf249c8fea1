"""The VQA-RAD reader in both layouts, and on the real data set where it is at hand."""

import os
from pathlib import Path

import pytest

from cmimtl.data import AnswerVocabulary, DataError, ReaderReport, load_dataset
from cmimtl.evaluation import metrics

ROW = {
    "qid": 1,
    "image_name": "synpic1.jpg",
    "image_organ": "HEAD",
    "question": "Is there a fracture?",
    "answer": "no",
    "answer_type": "CLOSED",
    "question_type": "PRES",
    "phrase_type": "freeform",
}
PUBLIC = "VQA_RAD Dataset Public.json"


def rows(*changes):
    return [{**ROW, "qid": qid, **change} for qid, change in enumerate(changes)]


def write(data_set, train, test=()):
    names = sorted({row["image_name"] for row in [*train, *test]})
    root = data_set.write("trainset.json", train, {"images": names})
    if test:
        data_set.write("testset.json", list(test), {})
    return root


def read(root, split="train", **options):
    report = ReaderReport()
    return load_dataset("vqa-rad", root, split, report=report, **options), report


def test_an_example(data_set):
    (example,), report = read(write(data_set, rows({})))
    assert (example.qid, example.image_id, example.answer_type) == ("0", "synpic1", "closed")
    assert example.extra == {"organ": "HEAD", "phrase_type": "freeform", "content_types": "PRES"}
    assert report.repaired == report.dropped == report.noted == {}


def test_the_authors_own_file_is_split_by_phrase_type(data_set):
    phrases = ["freeform", "para", "test_freeform", "test_para"]
    content = rows(*({"phrase_type": p, "question": p} for p in phrases))
    root = data_set.write(PUBLIC, content, {"VQA_RAD Image Folder": ["synpic1.jpg"]})
    assert [e.question for e in read(root, "train")[0]] == phrases[:2]
    assert [e.question for e in read(root, "test")[0]] == phrases[2:]
    root = data_set.write(PUBLIC, rows({"phrase_type": "poem"}), {})
    with pytest.raises(DataError, match=r"row 0, 'phrase_type' must be one of freeform, .*'poem'"):
        read(root)


def test_question_types(data_set):
    types = ["PRSE", "ABN, Pos", "pres", "SHAPE"]
    content = rows(*({"question_type": t, "question": t} for t in types))
    examples, report = read(write(data_set, content))
    assert [e.content_type for e in examples] == ["PRES", "ABN", "PRES", "SHAPE"]
    assert examples[1].extra["content_types"] == "ABN, POS"
    assert report.repaired == {"typo in question_type": 3}
    assert report.noted == {"several question types": 1, "unknown question_type": 1}


@pytest.mark.parametrize("suffix", [" -yes/no", " - Open", "  -open"])
def test_suffixes_of_questions_are_cut(data_set, suffix):
    (example,), report = read(write(data_set, rows({"question": f"Is it left-sided?{suffix}"})))
    assert example.question == "Is it left-sided?"
    assert report.repaired["suffix of the question"] == 1


def test_repeated_training_rows_are_dropped_and_test_rows_noted(data_set):
    train = rows({}, {"answer": "No."}, {"question": "Where?"})
    test = rows({}, {}, {"image_name": "synpic2.jpg"})
    root = write(data_set, train, test)
    examples, report = read(root)
    assert len(examples) == 2
    assert report.dropped == {"repeats an earlier training row": 1}
    examples, report = read(root, "test")
    assert len(examples) == 3
    assert report.noted == {"test row also in train": 2, "image of the test row also in train": 2}


def test_held_out_images(data_set):
    train = rows(*({"image_name": f"synpic{i // 2}.jpg", "question": f"q{i}"} for i in range(40)))
    root = write(data_set, train)
    parts = {s: read(root, s, validation_fraction=0.25)[0] for s in ("train", "validation")}
    images = {split: {e.image_id for e in examples} for split, examples in parts.items()}
    assert len(images["validation"]) == 5 and not images["train"] & images["validation"]
    assert len(parts["train"]) == 30 and len(parts["validation"]) == 10
    again = read(write(data_set, train[::-1]), "validation", validation_fraction=0.25)[0]
    assert {e.image_id for e in again} == images["validation"]


def test_arguments(data_set):
    root = write(data_set, rows({}))
    with pytest.raises(ValueError, match=r"validation_fraction must lie in \[0, 1\), got 1"):
        read(root, validation_fraction=1)
    with pytest.raises(ValueError, match="greater than 0 for the split 'validation', got 0"):
        read(root, "validation")
    with pytest.raises(
        DataError, match=r"root must hold 'testset.json' or 'VQA_RAD Dataset Public"
    ):
        read(root, "test")


@pytest.mark.skipif(
    "CMIMTL_VQA_RAD" not in os.environ, reason="CMIMTL_VQA_RAD names no folder of VQA-RAD"
)
def test_the_real_set():
    """Every row of the published files is accounted for, with the known number of each defect."""
    root = Path(os.environ["CMIMTL_VQA_RAD"])
    train, report = read(root)
    assert (report.rows, report.examples) == (3064, 2595)
    assert report.dropped == {"repeats an earlier training row": 469}
    assert report.repaired["suffix of the question"] == 54
    assert report.repaired["number as answer"] == 10
    test, report = read(root, "test")
    assert len(test) == 451 and report.noted["test row also in train"] == 14
    vocabulary = AnswerVocabulary.from_examples(train)
    assert len(vocabulary) == 461
    assert vocabulary.coverage(test)["out_of_vocabulary"] == 44
    lookup = metrics.score(test, metrics.question_only(train, test))
    assert round(100 * lookup["overall"], 1) == 35.0
