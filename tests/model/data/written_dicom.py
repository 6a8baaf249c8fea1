"""DICOM files that the tests write, value by value."""

import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
META = 132  # bytes of the preamble and "DICM"


def write(file: Dataset, syntax=ExplicitVRLittleEndian) -> bytes:
    """A dataset as the bytes of a file."""
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def scan(pixels, dtype="<u2", syntax=ExplicitVRLittleEndian, **fields) -> bytes:
    """A DICOM file of grey pixels: (columns,), (rows, columns) or (frames, rows, columns)."""
    pixels = np.atleast_2d(np.asarray(pixels)).astype(dtype)
    file = Dataset()
    file.Rows, file.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    if pixels.dtype.kind == "f":
        file.add_new(*((0x7FE00008, "OF") if bits == 32 else (0x7FE00009, "OD")), pixels.tobytes())
    else:
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        file.add_new(0x7FE00010, "OW" if bits > 8 else "OB", pixels.tobytes())
    for name, value in fields.items():
        setattr(file, name, value)
    return write(file, syntax)


def lut(first, bits, entries, *, vr="US", data_vr="US", count=None) -> list[Dataset]:
    """A sequence of one lookup table; entries are numbers, or bytes with data_vr OW."""
    item = Dataset()
    item.add_new(0x00283002, vr, [len(entries) if count is None else count, first, bits])
    item.add_new(0x00283006, data_vr, entries)
    return [item]


def group(**macros) -> Dataset:
    """A functional group: each macro is a sequence of one item with the fields given."""
    found = Dataset()
    for name, fields in macros.items():
        item = Dataset()
        for keyword, value in fields.items():
            setattr(item, keyword, value)
        setattr(found, name, [item])
    return found
