"""The files that come with pydicom, whole and damaged. Some are kept elsewhere and fetched; what is
tested here are those that are there."""

import zlib

import numpy as np
import pydicom
import pytest

from cmimtl.data import dicom
from cmimtl.data.images import load_image
from tests.model.data.test_images import grey, refused
from tests.model.data.written_dicom import FILES, META

# Ten bands of ten rows, of pydicom's own description of these files.
BANDS = [
    [255, 0, 0],
    [255, 128, 128],
    [0, 255, 0],
    [128, 255, 128],
    [0, 0, 255],
    [128, 128, 255],
    [0, 0, 0],
    [64, 64, 64],
    [192, 192, 192],
    [255, 255, 255],
]


def test_coloured_bands_in_every_encoding():
    names = [path.name for path in FILES.glob("SC_*.dcm")]
    seen = 0
    for name in names:
        shown = np.asarray(load_image(FILES / name, frame=0)).astype(int)
        if shown.shape == (100, 100, 3):
            lossy = any(mark in name for mark in ("dcmtk", "lossy", "ybr", "jls"))
            middle = shown[5::10, 50]
            np.testing.assert_allclose(middle, BANDS, atol=6 if lossy else 0, err_msg=name)
            seen += 1
    assert seen >= 18
    for depth in ("16bit", "32bit"):
        for frames in ("", "_2frame"):
            both = [FILES / f"SC_rgb_rle{part}{frames}.dcm" for part in ("", f"_{depth}")]
            one, other = (np.asarray(load_image(path)) for path in both)
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name, view, places, expected",
    [
        # Window 600/1600 over 422, 319, 361 and 1369, 1129, 862: ((x - 599.5) / 1599 + 0.5) * 255
        ("MR_small.dcm", 0, np.s_[0, 31:34], [99, 83, 89]),
        ("MR_small.dcm", 0, np.s_[-1, -3:], [250, 212, 169]),
        # No window: 175, 180, 166 of 128 ... 2191, (x - 128) / 2063 * 255
        ("CT_small.dcm", 0, np.s_[0, :3], [6, 6, 5]),
        # Two windows, 450/790 and 200/443, over 137, 132, 136, 139
        ("examples_overlay.dcm", 0, np.s_[150, 240:242], [27, 25]),
        ("examples_overlay.dcm", 1, np.s_[150, 240:242], [91, 89]),
        # 1249000 and 1250000 of 795000 ... 1254000: 252.2, 252.8
        ("rtdose_1frame.dcm", 0, np.s_[0, 1:3], [252, 253]),
    ],
)
def test_grey_values_of_real_files(name, view, places, expected):
    assert grey(load_image(FILES / name, view=view))[places].tolist() == expected


def test_colours_of_a_real_palette():
    shown = np.asarray(load_image(FILES / "examples_palette.dcm"))
    # Entries 9472, 15872, 24064 and three times 41472 of 65535.
    assert shown.shape == (350, 800, 3)
    assert shown[0, 0].tolist() == [37, 62, 94]
    assert shown[100, 400].tolist() == [161, 161, 161]


@pytest.mark.parametrize(
    "one, others",
    [
        (
            "MR_small",
            "RLE bigendian expb implicit jp2klossless jpeg_ls_lossless padded".split(),
        ),
        ("rtdose", ["rle", "expb"]),
        ("rtdose_1frame", []),
        ("SC_rgb_small_odd", ["big_endian"]),
        ("liver_1frame", []),
    ],
)
def test_every_encoding_of_one_scan_gives_the_same_picture(one, others):
    plain = np.asarray(load_image(FILES / f"{one}.dcm"))
    pairs = {"rtdose_1frame": ["rtdose_expb_1frame", "rtdose_rle_1frame"]}
    pairs["liver_1frame"] = ["liver_expb_1frame"]
    for name in [f"{one}_{other}" for other in others] + pairs.get(one, []):
        np.testing.assert_array_equal(np.asarray(load_image(FILES / f"{name}.dcm")), plain, name)


SKIPPED = {".json", ".py", ".pyc", ".xml", ".txt", ".md", ".zip", ".tar"}


