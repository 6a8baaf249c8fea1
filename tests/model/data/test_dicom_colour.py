"""Colours as PS3.3 has them. Expected values are worked out by hand from its equations."""

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from cmimtl.data.images import load_image
from tests.model.data.test_images import encoded, refused, row
from tests.model.data.written_dicom import scan


def coloured(pixels, kind, syntax=ExplicitVRLittleEndian, *, planar=0, **fields) -> bytes:
    """A file of colours, (rows, columns, 3), uint8 or uint16."""
    stored = pixels.transpose(2, 0, 1) if planar else pixels
    fields = dict(PhotometricInterpretation=kind, PlanarConfiguration=planar) | fields
    fields = dict(SamplesPerPixel=3, Rows=pixels.shape[0], Columns=pixels.shape[1]) | fields
    return scan(stored.reshape(1, -1), pixels.dtype, syntax, **fields)


# Red, green, blue and a brown in YBR_FULL by C.7.6.3.1.2:
#     Y  =  0.2990 R + 0.5870 G + 0.1140 B
#     CB = -0.1687 R - 0.3313 G + 0.5000 B + 128
#     CR =  0.5000 R - 0.4187 G - 0.0813 B + 128
RGB = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 150, 100]]])
YBR = np.array([[[76, 85, 255], [150, 44, 21]], [[29, 255, 107], [159, 95, 157]]], np.uint8)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("planar", [0, 1])
def test_native_ybr_is_converted_once(syntax, planar):
    shown = np.asarray(load_image(coloured(YBR, "YBR_FULL", syntax, planar=planar)))
    np.testing.assert_allclose(shown.astype(int), RGB, atol=2)


def test_native_ybr_422():
    """Two pixels share their CB and CR: Y1 Y2 CB CR."""
    words = np.array([[[76, 76, 85], [255, 29, 29], [255, 107, 0]]], np.uint8).reshape(-1)[:8]
    data = coloured(YBR[:1].repeat(2, 1), "YBR_FULL_422", PixelData=words.tobytes())
    shown = np.asarray(load_image(data)).astype(int)
    np.testing.assert_allclose(shown[0], RGB[[0, 0, 1, 1], [0, 0, 0, 0]], atol=2)


def test_compressed_ybr_is_converted_once():
    picture = Image.fromarray(RGB.astype(np.uint8).repeat(16, 0).repeat(16, 1))
    pixels = encapsulate([encoded(picture, "JPEG")])
    data = coloured(
        YBR.repeat(16, 0).repeat(16, 1), "YBR_FULL_422", JPEGBaseline8Bit, PixelData=pixels
    )
    shown = np.asarray(load_image(data))[8::16, 8::16].astype(int)
    np.testing.assert_allclose(shown, RGB, atol=6)


@pytest.mark.parametrize(
    "dtype, bits, scale", [("u1", 8, 1), ("<u2", 16, 257), ("<u2", 12, 4095 / 255)]
)
@pytest.mark.parametrize("planar", [0, 1])
def test_colour_has_the_depth_of_its_stored_bits(dtype, bits, scale, planar):
    pixels = np.rint(RGB * scale).astype(dtype)
    data = coloured(pixels, "RGB", planar=planar, BitsStored=bits, HighBit=bits - 1)
    np.testing.assert_array_equal(np.asarray(load_image(data)), RGB)


def test_a_kind_of_colour_that_is_not_known_is_refused(tmp_path):
    data = coloured(YBR, "YBR_PARTIAL_422")
    assert "PhotometricInterpretation" in refused(tmp_path, data)


def palette(bits, tables, *, first=0, segmented=False, count=None) -> dict:
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    fields: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(names, tables, strict=True):
        fields[f"{name}Descriptor"] = [len(table) if count is None else count, first, bits]
        fields[f"{'Segmented' if segmented else ''}{name}Data"] = table.tobytes()
    return fields


COLOURS = np.array([[0, 255, 51], [10, 20, 30], [255, 0, 102]])  # red, green, blue tables


@pytest.mark.parametrize(
    "bits, dtype, scale",
    [(16, "<u2", 257), (8, "<u2", 1), (8, "<u2", 257)],
    ids=["16 bits", "8 bits in 16", "8 bits, yet 16"],
)
def test_palettes(bits, dtype, scale):
    fields = palette(bits, COLOURS.astype(dtype) * scale, first=5)
    shown = np.asarray(load_image(scan([0, 5, 6, 7, 255], "u1", **fields)))
    first, middle, last = COLOURS.T.tolist()
    assert shown.tolist() == [[first, first, middle, last, last]]


def test_a_palette_of_eight_bits():
    tables = np.zeros((3, 4), np.uint8)
    tables[:, :3] = COLOURS
    shown = np.asarray(load_image(scan([0, 1, 2, 700], "<u2", **palette(8, tables))))
    assert shown.tolist() == [[*COLOURS.T.tolist(), [0, 0, 0]]]


def test_a_segmented_palette():
    """C.7.9.2: a discrete segment (0) of two entries, then a linear one (1) of four up to 250."""
    words = np.array([0, 2, 10 * 257, 50 * 257, 1, 4, 250 * 257], "<u2")
    fields = palette(16, [words] * 3, segmented=True, count=6)
    # From 50 to 250 in four steps of 50: 100, 150, 200, 250.
    assert row(scan([0, 1, 2, 3, 4, 5, 9], "u1", **fields)) == [10, 50, 100, 150, 200, 250, 250]


def test_a_supplemental_palette_colours_what_lies_above_the_grey_values():
    fields = palette(16, COLOURS.astype("<u2") * 257, first=4096)
    fields |= dict(PhotometricInterpretation="MONOCHROME2", PixelPresentation="COLOR")
    fields |= dict(WindowCenter=200, WindowWidth=401)
    shown = np.asarray(load_image(scan([100, 200, 4096, 4098], **fields)))[0]
    assert shown.tolist() == [[64] * 3, [128] * 3, COLOURS[:, 0].tolist(), COLOURS[:, 2].tolist()]
