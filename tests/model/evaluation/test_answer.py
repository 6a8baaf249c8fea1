"""One question to a model: which heads are asked, what is read of it, and what is kept apart."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cmimtl.evaluation.answer import QuestionAnswerer, sequence_probability
from cmimtl.modelling.presets import PRESETS
from tests.model.conftest import QUESTIONS

SIZE = PRESETS["tiny"].config["image_size"]


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def answerer(make_model, processor):
    return QuestionAnswerer(make_model(), processor, batch_size=4)


def test_a_closed_question_is_not_put_to_the_decoder(answerer, pictures, monkeypatch):
    answer = answerer.answer(pictures[0], QUESTIONS[1])
    assert isinstance(answer.generated, str) and 0 < answer.generated_probability <= 1

    def write(*arguments, **options):
        raise AssertionError("asked")

    monkeypatch.setattr(answerer.model, "write", write)
    closed = answerer.answer(pictures[0], QUESTIONS[1], answer_type="closed")
    assert closed.generated is None and closed.generated_probability is None
    assert closed.classes == answer.classes


def test_both_heads_read_what_was_encoded_once(answerer, pictures):
    model, encoded = answerer.model, []
    handles = [
        part.register_forward_hook(lambda module, inputs, output: encoded.append(module))
        for part in (model.vision, model.text, model.qformer, model.fusion)
    ]
    try:
        answer = answerer.answer(pictures[0], QUESTIONS[1])
    finally:
        for handle in handles:
            handle.remove()
    assert encoded == [model.vision, model.text, model.qformer, model.fusion]
    (classified,), (probability,), (written,) = answerer.ask([QUESTIONS[1]], [pictures[0]], [True])
    assert answer.classes[0] == (classified, pytest.approx(probability))
    assert answer.generated == written


def test_the_frame_that_is_asked_about(answerer, pictures):
    buffer = io.BytesIO()
    pages = [Image.fromarray(picture) for picture in pictures]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    for frame, picture in enumerate(pictures):
        answer = answerer.answer(buffer.getvalue(), "What?", frame=frame, answer_type="closed")
        np.testing.assert_array_equal(answer.picture, picture)
    with pytest.raises(ValueError, match=r"frame must be in \[0, 2\] for the bytes, got 3"):
        answerer.answer(buffer.getvalue(), "What?", frame=3)


@pytest.mark.parametrize("question", ["", " \n"])
def test_a_question_without_a_word(answerer, pictures, question):
    with pytest.raises(ValueError, match="question must hold a word, got"):
        answerer.answer(pictures[0], question)


@pytest.mark.parametrize("words, unread", [(3, 0), (30, 0), (31, 1), (40, 10)])
def test_what_is_not_read_of_a_question(answerer, pictures, words, unread):
    """32 tokens are, two of which are the marks of beginning and end."""
    question = " ".join(["lesion"] * words)
    if unread:
        with pytest.warns(UserWarning, match=f"at most 32 tokens, got {words + 2}"):
            answer = answerer.answer(pictures[0], question, answer_type="closed")
    else:
        answer = answerer.answer(pictures[0], question, answer_type="closed")
    assert answer.unread == unread and answer.question == question


def test_many_questions_are_answered_as_each_alone(answerer, pictures, monkeypatch):
    """Both heads read what is encoded once, and a picture that repeats in a batch is encoded once.
    The decoder gets whole batches, though no batch of questions has so many for it."""
    order = [1, 0, 1, 2, 2, 0, 1, 1, 0]
    wanted = [True, False, True, True, False, True, True, False, True]
    questions = [QUESTIONS[i % 3] for i in range(len(order))]
    model, pictures_seen, questions_read, asked, done = answerer.model, [], [], [], []
    handles = [
        model.vision.register_forward_hook(lambda part, x, out: pictures_seen.append(len(out))),
        model.text.register_forward_hook(lambda part, x, out: questions_read.append(len(out[0]))),
    ]
    write = model.decoder.write

    def counted(tokens, *rest, **options):
        asked.append(len(tokens))
        return write(tokens, *rest, **options)

    monkeypatch.setattr(model.decoder, "write", counted)
    answerer.progress = done.append
    try:
        answers = answerer.ask(questions, (pictures[i] for i in order), wanted)
    finally:
        for handle in handles:
            handle.remove()
        answerer.progress = None
    assert pictures_seen == [3, 3, 1] and questions_read == [4, 4, 1]
    assert asked == [4, 2] and done == [4, 4, 1]
    for i, question, ask, by_class, probability, in_words in zip(
        order, questions, wanted, *answers, strict=True
    ):
        alone = answerer.answer(pictures[i], question)
        assert (by_class, in_words) == (alone.classes[0][0], alone.generated if ask else None)
        assert probability == pytest.approx(alone.classes[0][1], rel=1e-4)


def test_nothing_is_written_where_nothing_is_wanted(answerer, pictures, monkeypatch):
    monkeypatch.setattr(answerer.model, "decoder_input", None)  # would be an error if called
    answers = answerer.ask(QUESTIONS, pictures, [False] * 3)
    assert len(answers.classified) == 3 and answers.written == [None] * 3


def test_attention_lies_over_the_patches(answerer, pictures):
    attention = answerer.answer(pictures[0], QUESTIONS[0]).attention
    assert attention.shape == (4, 4)
    assert attention.sum() == pytest.approx(1) and (attention >= 0).all()
    assert torch.get_default_dtype() == torch.float32


def test_what_is_said_is_what_the_heads_give(answerer, pictures, processor):
    """Against the model's own forward pass, on what the processor makes of picture and question."""
    answer = answerer.answer(pictures[1], QUESTIONS[2], best=2)
    batch = processor(images=[pictures[1]], text=[QUESTIONS[2]])
    with torch.no_grad():
        output = answerer.model(**batch, return_attentions=True)
    odds = output.logits[0].exp()
    chances = dict(zip(["yes", "no", "lung"], (odds / (1 + odds)).tolist(), strict=True))
    best = sorted(chances, key=chances.get, reverse=True)[:2]
    assert [name for name, _ in answer.classes] == best
    assert [p for _, p in answer.classes] == pytest.approx([chances[n] for n in best], rel=1e-4)
    assert np.array_equal(answer.picture, pictures[1])
    # 16 patches, row by row, after the tokens that are no places.
    patches = output.query_attentions[0].mean((0, 1))[-16:]
    np.testing.assert_allclose(answer.attention.ravel(), patches / patches.sum(), rtol=1e-4)


