"""From examples to the tensors that the model takes: image cache, dataset, order, collator.

Nothing here holds a random state. The order of an epoch is a function of (seed, epoch), what
augmentation does to a picture a function of (seed, epoch, picture). So a run that is taken up again
in the middle sees what it would have seen, with any number of workers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from cmimtl.data import OPEN, AnswerVocabulary, DataError, VQAExample
from cmimtl.images import load_image

# Decoded pictures kept in memory: 2,000 at 96 x 96 are 55 MB, SLAKE's 642 at 384 x 384 are 284 MB.
CACHE_BYTES = 2 * 1024**3

# Largest change of a picture by augmentation: what a patient that lies a little differently, or
# another window, would change. No reflection, because sides matter: left would become right.
MAX_SHIFT = 0.04  # of the side
MAX_ROTATION = math.radians(5)
MAX_CONTRAST = 0.1  # factor 0.9 ... 1.1 about the middle grey
MAX_BRIGHTNESS = 0.05  # of the range


class ImageCache:
    """Pictures by path, decoded and scaled to the model's size, in memory up to a limit.

    It is filled when it is made, so that the workers of a data loader share it; what does not fit
    is decoded again at each use.
    """

    def __init__(
        self, paths: Sequence[Path], image_size: int, *, limit_bytes: int = CACHE_BYTES
    ) -> None:
        """Decode as many of the pictures as fit.

        Args:
            paths: image files; repeated ones are decoded once.
            image_size: side in pixels of the square pictures that the model takes.
            limit_bytes: memory that the pictures may take, 3 * image_size**2 bytes each.
        Raises:
            DataError: a file is no image.
        """
        self.image_size = image_size
        distinct = list(dict.fromkeys(paths))
        kept = distinct[: limit_bytes // (3 * image_size**2)]
        # Pillow decodes without holding the interpreter's lock.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            self._pictures = dict(zip(kept, pool.map(self._decode, kept), strict=True))

    def __getitem__(self, path: Path) -> np.ndarray:
        """(image_size, image_size, 3) uint8; not to be written to. Raises: DataError."""
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
    """A picture scaled to a square of the model's size: (image_size, image_size, 3) uint8."""
    size = (image_size, image_size)
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def augment(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture shifted, turned and changed in contrast and brightness a little, never reflected.

    Args:
        picture: (height, width, 3) uint8.
        rng: five numbers are drawn from it.
    Returns:
        (height, width, 3) uint8; black where nothing was.
    """
    height, width, _ = picture.shape
    angle, x, y, contrast, brightness = rng.uniform(-1, 1, 5)
    cosine, sine = math.cos(angle * MAX_ROTATION), math.sin(angle * MAX_ROTATION)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    # Pillow wants the inverse map, (a, b, c, d, e, f): x' = a x + b y + c and y' = d x + e y + f.
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


class VQADataset(Dataset):
    """Examples with their pictures.

    An index may count on beyond the number of examples, epoch after epoch, as :class:`EpochOrder`
    gives them: ``index % len`` is the example, ``index // len`` the epoch, by which augmentation
    draws.
    """

    def __init__(
        self,
        examples: Sequence[VQAExample],
        images: ImageCache,
        *,
        augmentation: bool = False,
        seed: int = 0,
    ) -> None:
        """Args: examples; images that hold their pictures; augmentation and its seed."""
        self.examples = list(examples)
        self._images = images
        self._augmentation = augmentation
        self._seed = seed
        self._image_index = numbered(example.image_id for example in self.examples)
        self._question_index = numbered(example.question.lower() for example in self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, object]:
        """``example``, ``picture`` (size, size, 3) uint8, ``image_index`` and
        ``question_index``."""
        epoch, number = divmod(index, len(self.examples))
        example = self.examples[number]
        picture = self._images[example.image]
        if self._augmentation:
            # By picture: the model takes pictures with one image_index for the same.
            key = [self._seed, epoch, self._image_index[number]]
            picture = augment(picture, np.random.default_rng(key))
        return {
            "example": example,
            "picture": picture,
            "image_index": self._image_index[number],
            "question_index": self._question_index[number],
        }


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """Equal keys as equal numbers, counted from 0 in the order in which they come first."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


class EpochOrder(Sampler[int]):
    """A random order per epoch that depends on seed and epoch alone.

    Gives ``epoch * length + i`` for every example i, see :class:`VQADataset`.
    """

    def __init__(self, length: int, seed: int) -> None:
        """Args: length: number of examples; seed of the order."""
        self._length = length
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch, counted from 0, whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._length)
        yield from (order + self._epoch * self._length).tolist()


class VQACollator:
    """Items of :class:`VQADataset` as one batch of the model's arguments.

    Args of the call: a list of items. It returns ``pixel_values``, ``input_ids`` and
    ``attention_mask`` as the processor makes them and, with a vocabulary, the targets:

        answer_scores   (batch, classes) float32: 1 at the answer's class; a row of zeros where the
                        vocabulary does not hold the answer
        labels          (batch, answer length) int64: the answer's tokens, -100 at padding and in
                        the whole row of a closed question
        image_index, question_index     (batch,) int64: equal for the same image or question
    """

    def __init__(self, processor, vocabulary: AnswerVocabulary | None = None) -> None:
        """Args: processor: a CMIMTLProcessor; vocabulary: the answer classes, None for no
        targets."""
        self._processor = processor
        self._vocabulary = vocabulary

    def __call__(self, items: Sequence[Mapping[str, object]]) -> dict[str, torch.Tensor]:
        examples = [item["example"] for item in items]
        answers = [example.answer_normalized for example in examples]
        batch = dict(
            self._processor(
                text=[example.question for example in examples],
                answers=None if self._vocabulary is None else answers,
            )
        )
        pictures = np.stack([item["picture"] for item in items])
        batch["pixel_values"] = self._processor.pixel_values(pictures)
        if self._vocabulary is None:
            return batch
        scores = torch.zeros(len(items), len(self._vocabulary))
        for row, answer in enumerate(answers):
            index = self._vocabulary.index(answer)
            if index is not None:
                scores[row, index] = 1.0
        is_open = torch.tensor([example.answer_type == OPEN for example in examples])
        batch["labels"] = batch["labels"].masked_fill(~is_open[:, None], -100)
        batch["answer_scores"] = scores
        for name in ("image_index", "question_index"):
            batch[name] = torch.tensor([item[name] for item in items])
        return batch
