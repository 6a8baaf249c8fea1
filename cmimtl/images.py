"""Reading images of any kind that medical questions come with, DICOM included, as RGB pictures."""

from __future__ import annotations

from PIL import Image


def load_image(source: object, *, frame: int | None = None) -> Image.Image:
    """Give any image as an 8-bit RGB picture.

    Args:
        source: a path (str or os.PathLike) of a PNG, JPEG, … or DICOM file, told apart by content;
            bytes of such a file; a PIL image; a numpy array or torch tensor (height, width),
            (height, width, 1), (height, width, 3) of uint8, uint16 or floats in [0, 1].
        frame: of a multi-frame DICOM file or image, counted from 0; None takes the middle one.
    """
    raise NotImplementedError
