"""Grey values as PS3.3 has them. Expected values are worked out by hand from its equations."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cmimtl.data.images import load_image
from tests.model.data.test_images import refused, row
from tests.model.data.written_dicom import FILES, META, group, lut, scan, write


@pytest.mark.parametrize(
    "pixels, window, expected",
    [
        # LINEAR (C.11.2.1.2): ((x - (c - 0.5)) / (w - 1) + 0.5) * 255. With c = 200 and w = 401 it
        # is ((x - 199.5) / 400 + 0.5) * 255: 64.07, 76.82, 89.57, 127.82.
        ([100, 120, 140, 200], (200, 401), [64, 77, 90, 128]),
        ([0, 100, 300, 400, 900], (200, 401), [0, 64, 192, 255, 255]),  # -0.5 -> 0.3; 191.6
        ([900, 900], (200, 401), [255, 255]),  # uniform, and white all the same
        ([200, 200], (200, 401), [128, 128]),
        # The standard's own examples: 2048/4096 maps 0 ... 4095 as they are; a width of 1 parts
        # what is at most c - 0.5 from what is above.
        ([0, 1024, 2048, 4095], (2048, 4096), [0, 64, 128, 255]),  # x / 4095: 63.8, 127.5
        ([99, 100], (100, 1), [0, 255]),
        ([0, 1, 2], (1.5, 1, "LINEAR"), [0, 0, 255]),
        # LINEAR_EXACT (C.11.2.1.3.2): ((x - c) / w + 0.5) * 255
        ([0, 100, 200, 300, 400], (200, 400, "LINEAR_EXACT"), [0, 64, 128, 191, 255]),
        # SIGMOID (C.11.2.1.3.1): 255 / (1 + exp(-4 (x - c) / w)). At x = c - w/2 it is
        # 255 / (1 + e^2) = 30.40, at c - w/4 255 / (1 + e) = 68.58, and so on.
        ([0, 100, 200, 300, 400], (200, 400, "SIGMOID"), [30, 69, 128, 186, 225]),
        ([0, 65535], (30000, 10, "SIGMOID"), [0, 255]),  # exp(12000) is not worked out
    ],
)
def test_a_window_maps_by_its_own_ends(pixels, window, expected):
    centre, width, *function = window
    fields = dict(WindowCenter=centre, WindowWidth=width)
    if function:
        fields["VOILUTFunction"] = function[0]
    assert row(scan(pixels, **fields)) == expected


def test_a_window_stands_over_rescaled_values():
    """Hounsfield -100 is black, 300 white; what lies outside is cut."""
    fields = dict(WindowCenter=100, WindowWidth=401, RescaleSlope=1, RescaleIntercept=-1024)
    # ((h - 99.5) / 400 + 0.5) * 255: at 0 64.07, at 100 127.82, at 250 223.4
    assert row(scan([24, 924, 1024, 1124, 1274, 3024], **fields)) == [0, 0, 64, 128, 223, 255]
    # A slope below 0 turns brightness around: -x + 200 is 200, 100, 0.
    fields = dict(WindowCenter=100.5, WindowWidth=201, RescaleSlope=-1, RescaleIntercept=200)
    assert row(scan([0, 100, 200], **fields)) == [255, 128, 0]


def test_a_window_narrower_than_the_linear_function_knows():
    """LINEAR is defined from a width of 1 on. Below, the width can only be meant exactly."""
    fields = dict(WindowCenter=0.5, WindowWidth=0.5, RescaleSlope=0.001, RescaleIntercept=0)
    # 0.25 is black, 0.75 white, 0.375 a quarter
    assert row(scan([0, 250, 375, 500, 750, 1000], **fields)) == [0, 0, 64, 128, 255, 255]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(WindowCenter=100, WindowWidth=0),
        dict(WindowCenter="", WindowWidth=""),
        dict(WindowWidth=400),
        dict(WindowCenter=400),
        dict(RescaleSlope=None, RescaleIntercept=None),
        dict(RescaleSlope=2, RescaleIntercept=-1000),
    ],
)
def test_without_a_window_the_whole_range_is_shown(fields):
    # (x - 100) / 400 * 255: 63.75, 127.5, 255
    assert row(scan([100, 200, 300, 500], **fields)) == [0, 64, 128, 255]


@pytest.mark.parametrize(
    "level, dtype, fields, expected",
    [
        (0, "<u2", {}, 0),
        (65535, "<u2", {}, 255),
        (4095, "<u2", dict(BitsStored=12, HighBit=11), 255),
        (1024, "<u2", dict(BitsStored=12, HighBit=11), 64),  # of 4095
        (255, "u1", {}, 255),
        (0, "<i2", {}, 128),  # 32768 of 65535
        (4095, "<u2", dict(BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1"), 0),
        (1024, "<u2", dict(BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-9), 64),
        (0.0, "<f4", {}, 0),
        (1.0, "<f8", {}, 255),
    ],
)
def test_a_frame_of_one_value_is_shown_by_what_its_bits_could_hold(level, dtype, fields, expected):
    assert row(scan([level, level], dtype, **fields)) == [expected] * 2


def test_the_first_view_unless_another_is_asked_for():
    # The first window: ((x - 99.5) / 200 + 0.5) * 255 is 0.64 at 0.
    # The second window is 2000/4001: ((x - 1999.5) / 4000 + 0.5) * 255 is x 0.06375 + 0.03.
    fields = dict(WindowCenter=[100, 2000], WindowWidth=[201, 4001])
    data = scan([0, 100, 1000, 4000], **fields)
    assert row(data) == row(data, view=0) == [1, 128, 255, 255]
    assert row(data, view=1) == [0, 6, 64, 255]
    with pytest.raises(ValueError, match=r"view must be in \[0, 1\] for the bytes, got 2"):
        load_image(data, view=2)
    with pytest.raises(ValueError, match=r"view must be in \[0, 0\] for the bytes, got 1"):
        load_image(scan([0, 1]), view=1)
    # VOI LUTs come before windows.
    data = scan([0, 1], VOILUTSequence=lut(0, 8, [51, 102]), WindowCenter=1, WindowWidth=1)
    assert row(data) == [51, 102]
    assert row(data, view=1) == [0, 255]


def test_an_unknown_function_is_refused(tmp_path):
    data = scan([0, 1], WindowCenter=1, WindowWidth=2, VOILUTFunction="CUBIC")
    assert "VOILUTFunction must be LINEAR, LINEAR_EXACT or SIGMOID, got CUBIC" in refused(
        tmp_path, data
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(RescaleSlope=0, RescaleIntercept=1), "RescaleSlope must not be 0, got 0"),
        (dict(VOILUTSequence=lut(0, 17, [1, 2])), "must have 1 to 16 bits an entry, got 17"),
        (dict(VOILUTSequence=lut(0, 8, [1, 2], count=9)), "LUTData must have 9 entries, got 4"),
        (dict(PhotometricInterpretation="RGB"), "must fit one sample a pixel, got RGB"),
        (dict(Rows=50000, Columns=50000), r"must be at most 67108864, got 50000 x 50000"),
        (dict(BitsAllocated=12), "Bits Allocated"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path, fields, message):
    assert message in refused(tmp_path, scan([0, 1], **fields))


@pytest.mark.parametrize("kind, expected", [("MONOCHROME2", [0, 255]), ("MONOCHROME1", [255, 0])])
def test_where_small_values_are_white(kind, expected):
    assert row(scan([0, 100], PhotometricInterpretation=kind)) == expected


@pytest.mark.parametrize(
    "kind, shape, expected",
    [
        ("MONOCHROME2", "IDENTITY", [0, 64, 255]),
        ("MONOCHROME2", "INVERSE", [255, 191, 0]),  # 191.25
        ("MONOCHROME1", "INVERSE", [255, 191, 0]),  # the two say the same (C.8.11.1)
    ],
)
def test_the_shape_of_presentation(kind, shape, expected):
    fields = dict(PhotometricInterpretation=kind, PresentationLUTShape=shape)
    assert row(scan([0, 25, 100], **fields)) == expected


def test_a_presentation_lut_is_looked_up_by_brightness_not_by_the_picture():
    """Of five entries a brightness of a quarter takes the second, in whatever picture."""
    fields = dict(
        PresentationLUTSequence=lut(0, 12, [4095, 0, 819, 1638, 2457]),
        WindowCenter=200.5,
        WindowWidth=401,
    )
    assert row(scan([100, 200, 300], **fields)) == [0, 51, 102]  # a fifth, two fifths
    assert row(scan([0, 400], **fields)) == [255, 153]


@pytest.mark.parametrize("bits, white", [(8, 255), (12, 4095), (16, 65535)])
def test_a_modality_lut_gives_values_that_a_window_stands_over(bits, white):
    """Below and above the table its end entries hold. The window is exactly 0 ... white."""
    entries = [0, round(white * 0.2), round(white * 0.6), white]
    fields = dict(
        ModalityLUTSequence=lut(10, bits, entries),
        WindowCenter=white / 2,
        WindowWidth=white,
        VOILUTFunction="LINEAR_EXACT",
    )
    pixels = [0, 10, 11, 12, 13, 14, 400]
    assert row(scan(pixels, **fields)) == [0, 0, 51, 153, 255, 255, 255]


@pytest.mark.parametrize(
    "table",
    [
        lut(0, 8, [0, 51, 102, 255]),  # numbers of 16 bits
        lut(0, 8, np.array([0, 51, 102, 255], "u1").tobytes(), data_vr="OW"),  # 8 bits
        lut(0, 8, [0 + 256 * 51, 102 + 256 * 255], count=4),  # two in each number
        lut(0, 12, [0, 819, 1638, 4095]),  # a fifth of 4095 is 819
        lut(0, 10, [0, 205, 409, 1023]),  # 51.1, 101.95
        lut(0, 12, np.array([0, 819, 1638, 4095], "<u2").tobytes(), data_vr="OW", count=4),
        lut(0, 8, [0, 51 * 257, 102 * 257, 65535]),  # more than 8 bits hold: they are of 16
    ],
)
def test_a_voi_lut(table):
    """Entries of every width, and the last entry for what is far beyond the table."""
    assert row(scan([0, 1, 2, 3, 300, 65535], VOILUTSequence=table)) == [0, 51, 102, 255, 255, 255]


def test_the_first_value_of_a_lut_may_be_negative():
    """Written as signed, or as 65535 where values below 0 can be."""
    for table in (lut(-1, 8, [0, 51, 255], vr="SS"), lut(65535, 8, [0, 51, 255])):
        assert row(scan([-9, -1, 0, 1, 2], "<i2", VOILUTSequence=table)) == [0, 0, 51, 255, 255]
        fields = dict(VOILUTSequence=table, RescaleSlope=1, RescaleIntercept=-1024)
        assert row(scan([0, 1023, 1024, 1025], **fields)) == [0, 0, 51, 255]


def test_tables_of_big_endian_files():
    table = lut(0, 12, np.array([0, 819, 4095], ">u2").tobytes(), data_vr="OW", count=3)
    data = scan([0, 1, 2], ">u2", ExplicitVRBigEndian, VOILUTSequence=table)
    assert row(data) == [0, 51, 255]


@pytest.mark.parametrize(
    "dtype, padding, limit, pixels, expected",
    [
        # (x - 0) / 200 * 255 of what is no padding: 63.75, 127.5
        ("<i2", -2000, None, [-2000, 0, 50, 100, 200], [0, 0, 64, 128, 255]),
        ("<i2", -32768, None, [-32768, 0, 50, 100, 200], [0, 0, 64, 128, 255]),
        ("<i2", 63536, None, [-2000, 0, 50, 100, 200], [0, 0, 64, 128, 255]),  # as unsigned
        ("<u2", 65535, None, [65535, 0, 50, 100, 200], [0, 0, 64, 128, 255]),
        ("<u2", 60000, 65000, [59999, 60000, 62000, 65000, 0], [255, 0, 0, 0, 0]),
        ("<u2", 65000, 60000, [59999, 60000, 62000, 65000, 0], [255, 0, 0, 0, 0]),
        ("u1", -2000, None, [48, 0, 255], [48, 0, 255]),  # 8 bits cannot hold it
        ("<u2", 7, None, [7, 7], [0, 0]),  # nothing but padding
    ],
)
def test_padding_is_black_and_makes_no_range(dtype, padding, limit, pixels, expected):
    signed = "SS" if padding < 0 else "US"
    file = pydicom.dcmread(io.BytesIO(scan(pixels, dtype)))
    file.add_new(0x00280120, signed, padding)
    if limit is not None:
        file.add_new(0x00280121, signed, limit)
    assert row(write(file)) == expected


def test_padding_is_black_where_small_values_are_white_and_in_a_window():
    fields = dict(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=4095)
    assert row(scan([4095, 0, 1000, 2000], **fields)) == [0, 255, 128, 0]
    fields = dict(PixelPaddingValue=4095, WindowCenter=1000.5, WindowWidth=2001)
    assert row(scan([4095, 3000, 1000, 0], **fields)) == [0, 255, 128, 0]


@pytest.mark.parametrize("stored, high", [(12, 11), (12, 15), (10, 11)])
@pytest.mark.parametrize("dtype", ["<u2", "<i2"])
def test_bits_around_the_stored_ones_are_not_read(stored, high, dtype):
    """Stored bits end at the high bit; overlays may stand around them (PS3.5 8.1.1)."""
    values = np.array([0, 2 ** (stored - 2), 2 ** (stored - 1), 2**stored - 1])
    values -= 2 ** (stored - 1) if dtype == "<i2" else 0
    below = high + 1 - stored
    inside = (2**stored - 1) << below
    words = ((values << below) & inside) | (0xFFFF & ~inside)
    data = scan(words.astype("<u2").view(dtype), dtype, BitsStored=stored, HighBit=high)
    assert row(data) == [0, 64, 128, 255]  # quarters


@pytest.mark.parametrize(
    "dtype, ends",
    [
        ("i1", (-128, 127)),
        ("u1", (0, 255)),
        ("<i4", (-(2**31), 2**31 - 1)),
        ("<u4", (0, 2**32 - 1)),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_other_sizes_of_pixels(dtype, ends, syntax):
    low, high = ends
    pixels = [low, low + (high - low) // 5, low + 2 * ((high - low) // 5), high]  # fifths are whole
    assert row(scan(pixels, dtype, syntax)) == [0, 51, 102, 255]


@pytest.mark.parametrize("dtype, name", [("<f4", "Float"), ("<f8", "DoubleFloat")])
def test_floats(dtype, name):
    """What is no number is black, and infinite values lie beyond every other."""
    pixels = [-1, -0.5, 1, np.nan, np.inf, -np.inf]
    assert row(scan(pixels, dtype)) == [0, 64, 255, 0, 255, 0]
    window = dict(WindowCenter=0, WindowWidth=2, VOILUTFunction="LINEAR_EXACT")
    assert row(scan(pixels, dtype, **window)) == [0, 64, 255, 0, 255, 0]
    padding = {f"{name}PixelPaddingValue": -9.0, f"{name}PixelPaddingRangeLimit": -7.0}
    assert row(scan([-9, -8, -7, 0, 1, 4], dtype, **padding)) == [0, 0, 0, 0, 64, 255]
    table = lut(0, 8, [10, 20, 30])
    assert row(scan([-np.inf, 0.6, 2, np.inf], dtype, VOILUTSequence=table)) == [10, 20, 30, 30]


def test_functional_groups():
    """Each frame has its slope and window; what a frame lacks stands in the shared groups."""
    frames = np.array([[[0, 100, 200]]] * 3)
    window = dict(WindowCenter=100, WindowWidth=200, VOILUTFunction="LINEAR_EXACT")
    data = scan(
        frames,
        SharedFunctionalGroupsSequence=[
            group(
                FrameVOILUTSequence=window,
                PixelValueTransformationSequence=dict(RescaleSlope=1, RescaleIntercept=0),
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            group(PixelValueTransformationSequence=dict(RescaleSlope=1, RescaleIntercept=100)),
            group(FrameVOILUTSequence=dict(WindowCenter=200, WindowWidth=401)),
            group(),
        ],
        # What is outside of the groups does not hold for a frame that has its own.
        WindowCenter=5,
        WindowWidth=9,
        RescaleSlope=7,
        RescaleIntercept=-9,
    )
    assert row(data, frame=0) == [128, 255, 255]  # 100, 200, 300
    assert row(data, frame=1) == [0, 64, 128]  # LINEAR, for its own group names no function
    assert row(data, frame=2) == [0, 128, 255]


def test_frames():
    data = scan(np.array([[[0, 1]], [[5, 0]], [[1, 2]]]))
    assert row(data) == row(data, frame=1) == [255, 0]  # the middle one
    assert row(data, frame=0) == [0, 255]
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=rf"frame must be in \[0, 2\] .* got {wrong}"):
            load_image(data, frame=wrong)
    with pytest.raises(ValueError, match=r"frame must be in \[0, 0\] .* got 1"):
        load_image(scan([0, 1]), frame=1)


def test_frames_of_single_bits_need_not_begin_at_a_byte():
    bits = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1]])
    data = scan(
        np.packbits(bits, bitorder="little"),
        "u1",
        Rows=1,
        Columns=3,
        NumberOfFrames=4,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
    )
    for frame, expected in enumerate(bits * 255):
        assert row(data, frame=frame) == expected.tolist()


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize("shape", ["no preamble", "no meta header"])
def test_files_without_a_header(syntax, shape):
    dtype = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    data = scan([100, 120, 140, 200], dtype, syntax, WindowCenter=200, WindowWidth=401)
    # The group's length stands behind the tag (4 bytes), its VR and that one's length (4).
    end = META + 12 + int.from_bytes(data[META + 8 : META + 12], "little")
    assert row(data[META if shape == "no preamble" else end :]) == [64, 77, 90, 128]


def test_compressed_pixels_without_a_header_are_refused(tmp_path):
    data = (FILES / "MR_small_RLE.dcm").read_bytes()
    end = META + 12 + int.from_bytes(data[META + 8 : META + 12], "little")
    assert "TransferSyntaxUID must be given for compressed pixels" in refused(tmp_path, data[end:])


def test_a_damaged_header_is_told_from_no_header(tmp_path):
    data = bytearray(scan([1, 2]))
    data[META + 4 : META + 6] = b"??"  # the first element's VR
    assert "must be an image that can be decoded" in refused(tmp_path, bytes(data))
    assert "which holds neither" in refused(tmp_path, bytes(data[META:]))
