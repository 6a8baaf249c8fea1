"""Read images of any kind that medical questions come with, DICOM included, as RGB pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cmimtl.data import dicom
from cmimtl.files import read_file

# Nothing else is opened, whatever a file is named: Pillow starts another program for some formats.
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "GIF", "BMP", "WEBP", "PPM")

# Detectors and converters have so many bits. Integers of 16 bits seldom use all of these.
DEPTHS = (8, 10, 12, 14, 16)


def load_image(source: object, *, frame: int | None = None, view: int = 0) -> Image.Image:
    """Read any image as an 8-bit RGB picture.

    Grey values of DICOM are shown as the file says; see `cmimtl.data.dicom`. Those of other images
    have no window:

        8 bits          as they are
        16 or 32 bits   0 is black; white is the largest value of 8, 10, 12, 14 or 16 bits, the
                        fewest that hold all values. Where a value is negative or needs more bits,
                        the range of the values is shown.
        floats          as they are where they lie in [0, 1]; else the range of the values of a
                        file or PIL image is shown, and what is not a number is black

    What is transparent becomes black, the background of radiographs. A picture is turned as its
    EXIF data say.

    Args:
        source: a path (str or os.PathLike) of a DICOM, PNG, JPEG, JPEG 2000, TIFF, GIF, BMP, WebP
            or PPM file, told apart by content; bytes of such a file; a PIL image; a numpy array or
            torch tensor (height, width), (height, width, 1), (height, width, 3) of uint8, uint16
            or floats in [0, 1].
        frame: which frame or page of several, counted from 0; None takes the middle one, and of a
            JPEG with further pictures (MPO) the first, which is the photograph.
        view: which of a DICOM file's views, its VOI LUTs and then its windows, counted from 0.
    Raises:
        OSError: a file cannot be opened.
        ValueError: source is not an image, is damaged or too large, or an array of another kind
            than above; frame or view is not there. The message says what it got.
    """
    if isinstance(source, (str, os.PathLike)):
        data = read_file("load_image", "source must be an image file", source)
        return _from_bytes(data, frame, view, str(source))
    if isinstance(source, (bytes, bytearray)):
        return _from_bytes(bytes(source), frame, view, "the bytes")
    _chosen("view", view, 1, "what is not DICOM")
    if isinstance(source, Image.Image):
        return _picture(source, frame, "the image")
    if hasattr(source, "detach"):  # a torch tensor
        tensor: Any = source
        with _decoding("the tensor"):
            tensor = tensor.detach().cpu()
            # numpy has no bfloat16
            source = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if isinstance(source, np.ndarray):
        _chosen("frame", frame, 1, "the array")
        return _from_array(source)
    raise ValueError(
        "load_image: source must be a path, bytes, a PIL image, an array or a tensor,"
        f" got {type(source).__name__}."
    )


def _from_bytes(data: bytes, frame: int | None, view: int, name: str) -> Image.Image:
    # A DICOM file has a preamble of 128 bytes and then "DICM". Files from before the standard have
    # neither.
    if data[128:132] != b"DICM":
        try:
            with _decoding(name):
                image = Image.open(io.BytesIO(data), formats=FORMATS)
        except _NoImage:
            pass
        else:
            _chosen("view", view, 1, name)
            return _picture(image, frame, name)
    with _decoding(name):
        dataset = dicom.read(data)
        frames = 0 if dataset is None else dicom.frames(dataset)
    if dataset is None:
        raise ValueError(
            "load_image: source must hold an image or DICOM with pixels,"
            f" got {name}, which holds neither."
        )
    frame = _chosen("frame", frame, frames, name)
    with _decoding(name):
        views = dicom.views(dataset, frame)
    _chosen("view", view, max(1, len(views)), name)
    with _decoding(name):
        return _from_unit(dicom.brightness(dataset, frame, view))


class _NoImage(Exception):
    """The bytes are in none of the formats that Pillow may open."""


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever decoders raise of damaged files into one line that names the file.

    Pillow, pydicom and the libraries below them raise nearly everything: TypeError, SyntaxError,
    IndexError, struct.error, NotImplementedError, OSError, DecompressionBombError among them.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise _NoImage from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"load_image: source must be an image that can be decoded, got {name}: {reason}"
        ) from error


def _picture(image: Image.Image, frame: int | None, name: str) -> Image.Image:
    with _decoding(name):
        frames = getattr(image, "n_frames", 1)
        before = image.tell()
    if frame is None and image.format == "MPO":
        frame = 0
    frame = _chosen("frame", frame, frames, name)
    with _decoding(name):
        image.seek(frame)
        try:
            return _rgb(image)
        finally:
            image.seek(before)  # the caller's image is left as it was


def _rgb(image: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if turned.mode == "F":
        values = np.asarray(turned, np.float64)
        number = ~np.isnan(values)
        shown = values[number]
        if shown.size and not (shown.min() >= 0 and shown.max() <= 1):
            values = dicom.full_range(values, number)
        return _from_unit(np.where(number, values, 0))
    # Tag 339 of TIFF tells whether numbers are signed (2) or not (1, and where it is missing).
    # Pillow takes 8 bits for unsigned and 32 bits for signed all the same.
    tags = getattr(image, "tag_v2", None)
    signed = None if tags is None else bool(np.max(tags.get(339, 1)) == 2)
    if turned.mode == "L" and signed:
        return _from_integers(np.asarray(turned).view(np.int8))
    if turned.mode.startswith("I"):
        values = np.asarray(turned)
        unsigned = values.dtype == np.int32 and signed is False
        return _from_integers(values.view(np.uint32) if unsigned else values)
    if "A" in turned.mode or "a" in turned.mode or "transparency" in turned.info:
        rgba = turned.convert("RGBA")
        black = Image.new("RGBA", rgba.size, "black")
        return Image.alpha_composite(black, rgba).convert("RGB")
    return turned.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise ValueError(
            "load_image: an array must have shape (height, width), (height, width, 1) or (height,"
            f" width, 3), got {array.shape}."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    if array.dtype == np.uint16:
        return _from_integers(array)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"load_image: an array of floats must lie in [0, 1], got [{low:g}, {high:g}]."
            )
        return _from_unit(array)
    raise ValueError(f"load_image: an array must be uint8, uint16 or of floats, got {array.dtype}.")


def _from_integers(values: np.ndarray) -> Image.Image:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < 2 ** DEPTHS[-1]:
        depth = next(depth for depth in DEPTHS if high < 2**depth)
        return _from_unit(values / (2.0**depth - 1))
    bounds = (min(low, 0), max(high, 1))
    return _from_unit(dicom.full_range(values.astype(np.float64), np.isfinite(values), bounds))


def _from_unit(array: np.ndarray) -> Image.Image:
    """Brightness in [0, 1] as 8 bits."""
    return Image.fromarray(np.rint(array.astype(np.float64) * 255).astype(np.uint8)).convert("RGB")


def _chosen(argument: str, number: int | None, count: int, name: str) -> int:
    """Check an argument that counts from 0 among so many; None is the middle."""
    if number is None:
        return count // 2
    if not isinstance(number, (int, np.integer)) or not 0 <= number < count:
        raise ValueError(
            f"load_image: {argument} must be in [0, {count - 1}] for {name}, got {number}."
        )
    return int(number)
