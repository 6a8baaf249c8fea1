"""The SLAKE reader, and what all readers share: repairs, drops, and errors that name the place."""

import json

import pytest

from cmimtl.data import DataError, ReaderReport, load_dataset

ROW = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is used?",
    "answer": "MRI",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Modality",
    "triple": ["vhead", "_", "_"],
    "qid": 0,
}
IMAGES = {"imgs": ["xmlab1/source.jpg"]}


def read(data_set, *rows, split="train", file="train.json", **options):
    """The examples and the report of rows, each given by what differs from ROW."""
    root = data_set.write(file, [{**ROW, **row} for row in rows], IMAGES)
    report = ReaderReport()
    return load_dataset("slake", root, split, report=report, **options), report


def test_an_example(data_set):
    (example,), report = read(data_set, {})
    assert (example.qid, example.image_id) == ("0", "xmlab1")
    assert example.image == data_set.root.resolve() / "imgs" / "xmlab1" / "source.jpg"
    assert (example.question, example.answer) == ("What modality is used?", "MRI")
    assert (example.answer_normalized, example.answer_type) == ("mri", "open")
    assert (example.content_type, example.split) == ("Modality", "train")
    assert example.extra == {
        "organ": "Abdomen",
        "modality": "MRI",
        "language": "en",
        "base_type": "vqa",
    }
    assert (report.rows, report.examples, report.repaired) == (1, 1, {})


def test_languages(data_set):
    rows = [{}, {"q_lang": "zh", "qid": 1, "answer": "核磁共振"}]
    examples, report = read(data_set, *rows)
    assert [e.qid for e in examples] == ["0"]
    assert report.dropped == {"other language": 1}
    assert [e.qid for e in read(data_set, *rows, language="zh")[0]] == ["1"]
    assert len(read(data_set, *rows, language=None)[0]) == 2
    with pytest.raises(DataError, match="usable row of language 'fr', got rows of en, zh"):
        read(data_set, *rows, language="fr")


@pytest.mark.parametrize("file", ["validate.json", "validation.json"])
def test_both_names_of_the_validation_file(data_set, file):
    (example,), _ = read(data_set, {}, split="validation", file=file)
    assert example.split == "validation"


def test_repairs(data_set):
    examples, report = read(
        data_set,
        {"answer": 3},
        {"answer": " yes\t", "answer_type": "CLOSED "},
        {"question": "Which  organ?\n", "location": None},
    )
    assert [e.answer for e in examples] == ["3", "yes", "MRI"]
    assert examples[1].answer_type == "closed"
    assert examples[2].question == "Which organ?" and "organ" not in examples[2].extra
    assert report.repaired == {
        "number as answer": 1,
        "blanks in answer": 1,
        "blanks in answer_type": 1,
        "blanks in question": 1,
    }
    assert report.messages["number as answer"] == ["train.json, row 0, 'answer'"]


def test_a_byte_order_mark_is_skipped(data_set):
    root = data_set.write("train.json", "\ufeff" + json.dumps([ROW]), IMAGES)
    assert len(load_dataset("slake", root, "train")) == 1


def test_answers_that_say_nothing_are_dropped(data_set):
    examples, report = read(data_set, {}, {"answer": " "}, {"answer": "the"})
    assert len(examples) == 1
    assert report.dropped == {"empty answer": 1, "answer without a word": 1}
    assert report.rows == 3


@pytest.mark.parametrize(
    "row, message",
    [
        ({"img_name": "xmlab2/source.jpg"}, r"row 1, 'img_name' must name an image file in .*imgs"),
        ({"question": ""}, "row 1, 'question' must not be empty, got ''"),
        ({"answer": ["yes"]}, r"row 1, 'answer' must be text or a finite number, got \['yes'\]"),
        ({"answer": float("nan")}, "row 1, 'answer' must be text or a finite number, got nan"),
        ({"answer": True}, "row 1, 'answer' must be text or a finite number, got True"),
        ({"answer_type": "MAYBE"}, "row 1, 'answer_type' must be OPEN or CLOSED, got 'MAYBE'"),
    ],
)
def test_an_unusable_field_is_named(data_set, row, message):
    with pytest.raises(DataError, match=message) as error:
        read(data_set, {}, row)
    assert "train.json" in str(error.value)


