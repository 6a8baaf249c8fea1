"""A trained model that is asked in words, and answers in words with both of its heads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from cmimtl import runs
from cmimtl.data import OPEN, AnswerVocabulary
from cmimtl.data.batches import numbered, square
from cmimtl.data.images import load_image
from cmimtl.files import reading
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.modelling.processor import CMIMTLProcessor
from cmimtl.progress import without_bars

MAX_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Answer:
    """What a model says to one question about one image.

    Attributes:
        question: as asked.
        picture: (size, size, 3) uint8, what the model saw.
        classes: the classifier's most probable answers with their probabilities, best first. The
            classes are judged one by one (sigmoid), so the probabilities need not sum to 1.
        generated: the decoder's answer, or None where the decoder was not asked: it is not asked
            a closed question.
        generated_probability: the product of the probabilities of its tokens, or None.
        unread: the number of tokens at the end of the question that the model does not read,
            because the question is too long.
        attention: (rows, columns) float32, the Q-Former's attention over the patches of the image:
            the mean over heads and queries of the last layer with cross-attention. It sums to 1.
    """

    question: str
    picture: np.ndarray
    classes: list[tuple[str, float]]
    generated: str | None
    generated_probability: float | None
    unread: int
    attention: np.ndarray


class Answers(NamedTuple):
    """What both heads say to many questions.

    Attributes:
        classified: the classifier's answers.
        probabilities: their probabilities; the classes are judged one by one, as in `Answer`.
        written: the decoder's answers, each the most probable token by token; None where it was not
            asked.
    """

    classified: list[str]
    probabilities: list[float]
    written: list[str | None]


class QuestionAnswerer:
    """A model and its processor, ready to answer.

    This is the `cmimtl.evaluation.evaluate.Answerer` that asks both heads of the model.
    """

    def __init__(
        self,
        model: CMIMTLForVisualQuestionAnswering,
        processor: CMIMTLProcessor,
        *,
        batch_size: int = 64,
    ) -> None:
        """Put the model into evaluation mode; batch_size is the number of questions at a time.

        Raises:
            ValueError: the processor's tokens are more than the model's.
        """
        known, tokens = model.config.text_config.vocab_size, processor.tokenizer.get_vocab()
        if max(tokens.values(), default=0) >= known:
            raise ValueError(
                f"QuestionAnswerer: processor must be that of the model, which knows {known}"
                f" tokens, got one with {len(tokens)}."
            )
        self.model = model.eval()
        # Called after each batch with the number of its questions.
        self.progress: Callable[[int], None] | None = None
        self.processor = processor
        self._batch_size = batch_size
        answers = cast("dict[int, str]", model.config.id2label)
        self.vocabulary = AnswerVocabulary([answers[index] for index in range(len(answers))])

    @classmethod
    def from_run(cls, run: str | os.PathLike[str], *, batch_size: int = 64) -> QuestionAnswerer:
        """Load the model that ``cmimtl train`` left in a folder, to the GPU where there is one.

        Raises:
            ValueError: the folder holds no finished model, or a damaged one.
        """
        run = Path(run)
        runs.check_finished("QuestionAnswerer.from_run", run)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with without_bars():
            model = CMIMTLForVisualQuestionAnswering.from_pretrained(run)
            model.to(device)
        processor = CMIMTLProcessor.from_pretrained(run)
        with reading("QuestionAnswerer.from_run", "run must hold a model and its processor", run):
            return cls(model, processor, batch_size=batch_size)

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the square pictures that the model takes."""
        return self.model.config.image_size

    @torch.inference_mode()
    def ask(
        self,
        questions: Sequence[str],
        pictures: Iterable[np.ndarray],
        in_words: Sequence[bool],
    ) -> Answers:
        """Answer many questions with both heads, of what is encoded once for the two.

        Args:
            questions: in words.
            pictures: one for each question, (size, size, 3) uint8.
            in_words: whether each question is put to the decoder too.
        """
        classified: list[str] = []
        probabilities: list[float] = []
        written: list[str | None] = [None] * len(questions)
        # The number of each question that waits for the decoder, and what the decoder attends to:
        # its tokens (tokens, d_model) and their mask (tokens,).
        waiting: list[tuple[int, torch.Tensor, torch.Tensor]] = []

        def write() -> None:
            numbers, tokens, masks = zip(*waiting, strict=True)
            answers = self.model.decoder.write(
                pad_sequence(list(tokens), batch_first=True),
                pad_sequence(list(masks), batch_first=True),
                max_new_tokens=MAX_ANSWER_TOKENS,
            )
            for number, answer in zip(
                numbers, self.processor.batch_decode_answers(answers), strict=True
            ):
                written[number] = answer
            waiting.clear()

        for batch in self._batches(questions, pictures):
            state = self.model.encode(**batch)
            best = self._finite(self.model.classify(state)).max(-1)
            first = len(classified)
            classified += [self.vocabulary.answers[index] for index in best.indices.tolist()]
            probabilities += best.values.sigmoid().tolist()
            if not any(in_words[first : len(classified)]):
                continue
            for row, (tokens, mask) in enumerate(
                zip(*self.model.decoder_input(state), strict=True)
            ):
                if in_words[first + row]:
                    waiting.append((first + row, tokens, mask))
                # The decoder gets whole batches: it takes as long for a few questions as for many.
                if len(waiting) == self._batch_size:
                    write()
        if waiting:
            write()
        return Answers(classified, probabilities, written)

    def answer(
        self,
        image: object,
        question: str,
        *,
        frame: int | None = None,
        best: int = 3,
        answer_type: str = OPEN,
    ) -> Answer:
        """Answer one question with both heads, or with the classifier alone.

        Args:
            image: a path of a PNG, JPEG, DICOM, … file or anything else that
                `cmimtl.data.images.load_image` takes.
            question: in words.
            frame: which frame or page of several, counted from 0; None takes the middle one.
            best: how many of the classifier's answers to give.
            answer_type: "open", or "closed" where the question is known to be closed. The decoder
                is trained on open questions alone, so it is not asked a closed one.
        Raises:
            ValueError: question is empty, image is not an image, or it has no such frame.
        """
        if not question.strip():
            raise ValueError(
                f"QuestionAnswerer.answer: question must hold a word, got {question!r}."
            )
        picture = square(load_image(image, frame=frame), self.image_size)
        (batch,) = self._batches([question], [picture])
        with torch.inference_mode():
            state = self.model.encode(**batch, return_attentions=True)
            logits = self._finite(self.model.classify(state))
        probabilities, indices = logits[0].sigmoid().topk(min(best, len(self.vocabulary)))
        classes = [
            (self.vocabulary.answers[index], probability)
            for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
        words, words_probability = None, None
        if answer_type == OPEN:
            generated = self.model.write(
                state,
                max_new_tokens=MAX_ANSWER_TOKENS,
                return_dict_in_generate=True,
                output_scores=True,
            )
            words = self.processor.batch_decode_answers(generated.sequences)[0]
            words_probability = sequence_probability(generated)
            self._finite(torch.tensor(words_probability))
        return Answer(
            question=question,
            picture=picture,
            classes=classes,
            generated=words,
            generated_probability=words_probability,
            unread=max(0, self.processor.tokens_of(question) - self.processor.max_question_length),
            attention=self._on_grid(state["query_attentions"][0]),
        )

    @torch.inference_mode()
    def attention(self, questions: Sequence[str], pictures: Iterable[np.ndarray]) -> np.ndarray:
        """The attention to each picture as in `Answer`, (questions, rows, columns).

        Args:
            questions, pictures: as in `ask`.
        """
        return np.stack(
            [
                self._on_grid(of_question)
                for batch in self._batches(questions, pictures)
                for of_question in self.model.encode(**batch, return_attentions=True)[
                    "query_attentions"
                ]
            ]
        )

    def _finite(self, values: torch.Tensor) -> torch.Tensor:
        """Return values, which weights that are too large make infinite or no numbers."""
        if not values.isfinite().all():
            name = self.model.config.name_or_path or "the model"
            raise ValueError(
                "QuestionAnswerer: a model must answer with finite numbers, got"
                f" {values[~values.isfinite()][0].item()} of {name} in {self.model.dtype}."
            )
        return values

    def _on_grid(self, attention: torch.Tensor) -> np.ndarray:
        """Lay attention out as the patches lie: (heads, queries, tokens) -> (rows, columns)."""
        mean = attention.float().mean((0, 1)).cpu().numpy()
        side = self.image_size // self.model.config.patch_size
        patches = mean[-side * side :]  # the tokens before them are no places in the image
        return (patches / patches.sum()).reshape(side, side)

    def _batches(
        self, questions: Sequence[str], pictures: Iterable[np.ndarray]
    ) -> Iterator[dict[str, torch.Tensor]]:
        pairs = zip(questions, pictures, strict=True)
        while chunk := list(itertools.islice(pairs, self._batch_size)):
            text, images = (list(part) for part in zip(*chunk, strict=True))
            batch = dict(self.processor(text=text))
            pixel_values = self.processor.pixel_values(np.stack(images))
            batch["pixel_values"] = pixel_values.to(self.model.dtype)
            # One array is one picture, which is encoded once for all of its questions.
            batch["image_index"] = torch.tensor(numbered(map(id, images)))
            yield {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            if self.progress is not None:
                self.progress(len(chunk))


def sequence_probability(generated) -> float:
    """The probability of the sequence that ``generate`` gave with its scores, end token included.

    Args:
        generated: has ``sequences`` (1, 1 + length), the start token first, and ``scores``, a list
            of `length` tensors of logits, (1, vocabulary).
    """
    tokens = generated.sequences[0, 1:]
    steps = zip(generated.scores, tokens, strict=True)
    return float(sum(scores[0].log_softmax(-1)[token] for scores, token in steps).exp())
