"""A study from the command to its page: what is run, what is kept, and how it goes on."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cmimtl import names, runs
from cmimtl.experiments import runner
from cmimtl.experiments.experiment import QUICK, run_experiment
from cmimtl.experiments.ffae import STUDY
from cmimtl.experiments.page import page
from cmimtl.experiments.record import in_words, make_record
from cmimtl.experiments.study import Arm, Asked, Comparison, Measure, Run, runs_of
from tests.model.commands import run

STUDIES = {name: names.load(place) for name, place in names.STUDIES.items()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """`ffae`, run to its end with trainings of seconds. Not to be changed."""
    output = tmp_path_factory.mktemp("studies")
    record = run_experiment("ffae", output_dir=output, quick=True, jobs=2)
    return output, record


def test_a_study_leaves_its_record_and_its_page(ran):
    output, record = ran
    kept = json.loads((output / "ffae" / "record.json").read_text())
    assert kept == json.loads(json.dumps(record))
    assert kept["quick"] and kept["seeds"] == [0] and kept["arguments"]["max_steps"] == 3
    assert str(output) not in json.dumps(kept)
    assert [arm["name"] for arm in kept["arms"]] == ["decoder", "alone", "shuffled", "generation"]
    assert kept["versions"]["cmimtl"] and kept["machine"]["cores"] >= 1
    text = (output / "ffae" / "page.html").read_text()
    # The first words under the title are what was found; the page needs nothing beside it.
    assert re.search(r'<h1>ffae</h1><p class="found">([^<]*)</p>', text)[1] == (
        record["found"].replace("'", "&#x27;")
    )
    assert "test the study itself" in text
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert page(STUDY, kept) == text  # a record gives the same page at any time
    for run_folder in (output / "runs").glob("*/"):
        assert runs.is_finished(run_folder)


def test_the_arms_were_trained_as_they_say(ran):
    output, _ = ran
    started = {}
    for one in runs_of(STUDY, _shared(output), 1):
        folder = runner.folder(output, one)
        config = json.loads((folder / "config.json").read_text())
        losses = ("classification", "contrastive", "generation")
        weights = tuple(config[f"{loss}_weight"] for loss in losses)
        started[one.arm] = (*weights, runs.read_run(folder)["decoder_answers"])
    assert started == {
        "decoder": (1, 0.2, 1, "own"),
        "alone": (1, 0.2, 0, "own"),
        "shuffled": (1, 0.2, 1, "shuffled"),
        "generation": (0, 0.2, 1, "own"),
    }


def _shared(output):
    root = str((output / "phantom-200").absolute())
    return {"data": "phantom", "root": root, "preset": "tiny", "min_answer_count": 2, **QUICK}


def test_nothing_is_run_twice(ran, monkeypatch):
    """Not the same study, and not a run that another study has too."""
    output, record = ran
    monkeypatch.setattr(runner, "_run", lambda *arguments: pytest.fail("ran again"))
    again = run_experiment("ffae", output_dir=output, quick=True)
    assert again["arms"] == record["arms"] and again["comparisons"] == record["comparisons"]
    usual = next(one for one in runs_of(STUDY, _shared(output), 1) if one.arm == "decoder")
    other = next(
        one for one in runs_of(STUDIES["fusion"], _shared(output), 1) if one.arm == "cross-mamba"
    )
    assert usual.key == other.key and runner.is_done(output, other, [Asked("test")])


def test_a_killed_study_goes_on(ran, tmp_path):
    """A run that was killed after its checkpoint is resumed, and one that was trained and not
    evaluated is evaluated."""
    source, record = ran
    for folder in ("phantom-200", "runs"):
        subprocess.run(["cp", "-a", source / folder, tmp_path / folder], check=True)
    resumed, evaluated = (
        runner.folder(source, one) for one in runs_of(STUDY, _shared(source), 1)[:2]
    )
    # The runs are named after their arguments, the data set's place among them.
    here = [runner.folder(tmp_path, one) for one in runs_of(STUDY, _shared(tmp_path), 1)]
    for one, new in zip(runs_of(STUDY, _shared(source), 1), here, strict=True):
        runner.folder(tmp_path, one).rename(new)
        record_of = json.loads((new / "run.json").read_text())
        record_of["arguments"]["root"] = str(tmp_path / "phantom-200")
        (new / "run.json").write_text(json.dumps(record_of))
    (here[0] / "model.safetensors").unlink()
    for folder in here[:2]:
        (folder / "scores-test.json").unlink()
    weights = (here[1] / "model.safetensors").stat().st_mtime_ns
    again = run_experiment("ffae", output_dir=tmp_path, quick=True)
    assert again["arms"] == record["arms"]
    assert "resuming after step" in runner.log_file(here[0]).read_text()
    assert (here[1] / "model.safetensors").stat().st_mtime_ns == weights
    assert resumed != evaluated


def test_a_run_that_fails_is_named(tmp_path):
    """And those that run beside it come to their end, and their results stay."""
    bad = tmp_path / "no data"
    bad.mkdir()
    with pytest.raises(ValueError) as error:
        run_experiment("ffae", output_dir=tmp_path / "out", quick=True, data="slake", root=bad)
    message = str(error.value)
    assert "the run decoder, seed 0, must end well, got exit code 2 of `cmimtl train`" in message
    assert "got" in message and message.endswith("with nothing in it.")


def test_a_script_for_a_scheduler(ran, tmp_path):
    """A job is run here as the scheduler would, in a process of its own. What it is to do is
    trained already, and not yet evaluated."""
    output, record = ran
    script = tmp_path / "study.sh"
    place = tmp_path / "out"
    arguments = ["ffae", "--quick", "--output-dir", place, "--root", output / "phantom-200"]
    assert run("experiment", *arguments, "--script", script) == 0
    text = script.read_text()
    assert "#SBATCH --array=0-3\n" in text and not place.exists()
    done = runner.folder(output, runs_of(STUDY, _shared(output), 1)[2])
    shutil.copytree(done, place / "runs" / done.name)
    (place / "runs" / done.name / "scores-test.json").unlink()
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    subprocess.run(
        ["bash", script],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": "2", "PATH": path},
        check=True,
    )
    (folder,) = (place / "runs").glob("*/")
    assert runs.read_run(folder)["decoder_answers"] == "shuffled"
    assert not (place / "ffae").exists()
    shuffled = json.loads((folder / "scores-test.json").read_text())
    arm = next(arm for arm in record["arms"] if arm["name"] == "shuffled")
    assert shuffled["overall"] == pytest.approx(arm["measures"]["overall"]["value"])
    assert run("experiment", *arguments, "--task", "4") == 2


def test_wrong_arguments(tmp_path, capsys):
    for arguments, words in (
        (["nothing"], "NAME must be one of ffae"),
        (["ffae", "--data", "slake"], "root must be given for the data set slake, got none"),
        (
            ["tiny", "--data", "vqa-rad", "--root", tmp_path],
            "data must be a phantom set that is drawn for the study tiny, whose lesions have the"
            " sizes and contrasts that are asked for, got vqa-rad in ",
        ),
        (["ffae", "--jobs", "0"], "--jobs must be a whole number of at least 1"),
        (["ffae", "--quick", "--task", "9"], "task must be less than the number of runs (4)"),
    ):
        assert run("experiment", *arguments, "--output-dir", tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_the_studies_fit_together(study):
    """Each names itself, no two arms are the same training, and none shadows another."""
    assert study.name in names.STUDIES and study.question.endswith("?")
    keys = [one.key for one in runs_of(study, {"data": "phantom"}, 2)]
    assert len(set(keys)) == 2 * len(study.arms)
    for comparison in study.comparisons:
        assert comparison.better != comparison.than


def rows(answers, probability=0.5):
    """Predictions: four questions about two images; "right" is the answer to all."""
    return [
        {
            "image": f"image {number // 2}",
            "answer": "right",
            "answer_type": ("open", "closed")[number % 2],
            "classified": answer,
            "generated": answer if number % 2 == 0 else None,
            "probability": probability,
        }
        for number, answer in enumerate(answers)
    ]


def test_the_record_s_numbers(tmp_path, monkeypatch):
    """From predictions that were made up: two arms, two seeds."""
    study = dataclasses.replace(
        STUDY,
        arms=(Arm("a", "A"), Arm("b", "B")),
        comparisons=(Comparison("a", "b", "overall"), Comparison("b", "a", "open")),
        conclude=lambda record: in_words(record["comparisons"][0]),
    )
    said = {
        ("a", 0): rows(["right", "right", "right", "wrong"], 0.75),
        ("a", 1): rows(["right", "wrong", "right", "wrong"], 1.0),
        ("b", 0): rows(["wrong", "right", "right", "wrong"]),
        ("b", 1): rows(["wrong", "wrong", "right", "wrong"]),
    }
    monkeypatch.setattr(
        "cmimtl.experiments.record.read_scores",
        lambda output, one, asked: {"predictions": said[one.arm, one.arguments["seed"]]},
    )
    record = make_record(study, runs_of(study, {}, 2), tmp_path, {}, quick=False)
    a, b = (arm["measures"] for arm in record["arms"])
    assert a["overall"]["by_seed"] == [0.75, 0.5] and a["overall"]["value"] == 0.625
    assert (a["open"]["value"], a["closed"]["value"]) == (1, 0.25)
    assert (a["open"]["questions"], a["overall"]["questions"]) == (2, 4)
    assert (b["overall"]["value"], b["generated"]["value"]) == (0.375, 0.5)
    # 0.75 of four answers are right at a confidence of 0.75, and 0.5 at one of 1.
    assert record["arms"][0]["summaries"]["ece"] == {"value": 0.25, "by_seed": [0.0, 0.5]}
    first, second = record["comparisons"]
    assert (first["value"], second["value"]) == (0.25, -0.5)
    assert first["p_corrected"] >= first["p"] and not first["significant"]
    assert record["found"].startswith("+25.0 points (95 % interval ")
    assert record["found"].endswith("; not significant)")


def test_a_probe_is_laid_beside_the_question_as_it_is(tmp_path, monkeypatch):
    """Four questions: one answer changes, from right to wrong, and one is written again."""
    said = {
        None: rows(["right", "right", "right", "wrong"]),
        "shuffled": rows(["right", "right", "wrong", "wrong"]),
        "blank": rows(["right", "right", "nothing", "wrong"]),
    }
    study = STUDIES["reliance"]
    reworded = {"in-haste": said["shuffled"], "at-length": said[None]}
    monkeypatch.setattr(
        "cmimtl.experiments.record.read_scores",
        lambda output, one, asked: {"predictions": (said | reworded)[asked.probe]},
    )
    record = make_record(study, runs_of(study, {}, 1), tmp_path, {}, quick=False)
    found = {name: m["value"] for name, m in record["arms"][0]["measures"].items()}
    # The decoder is asked two questions, and writes "right" to one of them under both.
    assert found == {
        "overall": 0.75, "reliance": 0.25, "sensitivity": 0.25, "hallucination": 0.5,
        "in-haste": 0.75, "at-length": 1,
    }  # fmt: skip
    assert "25 % of its answers change" in record["found"]
    assert [asked.probe for asked in study.asked][:1] == [None] and len(study.asked) == 5


def test_differences_are_paired_by_question(tmp_path, monkeypatch):
    """Of 40 images, arm "b" is right in both questions of 20, and arm "a" in one more of each of
    ten others: a difference of an eighth, which is sure, though each score has an interval that
    holds both."""
    easy, more = np.arange(40) < 20, np.arange(40) >= 30

    def answers(arm):
        return [
            {"image": str(i), "answer": "yes", "answer_type": "open", "probability": 0.5,
             "classified": "yes" if easy[i] or (arm == "a" and more[i] and j == 0) else "no",
             "generated": None}
            for i in range(40)
            for j in range(2)
        ]  # fmt: skip

    monkeypatch.setattr(
        "cmimtl.experiments.record.read_scores",
        lambda output, one, asked: {"predictions": answers(one.arm)},
    )
    study = dataclasses.replace(
        STUDY,
        arms=(Arm("a", "A"), Arm("b", "B")),
        measures={"overall": STUDY.measures["overall"]},
        comparisons=(Comparison("a", "b", "overall"),),
        conclude=lambda record: "",
    )
    record = make_record(study, runs_of(study, {}, 2), tmp_path, {}, quick=False)
    (found,) = record["comparisons"]
    assert found["value"] == pytest.approx(1 / 8)
    assert found["significant"] and found["low"] > 0
    a, b = (arm["measures"]["overall"] for arm in record["arms"])
    assert a["low"] < b["value"] < a["value"] < b["high"]


def test_a_study_that_contradicts_itself():
    for changes, words in (
        ({"arms": (Arm("a", ""), Arm("a", ""))}, "arms must have distinct names, got a, a"),
        ({"comparisons": (Comparison("a", "decoder", "open"),)}, "must be of arms .*, got 'a'"),
        ({"comparisons": (Comparison("a", None, "open"),)}, "must be of arms .*, got 'a'"),
        ({"comparisons": (Comparison("alone", "decoder", "x"),)}, "of the measures .*, got 'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(STUDY, **changes)


def test_what_an_arm_changes_is_joined_with_what_all_change():
    study = dataclasses.replace(
        STUDY,
        arms=(Arm("a", "", {"changes": {"fusion_layers": 2}}),),
        comparisons=(),
        train={"epochs": 2, "changes": {"fusion_layers": 1, "num_queries": 4}},
        measures={"m": Measure("", "test", lambda row: 1.0)},
    )
    first, second = runs_of(study, {"epochs": 3, "data": "x"}, 2)
    assert first.arguments == {
        "epochs": 3, "data": "x", "seed": 0, "changes": {"fusion_layers": 2, "num_queries": 4},
    }  # fmt: skip
    assert second.arguments["seed"] == 1 and first.key != second.key
    assert first.key == Run("other", dict(reversed(first.arguments.items()))).key