def test_a_missing_field_is_named(data_set):
    root = data_set.write("train.json", [{"q_lang": "en"}], IMAGES)
    with pytest.raises(DataError, match="row 0, 'img_name' must be there, got only q_lang"):
        load_dataset("slake", root, "train")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "must hold a list of rows, got .*/train.json: Expecting property name"),
        ("{}", "must hold a list of rows, got .*/train.json: it holds a dict, no list"),
        ("[" * 100_000, "must hold a list of rows, got .*/train.json: RecursionError"),
        (
            '[{"qid": ' + 309 * "9" + "}]",
            "train.json: it has a number of 309 digits, more than 308",
        ),
        (r'[{"qid": "\ud800"}]', "train.json: 'utf-8' codec can't encode"),
        ("[]", "must hold a list of rows, got an empty list"),
        ("[1]", "row 0 must be an object with named fields, got int"),
    ],
)
def test_a_file_that_is_no_list_of_rows(data_set, text, message):
    root = data_set.write("train.json", text, IMAGES)
    with pytest.raises(DataError, match=message):
        load_dataset("slake", root, "train")


def test_folders_that_miss_something(data_set, tmp_path):
    with pytest.raises(DataError, match=r"root must hold the folder 'imgs' .*no such folder"):
        load_dataset("slake", tmp_path / "nowhere", "train")
    root = data_set.write("train.json", [ROW], IMAGES)
    with pytest.raises(
        DataError, match=r"root must hold 'test.json', got .* with imgs, train.json"
    ):
        load_dataset("slake", root, "test")


def test_arguments(data_set):
    root = data_set.write("train.json", [ROW], IMAGES)
    with pytest.raises(ValueError, match=r"name must be one of 'phantom', .* got 'slack'"):
        load_dataset("slack", root, "train")
    with pytest.raises(ValueError, match=r"split must be one of 'train', .* got 'tests'"):
        load_dataset("slake", root, "tests")
    with pytest.raises(TypeError, match="tongue"):
        load_dataset("slake", root, "train", tongue="en")


def test_the_report_as_text_and_as_numbers(data_set):
    _, report = read(data_set, {"answer": 1}, {"answer": 2}, {"answer": "", "qid": 1})
    assert report.lines() == [
        "3 rows read, 2 examples",
        "repaired: number as answer: 2 (first: train.json, row 0, 'answer')",
        "dropped: empty answer: 1 (first: train.json, row 2, 'answer')",
        "noted: qid of an earlier row: 1 (first: train.json, row 1, 'qid')",
    ]
    assert json.loads(json.dumps(report.to_dict()))["repaired"] == {"number as answer": 2}


def test_a_whole_number_is_one_answer_however_it_is_written(data_set):
    answers = [2, 2.0, "2.0", "2", "two"]
    rows = [{"answer": answer, "qid": number} for number, answer in enumerate(answers)]
    examples, _ = read(data_set, *rows)
    assert {example.answer_normalized for example in examples} == {"2"}


@pytest.mark.parametrize(
    "name, requirement",
    [
        ("/etc/hostname", "within"),
        ("../secret.jpg", "within"),
        ("../imgs/xmlab1/source.jpg", "within"),
        ("xmlab1/../../secret.jpg", "within"),
        ("xmlab1/link.jpg", "within"),
        ("linked/secret.jpg", "within"),
        ("xmlab1/circle.jpg", "in"),
        ("x" * 5000, "in"),
        ("x\0y", "in"),
    ],
)
def test_an_image_lies_within_the_data_set(data_set, tmp_path, name, requirement):
    """Whatever a row names: a data set that was sent by others may not have other files read."""
    root = data_set.write("train.json", [ROW, {**ROW, "img_name": name, "qid": 1}], IMAGES)
    (tmp_path / "secret.jpg").write_bytes((root / "imgs/xmlab1/source.jpg").read_bytes())
    (root / "secret.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "imgs/xmlab1/link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "imgs/linked").symlink_to(tmp_path)
    (root / "imgs/xmlab1/circle.jpg").symlink_to("circle.jpg")
    with pytest.raises(DataError) as error:
        load_dataset("slake", root, "train")
    message = str(error.value)
    assert f"train.json, row 1, 'img_name' must name an image file {requirement} {root}" in message
    assert len(message) < 500


def test_files_and_folders_lie_within_the_data_set(data_set, tmp_path):
    root = data_set.write("train.json", [ROW], IMAGES)
    (root / "imgs").rename(tmp_path / "imgs")
    (root / "imgs").symlink_to(tmp_path / "imgs")
    with pytest.raises(
        DataError, match=r"root must hold its images itself, got .*/set/imgs, which"
    ):
        load_dataset("slake", root, "train")
    (root / "imgs").unlink()
    (tmp_path / "imgs").rename(root / "imgs")
    (root / "train.json").rename(tmp_path / "train.json")
    (root / "train.json").symlink_to(tmp_path / "train.json")
    with pytest.raises(DataError, match=r"root must hold 'train.json' itself, got .*, which leads"):
        load_dataset("slake", root, "train")
    (root / "train.json").unlink()
    (tmp_path / "train.json").rename(root / "train.json")
    (tmp_path / "alias").symlink_to(root)  # the user's own name of the folder
    assert len(load_dataset("slake", tmp_path / "alias", "train")) == 1
