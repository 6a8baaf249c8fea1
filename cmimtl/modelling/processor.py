"""Turn images, questions and answers into the tensors of the model, and tokens back into words."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordLevelTrainer
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from cmimtl.data.images import load_image
from cmimtl.modelling import loading
from cmimtl.modelling.config import CMIMTLConfig

IGNORED = -100  # the label of a token that is not wanted
PADDING = "right"  # where the model has it, whatever a tokenizer was saved with


class CMIMTLProcessor(ProcessorMixin):
    """An image processor, a tokenizer for questions and one for answers.

    Args:
        image_processor: a ViTImageProcessor, which resizes and normalises images.
        tokenizer: the tokenizer of the questions, RoBERTa's.
        answer_tokenizer: the tokenizer of the answers, T5's.
        max_question_length: largest number of tokens of a question. A longer question is cut, with
            a warning.
    """

    answer_tokenizer: PreTrainedTokenizerFast  # the base class sets it

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        answer_tokenizer=None,
        max_question_length=32,
        **kwargs,
    ):
        self.max_question_length = max_question_length
        super().__init__(image_processor, tokenizer, answer_tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options):
        """Load a processor from a folder or the hub, as transformers does.

        No code that comes with it is run. A folder has tokenizers in ``tokenizer.json`` and
        ``answer_tokenizer/tokenizer.json``, of whatever class its files say, and a
        ViTImageProcessor; it fetches nothing.

        Raises:
            ValueError: a file is missing or damaged; the message names it.
        """
        loading.check_options(options)
        source = pretrained_model_name_or_path
        folder = loading.local_folder(source, options.get("subfolder", ""))
        if folder is None:
            return super().from_pretrained(source, **options | {"trust_remote_code": False})
        return loading.read_processor(cls, folder)

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        answers: str | Sequence[str] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Make a batch.

        Args:
            images: an image, or a list of images, that `cmimtl.data.images.load_image` takes.
            text: one question or a list.
            answers: one answer or a list, the targets of generation.
        Returns:
            pixel_values (batch, 3, size, size); input_ids and attention_mask (batch, length);
            labels (batch, answer length), with -100 at padding. Tensors of what was not given are
            left out.
        Raises:
            ValueError: nothing is given, or lists have different lengths.
        """
        parts = {
            "images": _as_list(images),
            "text": _as_list(text),
            "answers": _as_list(answers),
        }
        lengths = {name: len(part) for name, part in parts.items() if part is not None}
        if not lengths or 0 in lengths.values():
            raise ValueError("CMIMTLProcessor: images or text must hold something, got nothing.")
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"CMIMTLProcessor: images, text and answers must have one length, got {lengths}."
            )
        batch: dict[str, torch.Tensor] = {}
        if parts["images"] is not None:
            pictures = [load_image(image) for image in parts["images"]]
            batch |= self.image_processor(pictures, return_tensors="pt")
        if parts["text"] is not None:
            batch |= self._tokens(parts["text"])
        if parts["answers"] is not None:
            encoded = self.answer_tokenizer(
                parts["answers"], padding=True, padding_side=PADDING, return_tensors="pt"
            )
            batch["labels"] = encoded["input_ids"].masked_fill(
                encoded["attention_mask"] == 0, IGNORED
            )
        return BatchFeature(batch)

    def pixel_values(self, pictures: np.ndarray) -> torch.Tensor:
        """Process pictures that have the model's size already, all at once.

        Args:
            pictures: (batch, size, size, 3) uint8.
        Returns:
            (batch, 3, size, size) float32.
        """
        options = self.image_processor
        scale = options.rescale_factor / torch.tensor(options.image_std)
        shift = torch.tensor(options.image_mean) / torch.tensor(options.image_std)
        pixels = torch.from_numpy(pictures).float().mul_(scale).sub_(shift)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def tokens_of(self, question: str) -> int:
        """How many tokens a question has before it is cut, the special ones included."""
        return len(self.tokenizer(question, verbose=False)["input_ids"])

    def _tokens(self, questions: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(
            questions,
            padding=True,
            padding_side=PADDING,
            truncation=True,
            max_length=self.max_question_length,
            return_tensors="pt",
        )
        if encoded["input_ids"].shape[1] == self.max_question_length:
            for question in questions:
                if (count := self.tokens_of(question)) > self.max_question_length:
                    warnings.warn(
                        f"CMIMTLProcessor: a question should have at most"
                        f" {self.max_question_length} tokens, got {count}; what is beyond is not"
                        f" read: {question!r}.",
                        stacklevel=3,
                    )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def batch_decode_answers(self, ids: torch.Tensor) -> list[str]:
        """Turn token ids, (batch, length), of ``generate`` or of labels into answers."""
        ids = ids.masked_fill(ids == IGNORED, self.answer_tokenizer.pad_token_id)
        texts = self.answer_tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]


def _as_list(value) -> list | None:
    if value is None:
        return None
    return list(value) if isinstance(value, (list, tuple)) else [value]


def train_question_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of words of lower-cased questions.

    It has RoBERTa's special tokens, at the places that they have in RoBERTa.
    """
    tokenizer = _train_words(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="right",
    )


def train_answer_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of words of lower-cased answers.

    It has T5's special tokens, at the places that they have in T5.
    """
    tokenizer = _train_words(texts, ["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
    )


def _train_words(texts: Iterable[str], special_tokens: list[str]) -> Tokenizer:
    """Train a tokenizer of whole words and single punctuation marks, the most frequent first."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts, WordLevelTrainer(special_tokens=special_tokens, show_progress=False)
    )
    return tokenizer


AutoProcessor.register(CMIMTLConfig, CMIMTLProcessor)
