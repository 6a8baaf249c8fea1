"""Read images of any kind that medical questions come with, DICOM included, as RGB pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space


def load_image(source: object, *, frame: int | None = None) -> Image.Image:
    """Read any image as an 8-bit RGB picture.

    Args:
        source: a path (str or os.PathLike) of a PNG, JPEG, … or DICOM file, told apart by content;
            bytes of such a file; a PIL image; a numpy array or torch tensor (height, width),
            (height, width, 1), (height, width, 3) of uint8, uint16 or floats in [0, 1].
        frame: which frame of a multi-frame DICOM file or image, counted from 0; None takes the
            middle one.
    Raises:
        OSError: a file cannot be opened.
        ValueError: source is not an image, or an array of another kind than above; the message
            says what it got.
    """
    if isinstance(source, Image.Image):
        return _picture(source, frame, "the image")
    if isinstance(source, (bytes, bytearray)):
        return _from_bytes(bytes(source), frame, "the bytes")
    if isinstance(source, (str, os.PathLike)):
        return _from_bytes(Path(source).read_bytes(), frame, str(source))
    if hasattr(source, "detach"):  # a torch tensor
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ValueError(
        "load_image: source must be a path, bytes, a PIL image, an array or a tensor,"
        f" got {type(source).__name__}."
    )


def _from_bytes(data: bytes, frame: int | None, name: str) -> Image.Image:
    # A DICOM file has a preamble of 128 bytes and then "DICM". Files from before the standard have
    # neither.
    if data[128:132] != b"DICM":
        try:
            return _picture(Image.open(io.BytesIO(data)), frame, name)
        except UnidentifiedImageError:
            pass
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        has_pixels = "PixelData" in dataset
    except (InvalidDicomError, AttributeError, KeyError):
        has_pixels = False
    if not has_pixels:
        raise ValueError(
            "load_image: source must hold an image or DICOM with pixels,"
            f" got {name}, which holds neither."
        )
    return _from_dicom(dataset, frame, name)


def _picture(image: Image.Image, frame: int | None, name: str) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 or frame is not None:
        image.seek(_frame(frame, frames, name))
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return _from_array(np.asarray(image).astype(np.uint16))
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # What is transparent becomes black, which is the background of radiographs.
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, "black")
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise ValueError(
            "load_image: an array must have shape (height, width), (height, width, 1) or (height,"
            f" width, 3), got {array.shape}."
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    if array.dtype == np.uint16:
        return _from_unit(array / np.float32(65535))
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"load_image: an array of floats must lie in [0, 1], got [{low:g}, {high:g}]."
            )
        return _from_unit(array)
    raise ValueError(f"load_image: an array must be uint8, uint16 or of floats, got {array.dtype}.")


def _from_unit(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(array.astype(np.float32) * 255).astype(np.uint8)).convert("RGB")


def _from_dicom(dataset: pydicom.Dataset, frame: int | None, name: str) -> Image.Image:
    try:
        pixels = dataset.pixel_array
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"load_image: source must be DICOM that pydicom can decode, got {name}: {error}"
        ) from error
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        pixels = pixels[_frame(frame, frames, name)]
    elif frame is not None:
        _frame(frame, frames, name)
    kind = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    elif kind.startswith("YBR") and pixels.ndim == 3:
        # pydicom's decoders give compressed colour as RGB already.
        if not dataset.file_meta.TransferSyntaxUID.is_compressed:
            pixels = convert_color_space(pixels, kind, "RGB")
    elif pixels.ndim == 2:
        return _from_grey(dataset, pixels, inverted=kind == "MONOCHROME1")
    if pixels.dtype != np.uint8:
        pixels = (pixels / np.iinfo(pixels.dtype).max * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _from_grey(dataset: pydicom.Dataset, pixels: np.ndarray, *, inverted: bool) -> Image.Image:
    """Scale grey values by the file's rescale and its first window.

    Where the file has no window, its whole range of values is shown.
    """
    pixels = apply_modality_lut(pixels, dataset)
    if "WindowWidth" in dataset or "VOILUTSequence" in dataset:
        pixels = apply_voi_lut(pixels, dataset, index=0)
    pixels = pixels.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    unit = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
    return _from_unit(1 - unit if inverted else unit)


def _frame(frame: int | None, frames: int, name: str) -> int:
    if frame is None:
        return frames // 2
    if not 0 <= frame < frames:
        raise ValueError(f"load_image: frame must be in [0, {frames - 1}] for {name}, got {frame}.")
    return frame
