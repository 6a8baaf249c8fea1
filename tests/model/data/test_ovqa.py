"""The OVQA reader under both sets of file names."""

import pytest

from cmimtl.data import DataError, ReaderReport, load_dataset

ROW = {
    "qid": 7,
    "image_name": "a/1.png",
    "image_organ": "HAND",
    "question": "Which bone?",
    "answer": "Radius",
    "answer_type": "open",
    "question_type": "Organ",
}


@pytest.mark.parametrize("file, split", [("valset.json", "validation"), ("test.json", "test")])
@pytest.mark.parametrize("folder", ["img", "images"])
def test_an_example(data_set, file, split, folder):
    root = data_set.write(file, [ROW], {folder: ["a/1.png"]})
    report = ReaderReport()
    (example,) = load_dataset("ovqa", root, split, report=report)
    assert (example.image_id, example.content_type, example.split) == ("a/1", "Organ", split)
    assert (example.answer_normalized, example.answer_type) == ("radius", "open")
    assert example.extra == {"organ": "HAND"}
    assert (report.rows, report.examples) == (1, 1)


def test_no_row_with_an_answer(data_set):
    root = data_set.write("train.json", [{**ROW, "answer": ""}], {"img": ["a/1.png"]})
    with pytest.raises(DataError, match=r"train.json must hold a row with an answer, got none"):
        load_dataset("ovqa", root, "train")
