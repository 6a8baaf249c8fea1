"""Damaged files of every kind that the package reads: an answer, or an error that names the file.

`CMIMTL_DAMAGED_FILES=5000` takes so many instead of those of a few seconds, and
`CMIMTL_DAMAGED_SEED` other ones. A failure names the seed and the file's number, which alone say
what it was.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from cmimtl import runs
from cmimtl.data import load_dataset
from cmimtl.data.batches import ImageCache
from cmimtl.data.images import load_image
from cmimtl.evaluation.answer import QuestionAnswerer
from cmimtl.training.arguments import resumed_arguments
from cmimtl.training.resuming import check_checkpoint
from tests.model.damage import damaged

FILES = int(os.environ.get("CMIMTL_DAMAGED_FILES", "200"))
SEED = int(os.environ.get("CMIMTL_DAMAGED_SEED", "0"))
SECONDS = 120  # more for one file is a hang
MEMORY = 24 * 2**30  # of addresses, beside those of this process, for one file
PICTURES = {
    "a.png": ("RGB", {}), "grey.png": ("L", {}), "deep.png": ("I;16", {}), "palette.png": ("P", {}),
    "a.jpg": ("RGB", {}), "a.jp2": ("RGB", {}), "a.bmp": ("RGB", {}), "a.webp": ("RGB", {}),
    "a.ppm": ("RGB", {}), "a.gif": ("P", {"pages": 3}), "packed.tif": ("RGB", {"pages": 3,
    "compression": "tiff_lzw"}), "floats.tif": ("F", {}),
}  # fmt: skip
DICOM = (
    "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "SC_rgb_jpeg.dcm", "JPEG2000.dcm", "SC_ybr_full_422_uncompressed.dcm", "image_dfl.dcm",
    "rtdose_1frame.dcm", "SC_rgb_rle_16bit_2frame.dcm",
)  # fmt: skip
APART = ("MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm")  # half a second each
ROW = {
    "question": "Is it so?", "answer": "yes", "answer_type": "CLOSED", "qid": 1, "q_lang": "en",
    "img_name": "x/source.jpg", "image_name": "x/source.jpg", "content_type": "Organ",
    "question_type": "PRES", "phrase_type": "freeform", "image_organ": "HEAD", "location": "Head",
}  # fmt: skip
DATA_SETS = {
    "slake": ("train.json", "imgs", "train"),
    "vqa-rad": ("trainset.json", "images", "train"),
    "vqa-rad public": ("VQA_RAD Dataset Public.json", "images", "train"),
    "ovqa": ("valset.json", "img", "validation"),
}
OF_A_RUN = (
    "run.json", "warnings.json", "config.json", "model.safetensors", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "answer_tokenizer/tokenizer.json",
    "answer_tokenizer/tokenizer_config.json",
)  # fmt: skip
OF_A_CHECKPOINT = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
)  # fmt: skip


class Hang(BaseException):
    """Reading one file took too long."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, trained):
    """Name -> how often it is taken, the file that is damaged, its folder, and who reads it."""
    root = tmp_path_factory.mktemp("damage")
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    found = {}
    for name, (mode, options) in PICTURES.items():
        options = dict(options)
        picture = Image.fromarray(noise).convert("L" if mode == "I;16" else mode)
        picture = picture.convert("I").convert("I;16") if mode == "I;16" else picture
        if pages := options.pop("pages", 0):
            options |= {"save_all": True, "append_images": [picture.copy()] * (pages - 1)}
        picture.save(root / name, **options)
        found[name] = (12, root / name, root, load_image)
    for name in (*DICOM, *APART):
        shutil.copy(Path(pydicom.__path__[0]) / "data/test_files" / name, root / name)
        found[name] = (1 if name in APART else 12, root / name, root, load_image)
    for name, (file, images, split) in DATA_SETS.items():
        folder = root / name
        (folder / images / "x").mkdir(parents=True)
        Image.fromarray(noise).save(folder / images / "x" / "source.jpg")
        rows = [{**ROW, "qid": number} for number in range(4)]
        (folder / file).write_text(json.dumps(rows))
        read = _data_set(name.split()[0], folder, split)
        found[name] = (30, folder / file, folder, read)
    run = shutil.copytree(trained, root / "run")
    (run / "warnings.json").write_text('[{"step": 3, "warning": "spike"}]')
    for name in OF_A_RUN:
        reader = _settings_of(run) if name in ("run.json", "warnings.json") else _model_of(run)
        found[f"run {name}"] = (20 if "run.json" in name else 5, run / name, run, reader)
    answerer = QuestionAnswerer.from_run(trained)
    checkpoint = run / "checkpoint-6"
    for name in OF_A_CHECKPOINT:
        read = _checkpoint(checkpoint, answerer.model)
        found[f"checkpoint {name}"] = (5, checkpoint / name, checkpoint, read)
    return found


def _data_set(name, folder, split):
    def read(_):
        examples = load_dataset(name, folder, split)
        ImageCache([example.image for example in examples], 32)

    return read


def _settings_of(run):
    def read(_):
        runs.read_run(run)
        runs.read_warnings(run)
        resumed_arguments(run, {}, 1)

    return read


def _model_of(run):
    picture = np.zeros((64, 64, 3), np.uint8)

    def read(_):
        answer = QuestionAnswerer.from_run(run).answer(picture, "is there a dark mass?")
        assert all(0 <= probability <= 1 for _, probability in answer.classes)

    return read


def _checkpoint(folder, model):
    return lambda _: check_checkpoint(folder, model)


@contextlib.contextmanager
def _limits():
    """A file that hangs is an error, and so is one that takes all memory."""

    def hang(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _complaint(path, folder, read):
    """What is wrong with how a damaged file is read; None where nothing is."""
    try:
        with _limits(), contextlib.redirect_stdout(io.StringIO()):
            read(path)
    except (ValueError, OSError) as error:
        words = str(error)
        if not isinstance(error, UnicodeError) and str(folder) in words and "\n" not in words:
            return None
        return f"{type(error).__name__}: {words[:300]}"
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def test_damaged_files(kinds):
    names = list(kinds)
    weights = [kinds[name][0] for name in names]
    whole = {name: path.read_bytes() for name, (_, path, _, _) in kinds.items()}
    complaints = []
    for number in range(FILES):
        rng = random.Random(f"{SEED} {number}")
        name = rng.choices(names, weights)[0] if number >= len(names) else names[number]
        _, path, folder, read = kinds[name]
        how, data = damaged(rng, whole[name], list(whole.values()))
        path.write_bytes(data)
        print(f"seed {SEED}, file {number}: {name}, {how}", flush=True)  # in case that it kills
        try:
            complaint = _complaint(path, folder, read)
        finally:
            path.write_bytes(whole[name])
        if complaint is not None:
            complaints.append(f"seed {SEED}, file {number}: {name}, {how}: {complaint}")
    assert not complaints, "\n".join(complaints)


def test_the_campaign_finds_faults(kinds):
    """A reader that raises something else, that names no file, that hangs or eats memory."""
    path = kinds["a.png"][1]

    def reader(error):
        def read(path):
            raise error

        return read

    assert _complaint(path, path.parent, reader(ValueError(f"x: {path} is bad"))) is None
    assert "KeyError" in _complaint(path, path.parent, reader(KeyError(str(path))))
    assert "ValueError" in _complaint(path, path.parent, reader(ValueError("bad")))
    assert "ValueError" in _complaint(path, path.parent, reader(ValueError(f"{path}\nis bad")))
    assert "MemoryError" in _complaint(path, path.parent, lambda _: bytearray(MEMORY))
