"""One frame of a DICOM file as brightness, 0 (black) to 1 (white), by the pipeline of PS3.3.

Grey values pass what the standard has them pass, in its order:

    stored value
    modality LUT, or slope and intercept         -> value with a unit, Hounsfield for CT
    VOI LUT, or window                           -> brightness
    presentation LUT or its shape, MONOCHROME1   -> brightness as shown

pydicom decodes the pixels, and gives YBR as RGB. The tables and windows are our own: pydicom's
refuse windows narrower than 1 and modality LUTs of 12 bits, wrap where a value lies 256 beyond a
table of 8 bits, and scale what a presentation LUT is given by the picture's own extremes.
"""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zlib
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

# What pixel data may be called, with the name under which its padding stands.
PIXELS = {
    "PixelData": "PixelPadding",
    "FloatPixelData": "FloatPixelPadding",
    "DoubleFloatPixelData": "DoubleFloatPixelPadding",
}

# Larger frames are refused before memory is taken for them, as Pillow refuses other images: 2**26
# pixels take 0.5 GB as float64. A large mammogram has 2**24.
MAX_PIXELS = 2**26
# So are deflated files of more data, of which pydicom would first read every element: 500 slices of
# 512 x 512 pixels of 16 bits.
MAX_INFLATED = 2**28
META_BYTES = 4096  # the header, which names the encoding, is shorter

# Who decodes in this process. All other encodings are left to pydicom's other decoders in a process
# of their own, half a second each: GDCM, which alone knows lossless JPEG and JPEG-LS, ends the
# process where a stream is damaged.
PLUGINS = {
    RLELossless: "pydicom",
    JPEGBaseline8Bit: "pillow",
    JPEG2000: "pillow",
    JPEG2000Lossless: "pillow",
}

# What such a process is given of a dataset, as a pickle, and what it does.
NEEDED = (
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns"
    " BitsAllocated BitsStored HighBit PixelRepresentation PixelData ExtendedOffsetTable"
    " ExtendedOffsetTableLengths"
).split()
DECODE = """
import io, json, pickle, sys, numpy
from pydicom.pixels import get_decoder
dataset, syntax, frame = pickle.load(sys.stdin.buffer)
try:
    pixels, properties = get_decoder(syntax).as_array(dataset, index=frame)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps(properties["photometric_interpretation"]), flush=True)
whole = io.BytesIO()  # numpy writes arrays to a file by its position, which a pipe has not
numpy.save(whole, pixels, allow_pickle=False)
sys.stdout.buffer.write(whole.getbuffer())
"""
DECODE_SECONDS = 120


class Window(NamedTuple):
    """A window over values: their middle, their width, and the function that PS3.3 defines."""

    centre: float
    width: float
    function: str


class Table(NamedTuple):
    """A lookup table: entries in [0, 1], the value that gets the first one, bits of an entry."""

    entries: np.ndarray
    first: int
    bits: int


def read(data: bytes) -> pydicom.Dataset | None:
    """Read DICOM with pixels, or None where the bytes are something else.

    A file may lack preamble and meta header; then its encoding says how its pixels lie.

    Raises:
        Exception: anything that pydicom meets in a damaged file.
    """
    _check_deflated(data)
    if data[128:132] == b"DICM":
        dataset = pydicom.dcmread(io.BytesIO(data))
    else:
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        except Exception:  # what is no DICOM at all makes pydicom fail in any way
            return None
    if not any(keyword in dataset for keyword in PIXELS):
        return None
    if "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise InvalidDicomError(
                "TransferSyntaxUID must be given for compressed pixels, got none"
            )
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check_deflated(data: bytes) -> None:
    """Refuse a deflated file that is a thousand times as large as it looks."""
    start = 132 if data[128:132] == b"DICM" else 0
    if DeflatedExplicitVRLittleEndian.encode() not in data[start : start + META_BYTES]:
        return
    # Element (0002,0000) comes first and says where the others of the header end (PS3.10 7.1).
    if data[start : start + 8] != b"\x02\0\0\0UL\x04\0":
        raise ValueError("FileMetaInformationGroupLength must be given where data are deflated")
    end = start + 12 + int.from_bytes(data[start + 8 : start + 12], "little")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(inflate.decompress(data[end:], MAX_INFLATED + 1)) > MAX_INFLATED:
        raise ValueError(f"deflated data must have at most {MAX_INFLATED} bytes, got more")


