"""Any image as RGB: files of all kinds, bytes, arrays. DICOM is in test_dicom.py."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from cmimtl.data import images
from cmimtl.data.images import load_image

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


def row(source, **arguments):
    """The first row of a grey picture."""
    return grey(load_image(source, **arguments))[0].tolist()


def tiff(values, bits, sample, code):
    """A TIFF of one row; sample is its SampleFormat: 1 unsigned, 2 signed, 3 float."""
    data = struct.pack(f"<{len(values)}{code}", *values)
    tags = {
        256: len(values),  # width
        257: 1,  # height
        258: bits,
        259: 1,  # not compressed
        262: 1,  # 0 is black
        273: 8,  # where the data stand
        277: 1,  # sample a pixel
        278: 1,  # row a strip
        279: len(data),
        339: sample,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


@pytest.mark.parametrize(
    "values, format, expected",
    [
        # The largest value tells the depth, and white is the largest number of that depth.
        ([0, 1, 128, 255], (16, 1, "H"), [0, 1, 128, 255]),  # of 255
        ([0, 256, 512, 1023], (16, 1, "H"), [0, 64, 128, 255]),  # of 1023: 63.8, 127.6
        ([0, 1024, 2048, 4095], (16, 1, "H"), [0, 64, 128, 255]),  # of 4095: 63.8, 127.5
        ([0, 1000, 2048], (16, 1, "H"), [0, 62, 128]),  # of 4095: 62.3, 127.5
        ([0, 4096, 16383], (16, 1, "H"), [0, 64, 255]),  # of 16383: 63.8
        ([0, 32768, 65535], (16, 1, "H"), [0, 128, 255]),  # of 65535: 127.5
        ([0, 2048, 4095], (16, 2, "h"), [0, 128, 255]),  # signed, without a negative value
        # Where a value is negative, the range is shown.
        ([-1000, 0, 1000, 3000], (16, 2, "h"), [0, 64, 128, 255]),  # a quarter is 63.75
        ([-32768, 32767], (16, 2, "h"), [0, 255]),
        ([-5, 0, 5], (32, 2, "i"), [0, 128, 255]),
        ([-128, 0, 127], (8, 2, "b"), [0, 128, 255]),  # 128 of 255
        # So it is above 16 bits.
        ([0, 65536, 131072], (32, 2, "i"), [0, 128, 255]),
        ([0, 2**31, 2**32 - 1], (32, 1, "I"), [0, 128, 255]),
        # Uniform pictures are not stretched.
        ([255, 255], (16, 1, "H"), [255, 255]),
        ([0, 0], (16, 1, "H"), [0, 0]),
        ([70000, 70000], (32, 2, "i"), [255, 255]),
        ([-3, -3], (16, 2, "h"), [0, 0]),
        ([0.0, 0.25, 1.0], (32, 3, "f"), [0, 64, 255]),  # as they are: 63.75
        ([0.25, 0.5], (32, 3, "f"), [64, 128]),
        ([-1000.0, -500.0, 1000.0], (32, 3, "f"), [0, 64, 255]),
        ([-1.0, float("nan"), 1.0, float("inf")], (32, 3, "f"), [0, 0, 255, 255]),
        ([float("nan"), float("nan")], (32, 3, "f"), [0, 0]),
        ([-3e38, 0.0, 3e38], (32, 3, "f"), [0, 128, 255]),
    ],
)
def test_the_scale_of_many_bits(values, format, expected):
    assert row(tiff(values, *format)) == expected


def test_twelve_bits_in_a_png_and_in_an_array():
    array = np.array([[0, 1024, 2048, 4095]], np.uint16)
    for source in (encoded(Image.fromarray(array), "PNG"), array, array.astype(">u2")):
        assert row(source) == [0, 64, 128, 255]


def test_an_image_of_signed_integers():
    assert row(Image.fromarray(np.array([[-100, 0, 300]], np.int32))) == [0, 64, 255]


def test_tensors_of_other_kinds():
    tensor = torch.tensor([[0.0, 0.5, 1.0]])
    for other in (tensor.bfloat16(), tensor.half(), tensor.double().requires_grad_()):
        assert row(other) == [0, 128, 255]
    with pytest.raises(ValueError, match="must be an image that can be decoded, got the tensor:"):
        load_image(tensor.to("meta"))


# Where the top left corner of a picture lies in a file, and whether rows and columns are swapped,
# by its EXIF orientation: tag 0112 of the TIFF and EXIF standards.
ORIENTATIONS = {
    1: ([[1, 2, 3], [4, 5, 6]]),
    2: ([[3, 2, 1], [6, 5, 4]]),  # left and right reflected
    3: ([[6, 5, 4], [3, 2, 1]]),  # turned by 180 degrees
    4: ([[4, 5, 6], [1, 2, 3]]),  # top and bottom reflected
    5: ([[1, 4], [2, 5], [3, 6]]),  # reflected at the diagonal
    6: ([[4, 1], [5, 2], [6, 3]]),  # to be turned clockwise
    7: ([[6, 3], [5, 2], [4, 1]]),  # reflected at the other diagonal
    8: ([[3, 6], [2, 5], [1, 4]]),  # to be turned anticlockwise
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_picture_is_turned_as_its_exif_says(kind):
    stored = np.kron([[1, 2, 3], [4, 5, 6]], np.ones((16, 16))).astype(np.uint8) * 40
    for orientation, expected in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(stored).convert("RGB").save(buffer, kind, exif=exif, **options)
        shown = np.asarray(load_image(buffer.getvalue()))[8::16, 8::16, 0].astype(int)
        np.testing.assert_allclose(shown, np.array(expected) * 40, atol=1)


def test_sixteen_bits_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(buffer, "PNG", exif=exif)
    assert grey(load_image(buffer.getvalue())).tolist() == [[0], [255]]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks(kind):
    """No ink is white, all black ink is black, cyan and magenta together are blue."""
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 255, 0, 0]]], np.uint8)
    data = encoded(Image.fromarray(inks.repeat(16, 0).repeat(16, 1), "CMYK"), kind)
    shown = np.asarray(load_image(data))[8, 8::16].astype(int)
    np.testing.assert_allclose(shown, [[255] * 3, [0] * 3, [0, 0, 255]], atol=3)


def test_other_modes():
    one = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert row(encoded(one, "PNG")) == [0, 255]
    half = Image.fromarray(np.array([[[200, 255], [200, 0], [200, 51]]], np.uint8), "LA")
    assert row(encoded(half, "PNG")) == [200, 0, 40]  # 51 is a fifth of 255
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 100, 0, 0, 0, 100, 0])
    for x in range(3):
        palette.putpixel((x, 0), x)
    colours = [[10, 20, 30], [100, 0, 0], [0, 100, 0]]
    assert np.asarray(load_image(encoded(palette, "PNG"))).tolist() == [colours]
    palette.info["transparency"] = 1
    colours[1] = [0, 0, 0]
    assert np.asarray(load_image(encoded(palette, "PNG"))).tolist() == [colours]


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_frames_and_pages(kind):
    pages = [Image.new("L", (2, 2), level) for level in (0, 50, 100, 200)]
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:])
    data = buffer.getvalue()
    assert row(data) == [100, 100]  # of four, the third is the middle
    for frame, level in enumerate((0, 50, 100, 200)):
        assert row(data, frame=frame) == [level, level]
    for wrong in (4, -1, 1.0):
        with pytest.raises(
            ValueError, match=rf"frame must be in \[0, 3\] for the bytes, got {wrong}"
        ):
            load_image(data, frame=wrong)
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    assert row(opened, frame=3) == [200, 200]
    assert opened.tell() == 1


def test_of_a_photograph_with_further_pictures_the_first():
    first, second = (Image.new("L", (16, 16), level) for level in (40, 200))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert row(buffer.getvalue())[0] == 40
    assert row(buffer.getvalue(), frame=1)[0] == 200


@pytest.mark.parametrize(
    "source, arguments, message",
    [
        (RAMP, {"frame": 1}, r"frame must be in \[0, 0\] for the array, got 1"),
        (RAMP, {"view": 1}, r"view must be in \[0, 0\] for what is not DICOM, got 1"),
        (Image.fromarray(RAMP), {"frame": 1}, r"frame must be in \[0, 0\] for the image, got 1"),
        (
            encoded(Image.fromarray(RAMP), "PNG"),
            {"view": 2},
            r"view must be in \[0, 0\] for the bytes, got 2",
        ),
    ],
)
def test_what_is_not_there_is_refused(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_image(source, **arguments)


def refused(tmp_path, data):
    """The message of a file that is no image: one line that names it."""
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith("load_image: source must ") and "\n" not in message
    assert f"got {path}" in message
    return message


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Pillow knows EPS and would start ghostscript to show it."""

    def start(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", start)
    monkeypatch.setattr("subprocess.Popen", start)
    Image.init()  # all formats are known
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(drawing)).format == "EPS"
    assert "holds neither" in refused(tmp_path, drawing)
    assert "EPS" not in images.FORMATS


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_in_one_line(tmp_path):
    """Cut anywhere, or with bytes changed: a picture, or a line that names the file."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    kinds = ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "PPM"]
    shown = refusals = 0
    for kind in kinds:
        whole = encoded(noise, kind)
        for cut in (8, 20, len(whole) // 4, len(whole) // 2):
            refused(tmp_path, whole[:cut])
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 400), 4):
                data[place] = rng.integers(256)
            try:
                shown += load_image(bytes(data)).mode == "RGB"
            except ValueError as error:
                assert str(error).startswith("load_image: source must "), error
                assert "got the bytes" in str(error) and "\n" not in str(error)
                refusals += 1
    assert shown > 100 and refusals > 50


def test_a_picture_of_too_many_pixels_is_refused(tmp_path):
    data = encoded(Image.new("1", (20000, 10000)), "PNG")  # 200 million, of a few kilobytes
    assert "DecompressionBombError" in refused(tmp_path, data)