def test_the_probability_of_a_sequence():
    """Of two tokens after the first, with odds 3 : 1 and 1 : 4."""
    generated = SimpleNamespace(
        sequences=torch.tensor([[0, 0, 1]]),
        scores=[torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 4.0]]).log()],
    )
    assert sequence_probability(generated) == pytest.approx(3 / 4 * 4 / 5)


def test_from_a_folder(answerer, processor, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"from_run: run must be .*without config.json\.$"):
        QuestionAnswerer.from_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json; finish its training with `cmimtl"):
        QuestionAnswerer.from_run(tmp_path)
    processor.save_pretrained(tmp_path)
    answerer.model.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"without model.safetensors; finish"):
        QuestionAnswerer.from_run(tmp_path)
    weights.rename(tmp_path / "model.safetensors")
    loaded = QuestionAnswerer.from_run(tmp_path, batch_size=1)
    assert loaded.image_size == SIZE and not loaded.model.training
    assert loaded.vocabulary.answers == ("yes", "no", "lung")
    everything = QUESTIONS, pictures, [True] * 3
    assert loaded.ask(*everything) == answerer.ask(*everything)


@pytest.mark.parametrize(
    "part", ["classifier.layers.4.weight", "decoder.decoder.final_layer_norm.weight"]
)
def test_an_answer_that_is_no_number_is_refused(make_model, processor, pictures, part):
    """Weights are finite and yet too large."""
    model = make_model()
    with torch.no_grad():
        model.get_parameter(part).mul_(torch.inf).nan_to_num_()
    answerer = QuestionAnswerer(model, processor)
    with pytest.raises(
        ValueError, match=r"answer with finite numbers, got -?(nan|inf) of the model"
    ):
        answerer.answer(pictures[0], QUESTIONS[1])
    if part.startswith("classifier"):
        with pytest.raises(ValueError, match="must answer with finite numbers"):
            answerer.ask(QUESTIONS[:1], pictures[:1], [False])