def frames(dataset: pydicom.Dataset) -> int:
    """The number of frames."""
    return int(dataset.get("NumberOfFrames") or 1)


def views(dataset: pydicom.Dataset, frame: int) -> list[pydicom.Dataset | Window]:
    """The views that a file offers of a frame's grey values: its VOI LUTs, then its windows.

    A window without centre, or whose width is not above 0, is none.
    """
    if not str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME"):
        return []
    holders = _holders(dataset, frame)
    luts = _holder(holders, "VOILUTSequence").get("VOILUTSequence") or []
    holder = _holder(holders, "WindowCenter")
    function = str(holder.get("VOILUTFunction") or "LINEAR").strip().upper()
    windows = zip(_numbers(holder, "WindowCenter"), _numbers(holder, "WindowWidth"), strict=False)
    return [
        *(lut for lut in luts if "LUTDescriptor" in lut and "LUTData" in lut),
        *(Window(centre, width, function) for centre, width in windows if width > 0),
    ]


def brightness(dataset: pydicom.Dataset, frame: int, view: int = 0) -> np.ndarray:
    """Decode a frame and show it: float64 in [0, 1], (height, width) or (height, width, 3).

    Without a view, the whole range of the values is shown. Padding takes no part in it, and is
    black in every case, as is what is not a number. A frame of one value has no range: it is shown
    by the range that its bits could hold, floats by [0, 1].

    Args:
        dataset: as `read` gives it.
        frame: counted from 0.
        view: an index into `views`; 0 where there is none.
    Raises:
        Exception: anything that pydicom meets in a damaged file, and ValueError for what it holds
            and we cannot show.
    """
    if int(dataset.Rows) * int(dataset.Columns) > MAX_PIXELS:
        raise ValueError(
            f"Rows x Columns must be at most {MAX_PIXELS}, got {dataset.Rows} x {dataset.Columns}"
        )
    raw, stored, kind, bits = _decode(dataset, frame)
    if stored.ndim == 3:
        # The decoder gives the colours of JPEG 2000's own transforms as RGB.
        if kind not in ("RGB", "YBR_ICT", "YBR_RCT"):
            raise ValueError(f"PhotometricInterpretation must be RGB or convertible, got {kind}")
        return np.clip(stored / (2.0**bits - 1), 0, 1)
    if kind == "PALETTE COLOR":
        return _palette(dataset, stored)[0]
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"PhotometricInterpretation must fit one sample a pixel, got {kind}")

    holders = _holders(dataset, frame)
    values, bounds = _modality(dataset, _holder(holders, "RescaleSlope"), stored, bits)
    hidden = _padding(dataset, raw) | _padding(dataset, stored) | np.isnan(values)
    offered = views(dataset, frame)
    if not offered:
        grey = full_range(values, ~hidden, bounds)
    elif isinstance(chosen := offered[view], Window):
        grey = _windowed(values, chosen)
    else:
        table = _table(dataset, chosen.LUTDescriptor, chosen["LUTData"].value, bounds[0] < 0)
        grey = _look_up(table, values)

    if luts := dataset.get("PresentationLUTSequence"):
        # Its entries are brightness as shown, so that nothing is left to invert.
        table = _table(dataset, luts[0].LUTDescriptor, luts[0]["LUTData"].value, signed=False)
        grey = _look_up(table._replace(first=0), grey * (len(table.entries) - 1))
    elif kind == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        # Images of MONOCHROME1 say INVERSE as well (C.8.11.1): it is one inversion, not two.
        grey = 1 - grey
    grey = np.where(hidden, 0.0, grey)
    if dataset.get("PixelPresentation") in ("COLOR", "MIXED") and (
        "RedPaletteColorLookupTableDescriptor" in dataset
    ):
        # A supplemental palette colours the stored values from its first entry on (C.8.16.2.1.1.1).
        colour, first = _palette(dataset, stored)
        return np.where((stored >= first)[:, :, None], colour, grey[:, :, None])
    return grey


