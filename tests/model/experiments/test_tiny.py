"""`tiny` from rows that were made up: what is seen, and what helps."""

from collections import defaultdict

import numpy as np
import pytest

from cmimtl.data.phantom_questions import about_lesion, kind_of, measured_phantom
from cmimtl.experiments import tiny
from cmimtl.experiments.page import page
from cmimtl.experiments.record import comparison_of, make_record
from cmimtl.experiments.study import runs_of

LOOKS = {"lesion": 0.3, "lesion_area": 0.1, "pointed": 1, "pointed_by_chance": 0.25}
IMAGES = 30  # of each width and contrast
COSTS = {"step_ms": 10.0, "memory_mb": 20.0, "parameters": 5}


def rows(sees):
    """About each image whether there is a lesion, and its side.

    `sees` says of (width, contrast) whether its answers are right. What is not seen is guessed:
    yes, and left, which are right in one of two and of three.
    """
    made = []
    for width, contrast in tiny.CELLS:
        for number in range(IMAGES):
            there = number % 2 == 0
            asked = [("Is there a lesion in this chest CT?", ("no", "yes")[there], "yes")]
            side = ("left", "center", "right")[number // 2 % 3]
            if there:
                asked.append(("On which side of this chest CT is the lesion?", side, "left"))
            for question, answer, guess in asked:
                made.append(
                    {
                        "image": f"{width} {contrast} {number}",
                        "question": question,
                        "answer": answer,
                        "classified": answer if sees(width, contrast) else guess,
                        "content_type": kind_of(width / 8, contrast),
                        "attention": LOOKS if there else dict.fromkeys(LOOKS),
                    }
                )
    return made


def test_what_guessing_is_right_in():
    """By the number of answers to each kind of question."""
    rng = np.random.default_rng(0)
    answers = defaultdict(set)
    for _ in range(200):
        for question in about_lesion(measured_phantom(rng, 0.1, 1.0), rng):
            answers[question.text.split()[0]].add(question.answer)
    assert {word: 1 / len(found) for word, found in answers.items()} == tiny.GUESSED


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Widths from a patch on are seen at full contrast, from two on at half of it, and none at a
    quarter; smaller patches halve the widths, and cost twice the time and thrice the memory."""

    def sees(width, contrast):
        return contrast > 0.3 and width >= (1 if contrast == 1 else 2)

    said = {"usual": rows(sees), "patches": rows(lambda w, c: sees(2 * w, c))}
    costs = {arm.name: COSTS for arm in tiny.STUDY.arms}
    costs["patches"] = {"step_ms": 20.0, "memory_mb": 60.0, "parameters": 5}
    monkeypatch.setattr(
        "cmimtl.experiments.record.read_scores",
        lambda output, one, asked: {"predictions": said.get(one.arm, said["usual"])},
    )
    monkeypatch.setattr("cmimtl.experiments.record.measured", lambda *arguments: costs)
    return make_record(tiny.STUDY, runs_of(tiny.STUDY, {}, 1), tmp_path, {}, quick=False)


def test_what_is_seen_and_what_helps(record):
    assert record["found"].startswith(
        "Lesions are shown to be seen from 1 of a patch on at contrast 1, from 2 of a patch on at"
        " contrast 0.5, at no width at contrast 0.25. What helps with those below a patch: smaller"
        " patches, of 4 (+"
    )
    assert record["found"].endswith("; 2.0 times the time of a step and 3.0 times its memory).")
    usual, patches = (arm["measures"] for arm in record["arms"][:2])
    # All right: of three questions two are whether there is one, and guessed in a half, and one is
    # for the side: 1 - (2/3 * 1/2 + 1/3 * 1/3) = 5/9. All guessed: 0.
    assert usual["seen 4 patches, contrast 0.5"]["value"] == pytest.approx(5 / 9)
    assert usual["seen 1 patches, contrast 0.25"]["value"] == pytest.approx(0)
    # Below a patch are two widths of three contrasts, of which smaller patches show one.
    assert usual["small"]["value"] == pytest.approx(0)
    assert patches["small"]["value"] == pytest.approx(5 / 9 / 6)
    assert comparison_of(record, "queries", "usual", "small")["value"] == 0
    assert usual["lesion"]["value"] == pytest.approx(0.2)
    assert usual["points 1/3 patches, contrast 1"]["value"] == pytest.approx(0.75)
    assert usual["points"]["questions"] == IMAGES * len(tiny.CELLS)  # where there is a lesion

    text = page(tiny.STUDY, record | {"arguments": {}})
    assert "2/3 patches, contrast 0.25" in text and text.count("<svg") == 4
    assert "seen 1/3" not in text
