"""Where a model looks, in numbers: by hand on small grids, and from the files of a run."""

import json

import numpy as np
import pytest
from PIL import Image

from cmimtl.data import DataError, load_dataset
from cmimtl.data.phantom_pictures import LESION
from cmimtl.evaluation import attention
from cmimtl.evaluation.attention import Masks
from cmimtl.evaluation.evaluate import open_run
from cmimtl.evaluation.probes import PROBES
from tests.model.commands import run

GRID = np.array([[0.5, 0.25], [0.25, 0.0]])


def test_entropy():
    # -(1/2 log 1/2 + 2 * 1/4 log 1/4) = 3/2 log 2, of log 4.
    assert attention.entropy(GRID) == pytest.approx(0.75)
    assert attention.entropy(np.full((3, 3), 1 / 9)) == pytest.approx(1)
    assert attention.entropy(np.array([[0.0, 1.0]])) == 0


def test_mass_and_the_pointing_game():
    """Of 4 x 4 pixels, a patch is 2 x 2: the part has all of the first and half of the second."""
    inside = np.zeros((4, 4), bool)
    inside[:2, :3] = True
    assert attention.mass(GRID, inside) == pytest.approx(0.5 + 0.25 / 2)
    assert attention.points_at(GRID, inside)
    assert not attention.points_at(GRID, ~inside)
    inside[:2, :2] = [[False, False], [False, True]]  # one pixel of the patch is enough
    assert attention.points_at(GRID, inside)


def test_measures():
    mask = np.array([[1, 1, 1, 0], [1, LESION, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    assert attention.measures(GRID, mask, lesion=LESION) == {
        "entropy": pytest.approx(0.75),
        "body": pytest.approx(0.625), "body_area": 6 / 16,
        "lesion": pytest.approx(0.125), "lesion_area": 1 / 16,
        "pointed": 1, "pointed_by_chance": 1 / 4,
    }  # fmt: skip
    without = attention.measures(GRID, mask, lesion=None)
    assert without["body"] == pytest.approx(0.625)
    assert (without["lesion"], without["pointed"], without["pointed_by_chance"]) == (None,) * 3
    nothing = attention.measures(GRID, None, lesion=LESION)
    assert nothing.pop("entropy") == pytest.approx(0.75) and set(nothing.values()) == {None}


def test_masks_as_they_may_lie_beside_a_picture(tmp_path):
    masks = Masks(4)
    assert masks[tmp_path / "none" / "source.jpg"] is None
    labels = np.array([[0, 4], [2, 1]], np.uint8)
    for name, picture in {
        "grey": Image.fromarray(labels),
        "colours": Image.fromarray(np.stack([0 * labels, labels, 0 * labels], -1)),
    }.items():
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "mask.png")
        expected = labels.repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(masks[tmp_path / name / "source.jpg"], expected)
    (tmp_path / "mask.png").write_text("no picture")
    with pytest.raises(DataError, match=r"mask\.png must be a readable image"):
        masks[tmp_path / "source.jpg"]


def test_a_mask_goes_with_what_is_shown(trained):
    """Under each probe: with the picture of another patient, its mask; of a crop, the same part."""
    asked = open_run(trained, data=None, root=None, split="test", batch_size=64)
    masks, own = Masks(asked.images.image_size), asked.images
    test = asked.test
    given = {
        name: (list(PROBES[name].pictures(test, own)), list(PROBES[name].masks(test, masks)))
        for name in ("blank", "shuffled", "crop-3", "noise-1")
    }
    assert set(given["blank"][1]) == {None}
    of_picture = {own[e.image].tobytes(): masks[e.image] for e in test}
    for picture, mask in zip(*given["shuffled"], strict=True):
        assert mask is of_picture[picture.tobytes()]
    assert all(mask is masks[e.image] for e, mask in zip(test, given["noise-1"][1], strict=True))
    # The surroundings of CT and MRI are black, and nothing of the body is as dark.
    dark = [
        ((picture[..., 0] < 16) == (mask == 0)).mean()
        for e, picture, mask in zip(test, *given["crop-3"], strict=True)
        if e.extra["modality"] == "CT" and mask.max() < LESION
    ]
    assert len(dark) > 3 and min(dark) > 0.93


def test_the_rows_of_an_evaluation_have_it(trained, data, tmp_path):
    """Of one picture, by hand from the answerer: the question's own grid and mask."""
    paths = [tmp_path / "plain.json", tmp_path / "probed.json"]
    assert run("evaluate", trained, "--json", paths[0]) == 0
    assert run("evaluate", trained, "--probe", "in-haste", "--json", paths[1]) == 0
    rows, probed = (json.loads(path.read_text())["predictions"] for path in paths)
    asked = open_run(trained, data=None, root=None, split="test", batch_size=64)
    test = load_dataset("phantom", data, "test")
    for number in (0, len(test) - 1):
        answer = asked.answerer.answer(test[number].image, test[number].question)
        mask = Masks(asked.answerer.image_size)[test[number].image]
        expected = attention.measures(answer.attention, mask, lesion=LESION)
        assert rows[number]["attention"] == pytest.approx(expected, rel=1e-4)
        assert rows[number]["attention"]["body_area"] == probed[number]["attention"]["body_area"]
        assert answer.attention == pytest.approx(
            asked.answerer.attention([test[number].question], [answer.picture])[0], rel=1e-4
        )