@pytest.mark.filterwarnings("ignore")
def test_each_file_is_a_right_picture_or_refused():
    """Shape and order of grey values are the file's, or one line says why there is none."""
    pictures = refusals = 0
    for path in sorted(FILES.rglob("*")):
        if path.is_dir() or path.suffix in SKIPPED or "TINY_ALPHA" in path.parts:
            continue
        try:
            picture = np.asarray(load_image(path)).astype(int)
        except ValueError as error:
            message = str(error)
            assert message.startswith("load_image: source must ") and "\n" not in message
            assert f"got {path}" in message
            refusals += 1
            continue
        pictures += 1
        file = pydicom.dcmread(path, force=True)
        assert picture.shape == (file.Rows, file.Columns, 3), path
        if file.PhotometricInterpretation.startswith("MONOCHROME"):
            stored = file.pixel_array
            if stored.ndim == 3:
                stored = stored[len(stored) // 2]
            hidden = stored == file.get("PixelPaddingValue", stored.max() + 1)
            order = np.argsort(stored[~hidden], kind="stable")
            steps = np.diff(picture[:, :, 0][~hidden][order])
            downwards = file.PhotometricInterpretation == "MONOCHROME1"
            assert ((steps <= 0) if downwards else (steps >= 0)).all(), path
            # Equal stored values are equally bright.
            assert (steps[np.diff(stored[~hidden][order]) == 0] == 0).all(), path
            assert (picture[hidden] == 0).all(), path
    assert pictures > 75 and refusals > 25


@pytest.mark.parametrize("name", ["rtplan.dcm", "waveform_ecg.dcm", "MR_truncated.dcm"])
def test_dicom_without_a_picture(name):
    with pytest.raises(ValueError, match=f"load_image: source must .* got .*{name}"):
        load_image(FILES / name)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_in_one_line():
    """Cut anywhere, or with bytes changed: a picture, or a line that names the source."""
    rng = np.random.default_rng(0)
    refusals = 0
    names = ["MR_small", "MR_small_RLE", "CT_small", "SC_rgb_small_odd", "rtdose_1frame"]
    names += ["SC_rgb_small_odd_jpeg", "MR_small_jp2klossless"]
    for name in names:
        whole = (FILES / f"{name}.dcm").read_bytes()
        for number in range(60):
            data = bytearray(whole)
            for place in rng.integers(META, min(len(data), 3000), 4):
                data[place] = rng.integers(256)
            if number % 3 == 0:
                data = data[: rng.integers(4, len(data))]
            try:
                assert load_image(bytes(data)).mode == "RGB"
            except ValueError as error:
                assert str(error).startswith("load_image: source must "), error
                assert "got the bytes" in str(error) and "\n" not in str(error)
                refusals += 1
    assert refusals > 60


@pytest.mark.parametrize(
    "name, place, value",
    [
        ("SC_rgb_jpeg_gdcm", 2, 178),
        ("JPEGLSNearLossless_16", 6, 36),
        ("SC_rgb_jls_lossy_line", 6, 174),
    ],
)
def test_a_decoder_that_ends_its_process_does_not_end_ours(tmp_path, name, place, value):
    """GDCM aborts where these bytes of the stream, behind its first mark, are changed."""
    data = bytearray((FILES / f"{name}.dcm").read_bytes())
    data[data.rfind(b"\xff\xd8\xff") + place] = value
    assert "pixels must be undamaged and of a known encoding" in refused(tmp_path, bytes(data))


def test_bytes_that_are_no_dicom_have_no_pixels():
    for data in (b"", b"\0" * 400, b"\xff" * 400, bytes(range(256)) * 4, b"\0" * 128 + b"DICM"):
        assert dicom.read(data) is None


@pytest.mark.parametrize("header", [0, 128])
def test_a_deflated_file_that_would_fill_the_memory(tmp_path, monkeypatch, header):
    """It is refused before pydicom reads an element of it, with preamble and without."""
    whole = (FILES / "image_dfl.dcm").read_bytes()
    assert load_image(whole).size == (512, 512)
    end = 144 + int.from_bytes(whole[140:144], "little")
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = whole[:end] + deflate.compress(bytes(dicom.MAX_INFLATED + 1)) + deflate.flush()
    assert len(bomb) < 2**20

    def read(*_, **__):
        raise AssertionError("pydicom was asked")

    monkeypatch.setattr(pydicom, "dcmread", read)
    message = refused(tmp_path, bomb if header else bomb[132:])
    assert "deflated data must have at most 268435456 bytes, got more" in message
    start = 132 if header else 0
    unsized = (bomb[:132] if header else b"") + bomb[144:]
    assert unsized[start : start + 2] == b"\x02\0"
    assert "GroupLength must be given" in refused(tmp_path, unsized)
