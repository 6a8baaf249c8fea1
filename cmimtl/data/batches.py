"""From examples to the tensors that the model takes: image cache, dataset, order, collator.

Nothing here holds a random state. The order of an epoch is a function of (seed, epoch), and what
augmentation does to a picture is a function of (seed, epoch, picture). So a run that is resumed in
the middle sees what it would have seen otherwise, with any number of workers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from cmimtl.data import OPEN, AnswerVocabulary, DataError, VQAExample
from cmimtl.data.images import load_image

# The cache keeps decoded pictures up to so many bytes. 2,000 pictures of 96 x 96 take 55 MB, and
# SLAKE's 642 at 384 x 384 take 284 MB.
CACHE_BYTES = 2 * 1024**3

# Augmentation changes a picture by no more than this: as if the patient lay a little differently,
# or another window had been chosen. It never reflects a picture, because left would become right.
MAX_SHIFT = 0.04  # share of the picture's side
MAX_ROTATION = math.radians(5)
MAX_CONTRAST = 0.1  # contrast changes by a factor of 0.9 … 1.1 about the middle grey
MAX_BRIGHTNESS = 0.05  # share of the range from black to white


class ImageCache:
    """Pictures by path, decoded and scaled to the model's size, in memory up to a limit.

    The cache is filled when it is made, so that the workers of a data loader share it. A picture
    that does not fit is decoded again at each use.
    """

    def __init__(
        self, paths: Sequence[Path], image_size: int, *, limit_bytes: int = CACHE_BYTES
    ) -> None:
        """Decode as many of the pictures as fit.

        Args:
            paths: image files; repeated ones are decoded once.
            image_size: side in pixels of the square pictures that the model takes.
            limit_bytes: memory that the pictures may take. One takes 3 * image_size**2 bytes.
        Raises:
            DataError: a file is not an image.
        """
        self.image_size = image_size
        distinct = list(dict.fromkeys(paths))
        kept = distinct[: limit_bytes // (3 * image_size**2)]
        # Pillow decodes without holding the interpreter's lock.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            self._pictures = dict(zip(kept, pool.map(self._decode, kept), strict=True))

    def __getitem__(self, path: Path) -> np.ndarray:
        """The picture, (image_size, image_size, 3) uint8, which must not be written to.

        Raises:
            DataError: its file is not an image.
        """
        picture = self._pictures.get(path)
        return self._decode(path) if picture is None else picture

    def _decode(self, path: Path) -> np.ndarray:
        try:
            return square(load_image(path), self.image_size)
        except (OSError, ValueError) as error:
            raise DataError(
                f"ImageCache: {path} must be a readable image, got {type(error).__name__}: {error}"
            ) from error


def square(picture: Image.Image, image_size: int) -> np.ndarray:
    """Scale a picture to a square of the model's size: (image_size, image_size, 3) uint8."""
    size = (image_size, image_size)
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def augment(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift and turn a picture a little, and change its contrast and brightness a little.

    Args:
        picture: (height, width, 3) uint8.
        rng: five numbers are drawn from it.
    Returns:
        (height, width, 3) uint8. It is black where the picture had nothing to show.
    """
    height, width, _ = picture.shape
    angle, x, y, contrast, brightness = rng.uniform(-1, 1, 5)
    cosine, sine = math.cos(angle * MAX_ROTATION), math.sin(angle * MAX_ROTATION)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    # Pillow takes the inverse map, (a, b, c, d, e, f): x' = a x + b y + c and y' = d x + e y + f.
    inverse = (
        cosine,
        sine,
        middle_x - cosine * middle_x - sine * middle_y + x * MAX_SHIFT * width,
        -sine,
        cosine,
        middle_y + sine * middle_x - cosine * middle_y + y * MAX_SHIFT * height,
    )
    moved = Image.fromarray(picture).transform(
        (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    grey = (np.asarray(moved, np.float32) - 127.5) * (1 + contrast * MAX_CONTRAST)
    return np.clip(np.rint(grey + 127.5 + brightness * MAX_BRIGHTNESS * 255), 0, 255).astype("u1")


class Item(TypedDict):
    """What `VQADataset` gives; picture is (size, size, 3) uint8."""

    example: VQAExample
    written: str
    picture: np.ndarray
    image_index: int
    question_index: int


class VQADataset(Dataset):
    """Examples with their pictures.

    An index may be larger than the number of examples, as those of `EpochOrder` are:
    ``index % len`` is the example and ``index // len`` is the epoch, on which augmentation depends.
    """

    def __init__(
        self,
        examples: Sequence[VQAExample],
        images: ImageCache,
        *,
        written: Sequence[str] | None = None,
        augmentation: bool = False,
        seed: int = 0,
    ) -> None:
        """Keep examples, the images that hold their pictures, and how to augment those.

        Args:
            written: the answer that the decoder learns to write for each example; its own where
                None.
        """
        self.examples = list(examples)
        self._written = [e.answer_normalized for e in examples] if written is None else written
        self._images = images
        self._augmentation = augmentation
        self._seed = seed
        self._image_index = numbered(example.image_id for example in self.examples)
        self._question_index = numbered(example.question.lower() for example in self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        epoch, number = divmod(index, len(self.examples))
        example = self.examples[number]
        picture = self._images[example.image]
        if self._augmentation:
            # All questions about a picture see the same augmented picture, because the model
            # encodes the pictures of one image_index only once.
            key = [self._seed, epoch, self._image_index[number]]
            picture = augment(picture, np.random.default_rng(key))
        return {
            "example": example,
            "written": self._written[number],
            "picture": picture,
            "image_index": self._image_index[number],
            "question_index": self._question_index[number],
        }


def shuffled_answers(examples: Sequence[VQAExample], seed: int) -> list[str]:
    """The answers of the examples, those to open questions shuffled within each content type.

    What is left of an answer is how often it occurs. It is the control of a decoder's use: it has
    the same parameters and as many tokens to learn, but its answers tell nothing of their images.
    """
    answers = [example.answer_normalized for example in examples]
    of_type: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        if example.answer_type == OPEN:
            of_type.setdefault(example.content_type, []).append(number)
    rng = np.random.default_rng([seed, len(examples)])
    shuffled = list(answers)
    for numbers in of_type.values():
        for to, source in zip(numbers, rng.permutation(numbers), strict=True):
            shuffled[to] = answers[source]
    return shuffled


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """Number keys from 0, in the order in which they first come; equal keys get equal numbers."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


class EpochOrder(Sampler[int]):
    """A random order of the examples for each epoch, which depends only on seed and epoch.

    It gives ``epoch * length + i`` for every example i; see `VQADataset`.
    """

    def __init__(self, length: int, seed: int) -> None:
        """Keep the number of examples and the seed of their order."""
        self._length = length
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._length)
        yield from (order + self._epoch * self._length).tolist()


