"""Any image as RGB: files, bytes, arrays, and the DICOM files that come with pydicom."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from cmimtl.data.images import load_image

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def grey(image):
    """One channel of a picture whose three are the same."""
    array = np.asarray(image)
    assert image.mode == "RGB" and (array == array[:, :, :1]).all()
    return array[:, :, 0]


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_a_path_bytes_and_an_image_are_the_same(tmp_path):
    image = Image.fromarray(RAMP)
    path = tmp_path / "picture"  # told apart by content, not by its name
    path.write_bytes(encoded(image, "PNG"))
    for source in (image, path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(grey(load_image(source)), RAMP)


@pytest.mark.parametrize(
    "array",
    [RAMP, RAMP[:, :, None], RAMP.astype(np.uint16) * 257, RAMP / np.float64(255)],
    ids=["uint8", "one channel", "uint16", "float"],
)
def test_arrays_and_tensors(array):
    np.testing.assert_array_equal(grey(load_image(array)), RAMP)
    np.testing.assert_array_equal(grey(load_image(torch.from_numpy(array))), RAMP)


def test_colour_stays():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(array)), array)


def test_sixteen_bit_files_use_the_whole_range():
    data = encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(grey(load_image(data)), RAMP)


def test_transparency_goes_on_black():
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    assert np.asarray(load_image(image)).tolist() == [[[200, 100, 50], [0, 0, 0]]]


@pytest.mark.parametrize(
    "source, message",
    [
        (3, "source must be a path, bytes, .* got int"),
        (b"nothing", "must hold an image or DICOM with pixels, got the bytes, which holds neither"),
        (np.zeros((2, 2, 4), np.uint8), r"must have shape .* got \(2, 2, 4\)"),
        (np.zeros((0, 3), np.uint8), r"must have shape .* got \(0, 3\)"),
        (np.array([[0.0, 2.0]]), r"floats must lie in \[0, 1\], got \[0, 2\]"),
        (np.array([[0.0, np.nan]]), r"floats must lie in \[0, 1\], got \[nan, nan\]"),
        (np.zeros((2, 2), np.int64), "must be uint8, uint16 or of floats, got int64"),
    ],
)
def test_no_image(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image("nowhere.png")


def dicom(pixels, **fields) -> bytes:
    """A grey DICOM file of 16-bit pixels, as a scanner writes it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation = 0
    file.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        setattr(file, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_rescale_and_window():
    """Hounsfield -100 is black, 300 white; what lies outside is cut."""
    hounsfield = np.array([[-1000, -100, 0], [100, 300, 2000]])
    window = dict(WindowCenter=100, WindowWidth=401, RescaleSlope=1, RescaleIntercept=-1024)
    picture = grey(load_image(dicom(hounsfield + 1024, **window)))
    expected = np.clip((hounsfield + 100) / 400, 0, 1) * 255
    np.testing.assert_allclose(picture, expected, atol=1)


def test_dicom_without_a_window_takes_the_whole_range():
    pixels = np.array([[100, 200], [300, 500]])
    np.testing.assert_allclose(
        grey(load_image(dicom(pixels))), (pixels - 100) / 400 * 255, atol=0.5
    )


def test_dicom_where_small_values_are_white():
    pixels = np.array([[0, 100]])
    data = dicom(pixels, PhotometricInterpretation="MONOCHROME1")
    assert grey(load_image(data)).tolist() == [[255, 0]]


def test_dicom_frames():
    frames = np.arange(3)[:, None, None] * np.array([[0, 1]]) + np.array([[0, 1]])
    frames[1] = [[5, 0]]
    data = dicom(frames)
    assert grey(load_image(data)).tolist() == [[255, 0]]  # the middle one
    assert grey(load_image(data, frame=0)).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match=r"frame must be in \[0, 2\] .* got 3"):
        load_image(data, frame=3)


@pytest.mark.parametrize(
    "name, size",
    [
        ("CT_small.dcm", (128, 128)),
        ("MR_small.dcm", (64, 64)),
        ("MR_small_RLE.dcm", (64, 64)),
        ("MR_small_bigendian.dcm", (64, 64)),
        ("MR_small_jp2klossless.dcm", (64, 64)),
        ("examples_palette.dcm", (800, 350)),
        ("examples_rgb_color.dcm", (320, 240)),
        ("examples_ybr_color.dcm", (320, 240)),
        ("SC_rgb_rle_2frame.dcm", (100, 100)),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100)),
        ("image_dfl.dcm", (512, 512)),
    ],
)
def test_real_dicom_files(name, size):
    image = load_image(DICOM / name)
    assert image.mode == "RGB" and image.size == size
    assert np.asarray(image).std() > 10


def test_every_encoding_of_one_scan_gives_the_same_picture():
    plain = grey(load_image(DICOM / "MR_small.dcm"))
    for kind in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless"):
        np.testing.assert_array_equal(grey(load_image(DICOM / f"MR_small_{kind}.dcm")), plain)


@pytest.mark.parametrize("name", ["rtplan.dcm", "waveform_ecg.dcm", "MR_truncated.dcm"])
def test_dicom_without_a_picture(name):
    with pytest.raises(ValueError, match=f"load_image: source must .* got .*{name}"):
        load_image(DICOM / name)