def full_range(
    values: np.ndarray, shown: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """Spread the finite values that are shown over [0, 1], least to greatest.

    Args:
        values: of any range, (height, width).
        shown: bool, (height, width): the values that make the range.
        bounds: the range where all of these are one value.
    """
    finite = values[shown & np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else bounds
    if low == high:
        low, high = bounds
    # Halved until high - low is a number that a float can hold, which rounds nothing.
    exponent = np.frexp(max(abs(low), abs(high)))[1]
    values, low, high = (np.ldexp(np.float64(part), -exponent) for part in (values, low, high))
    return np.clip((values - low) / (high - low), 0, 1)


def _decode(dataset: pydicom.Dataset, frame: int) -> tuple[np.ndarray, np.ndarray, str, int]:
    """Decode a frame.

    Returns:
        raw: the pixels with the bits around the stored ones, where the encoding keeps those.
        stored: the stored bits alone.
        kind: the photometric interpretation of stored, in which YBR has become RGB.
        bits: the number of stored bits.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    compressed = syntax.is_encapsulated
    keeps_all_bits = not compressed or syntax == RLELossless
    # Frames of single bits need not begin at a byte, which pydicom misses for very small ones.
    packed = not compressed and dataset.get("BitsAllocated") == 1
    # Pillow reads JPEG 2000 of more than 8 bits in grey alone.
    deep = dataset.get("SamplesPerPixel") != 1 and dataset.get("BitsStored") != 8
    if compressed and (syntax not in PLUGINS or (deep and syntax != RLELossless)):
        raw, kind = _decode_apart(dataset, frame)
    else:
        raw, properties = get_decoder(syntax).as_array(
            dataset,
            index=None if packed else frame,
            decoding_plugin=PLUGINS.get(syntax, ""),
            # We do it below. pydicom's annotation takes an option for all of the options.
            correct_unused_bits=not keeps_all_bits,  # type: ignore[arg-type]
        )
        kind = str(properties["photometric_interpretation"])
    if packed and frames(dataset) > 1:
        raw = raw[frame]
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if raw.dtype.kind == "f":
        return raw, raw, kind, 0
    allocated, bits = 8 * raw.dtype.itemsize, int(dataset.BitsStored)
    above = allocated - max(int(dataset.get("HighBit") or 0) + 1, bits)
    if not keeps_all_bits or dataset.BitsAllocated == 1:
        return raw, raw, kind, bits
    # The bits around the stored ones may hold anything, overlays for one (PS3.5 8.1.1).
    return raw, (raw << above) >> (allocated - bits), kind, bits


def _decode_apart(dataset: pydicom.Dataset, frame: int) -> tuple[np.ndarray, str]:
    """Decode a frame in another process: the pixels, and their photometric interpretation."""
    part = pydicom.Dataset()
    for keyword in NEEDED:
        if keyword in dataset:
            part[keyword] = dataset[keyword]
    part.file_meta = dataset.file_meta
    done = subprocess.run(
        [sys.executable, "-c", DECODE],
        input=pickle.dumps((part, str(dataset.file_meta.TransferSyntaxUID), frame)),
        capture_output=True,
        timeout=DECODE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace")
        raise ValueError(f"pixels must be undamaged and of a known encoding: {words}")
    output = io.BytesIO(done.stdout)
    kind = json.loads(output.readline())
    return np.load(output, allow_pickle=False), kind


def _modality(
    dataset: pydicom.Dataset, holder: pydicom.Dataset, stored: np.ndarray, bits: int
) -> tuple[np.ndarray, tuple[float, float]]:
    """Give stored values their unit: float64, and the least and greatest that there could be."""
    if stored.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif stored.dtype.kind == "i":
        low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    else:
        low, high = 0.0, 2.0**bits - 1
    if luts := dataset.get("ModalityLUTSequence"):
        table = _table(dataset, luts[0].LUTDescriptor, luts[0]["LUTData"].value, low < 0)
        top = 2.0**table.bits - 1
        return np.rint(_look_up(table, stored) * top), (0.0, top)
    slope = (_numbers(holder, "RescaleSlope") or [1.0])[0]
    intercept = (_numbers(holder, "RescaleIntercept") or [0.0])[0]
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if ends[0] == ends[1]:
        raise ValueError(f"RescaleSlope must not be 0, got {slope:g}")
    return stored.astype(np.float64) * slope + intercept, (ends[0], ends[1])


def _windowed(values: np.ndarray, window: Window) -> np.ndarray:
    """Show a window as C.11.2.1.2 and C.11.2.1.3 have it: 0 below, 1 above."""
    centre, width, function = window
    if function == "SIGMOID":
        # Beyond 50 the exponential is without effect; it must not overflow.
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"VOILUTFunction must be LINEAR, LINEAR_EXACT or SIGMOID, got {function}")
    # LINEAR is defined for a width of 1 or more. Files with values of small fractions have less,
    # and can only mean LINEAR_EXACT.
    if function == "LINEAR" and width >= 1:
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Which pixels fill the frame around the image (C.7.5.1.1.2), as bool."""
    name = next(padding for pixels, padding in PIXELS.items() if pixels in dataset)
    ends = [dataset.get(name + "Value"), dataset.get(name + "RangeLimit")]
    if ends[0] is None:
        return np.zeros(stored.shape, bool)
    size = 8 * stored.dtype.itemsize
    if stored.dtype.kind != "f" and not -(2 ** (size - 1)) <= ends[0] < 2**size:
        return np.zeros(stored.shape, bool)  # no pixel can have it
    # The value may have been written as unsigned where the pixels are signed, or the other way.
    found = [np.asarray(end).astype(stored.dtype) for end in ends if end is not None]
    return (stored >= min(found)) & (stored <= max(found))


def _palette(dataset: pydicom.Dataset, stored: np.ndarray) -> tuple[np.ndarray, int]:
    """The colours of stored values, (height, width, 3), and the first value that has one."""
    signed = stored.dtype.kind == "i"
    descriptor = dataset.RedPaletteColorLookupTableDescriptor
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        count, first = int(descriptor[0]) or 2**16, int(descriptor[1])
        entries = apply_color_lut(first + np.arange(count), dataset)
        top = np.iinfo(entries.dtype).max
        tables = [Table(entries[:, i] / top, first, 0) for i in range(3)]
    else:
        tables = [
            _table(
                dataset,
                descriptor,
                dataset[f"{name}PaletteColorLookupTableData"].value,
                signed,
            )
            for name in ("Red", "Green", "Blue")
        ]
    colour = np.stack([_look_up(table, stored) for table in tables], -1)
    return colour, tables[0].first


def _table(dataset: pydicom.Dataset, descriptor, data, signed: bool) -> Table:
    """Read a lookup table as C.11.1.1 describes it.

    Args:
        dataset: tells the order of bytes.
        descriptor: number of entries (0 is 65536), first value, bits of an entry.
        data: the entries as bytes, or as numbers of 16 bits. Entries of 8 bits stand alone or, in
            many files, in 16 bits.
        signed: whether values below 0 are looked up; it decides what a first value means that the
            file writes as unsigned.
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count & 0xFFFF or 2**16
    if signed and first >= 2**15:
        first -= 2**16
    if not 1 <= bits <= 16:
        raise ValueError(f"LUTDescriptor must have 1 to 16 bits an entry, got {bits}")
    if isinstance(data, bytes):
        little = dataset.file_meta.TransferSyntaxUID.is_little_endian
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    entries = words if len(words) >= count else words.astype("<u2").view("u1")
    if len(entries) < count:
        raise ValueError(f"LUTData must have {count} entries, got {len(entries)}")
    entries = entries[:count]
    # Entries that the bits cannot hold are scaled to all 16, whatever the descriptor says.
    if entries.max() >= 2**bits:
        bits = 16
    return Table(entries / (2.0**bits - 1), first, bits)


def _look_up(table: Table, values: np.ndarray) -> np.ndarray:
    """Entries of values; those beyond either end of the table get its last there."""
    index = np.rint(np.nan_to_num(values.astype(np.float64))) - table.first
    return table.entries[np.clip(index, 0, len(table.entries) - 1).astype(np.intp)]


def _holders(dataset: pydicom.Dataset, frame: int) -> list[pydicom.Dataset]:
    """Where a frame's attributes may stand: its functional groups, the shared ones, the file."""
    found: list[pydicom.Dataset] = []
    for name, number in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        for group in (dataset.get(name) or [])[number : number + 1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                found += (group.get(macro) or [])[:1]
    return [*found, dataset]


def _holder(holders: list[pydicom.Dataset], keyword: str) -> pydicom.Dataset:
    """The first that has an attribute, or else the file."""
    return next((holder for holder in holders if keyword in holder), holders[-1])


def _numbers(holder: pydicom.Dataset, keyword: str) -> list[float]:
    """The numbers of an attribute that may be absent, empty, one or many."""
    value = holder.get(keyword)
    if value is None or value == "":
        return []
    numbers = [float(number) for number in np.atleast_1d(np.asarray(value, object))]
    if not np.isfinite(numbers).all():
        raise ValueError(f"{keyword} must be finite, got {value}")
    return numbers