class VQACollator:
    """Makes a batch of the model's arguments of a list of items of `VQADataset`.

    The batch has ``pixel_values``, ``input_ids`` and ``attention_mask`` as the processor makes them
    and, with a vocabulary, the targets:

        answer_scores   (batch, classes) float32: 1 at the answer's class; a row of zeros where the
                        vocabulary does not hold the answer
        labels          (batch, answer length) int64: the tokens of what is to be written, -100 at
                        padding and in the whole row of a closed question
        image_index, question_index     (batch,) int64: equal for the same image or question
    """

    def __init__(self, processor, vocabulary: AnswerVocabulary | None = None) -> None:
        """Keep a CMIMTLProcessor and the answer classes; without classes there are no targets."""
        self._processor = processor
        self._vocabulary = vocabulary

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        examples = [item["example"] for item in items]
        written = [item["written"] for item in items]
        batch = dict(
            self._processor(
                text=[example.question for example in examples],
                answers=None if self._vocabulary is None else written,
            )
        )
        pictures = np.stack([item["picture"] for item in items])
        batch["pixel_values"] = self._processor.pixel_values(pictures)
        if self._vocabulary is None:
            return batch
        scores = torch.zeros(len(items), len(self._vocabulary))
        for row, example in enumerate(examples):
            index = self._vocabulary.index(example.answer_normalized)
            if index is not None:
                scores[row, index] = 1.0
        is_open = torch.tensor([example.answer_type == OPEN for example in examples])
        batch["labels"] = batch["labels"].masked_fill(~is_open[:, None], -100)
        batch["answer_scores"] = scores
        batch["image_index"] = torch.tensor([item["image_index"] for item in items])
        batch["question_index"] = torch.tensor([item["question_index"] for item in items])
        return batch
