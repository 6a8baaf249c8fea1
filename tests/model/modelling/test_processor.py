"""Batches, tokenizers, and pretrained weights from local folders."""

import dataclasses
import itertools
import json
import warnings

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaModel, T5ForConditionalGeneration, ViTImageProcessor

from cmimtl.data import AnswerVocabulary
from cmimtl.modelling.presets import PRESETS, build_config, build_model, build_processor
from cmimtl.modelling.processor import CMIMTLProcessor
from tests.model.conftest import ANSWERS, QUESTIONS


def test_a_batch(processor):
    size = PRESETS["tiny"].config["image_size"]
    pictures = [np.zeros((30, 40), np.uint8), np.full((50, 50, 3), 255, np.uint8)]
    batch = processor(images=pictures, text=QUESTIONS[:2], answers=ANSWERS[:2])
    assert batch["pixel_values"].shape == (2, 3, size, size)
    assert batch["pixel_values"][0].eq(-1).all() and batch["pixel_values"][1].eq(1).all()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape and (ids[mask == 0] == processor.tokenizer.pad_token_id).all()
    assert (ids[:, 0] == processor.tokenizer.bos_token_id).all()
    labels = batch["labels"]
    assert (labels == -100).any() or labels.shape[1] == 2
    assert processor.batch_decode_answers(labels) == ANSWERS[:2]


def test_one_question_need_not_be_a_list(processor):
    batch = processor(images=np.zeros((8, 8, 3), np.uint8), text=QUESTIONS[0])
    assert batch["pixel_values"].shape[0] == batch["input_ids"].shape[0] == 1


def test_long_questions_are_cut_with_a_warning(processor):
    """Two of the tokens are the marks of beginning and end."""
    question = "lesion " * 40
    assert processor.tokens_of(question) == 42
    with pytest.warns(
        UserWarning, match="at most 32 tokens, got 42; what is beyond is not"
    ) as said:
        ids = processor(text=[QUESTIONS[0], question])["input_ids"]
    assert len(said) == 1 and said[0].filename == __file__
    assert ids.shape[1] == processor.max_question_length
    assert ids[1, -1] == processor.tokenizer.eos_token_id


def test_a_question_of_as_many_tokens_as_are_read_gives_no_warning(processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = processor(text=["lesion " * 30, QUESTIONS[0]])["input_ids"]
    assert ids.shape[1] == processor.max_question_length


def test_pixel_values_are_those_of_the_image_processor(processor):
    """Also where the channels have means and deviations of their own, as of ImageNet."""
    size = PRESETS["tiny"].config["image_size"]
    pictures = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    images = ViTImageProcessor(
        size={"height": size, "width": size},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    other = CMIMTLProcessor(images, processor.tokenizer, processor.answer_tokenizer)
    for one in (processor, other):
        before = pictures.copy()
        pixels = one.pixel_values(pictures)
        assert pixels.dtype == torch.float32 and pixels.is_contiguous()
        # Of values up to 2.7, formed in another order: a few roundings.
        expected = one(images=list(pictures))["pixel_values"]
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
        assert np.array_equal(pictures, before)
    assert not torch.allclose(processor.pixel_values(pictures), other.pixel_values(pictures))


def test_unknown_words_are_marked(processor):
    ids = processor(text="xylophone")["input_ids"]
    assert processor.tokenizer.unk_token_id in ids


@pytest.mark.parametrize("arguments", [{}, {"text": []}])
def test_nothing_given(processor, arguments):
    with pytest.raises(ValueError, match="images or text must hold something, got nothing"):
        processor(**arguments)


def test_lists_of_different_lengths(processor):
    with pytest.raises(ValueError, match=r"must have one length, got .*'images': 1, 'text': 2"):
        processor(images=[np.zeros((8, 8), np.uint8)], text=QUESTIONS[:2])


@pytest.fixture
def weights(processor, tmp_path):
    """Local folders as the hub would have them, of tiny's sizes; and the preset that names them."""
    preset = dataclasses.replace(
        PRESETS["tiny"],
        pretrained={"vision": "vit_tiny_patch16_224", "text": "some/text", "decoder": "some/t5"},
    )
    config = build_config(preset, AnswerVocabulary(["yes"]), processor, fusion="cross-mamba")
    text = RobertaModel(config.text_config, add_pooling_layer=False)
    text.save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    decoder = T5ForConditionalGeneration(config.decoder_config)
    decoder.save_pretrained(tmp_path / "decoder")
    processor.answer_tokenizer.save_pretrained(tmp_path / "decoder")
    chosen = preset.config
    vision = timm.create_model(
        chosen["vision_model"],
        num_classes=0,
        img_size=chosen["image_size"],
        patch_size=chosen["patch_size"],
        **chosen["vision_options"],
    )
    (tmp_path / "vision").mkdir()
    save_file(vision.state_dict(), tmp_path / "vision" / "model.safetensors")
    return preset, tmp_path, {"text": text, "decoder": decoder, "vision": vision}


def test_pretrained_parts_are_loaded(weights):
    preset, folder, parts = weights
    processor = build_processor(preset, [], [], weights=folder)
    model = build_model(
        preset, vocabulary=AnswerVocabulary(["yes"]), processor=processor, weights=folder
    )
    for ours, theirs in (
        (model.text, parts["text"]),
        (model.decoder.decoder, parts["decoder"].decoder),
        (model.vision.vit, parts["vision"]),
    ):
        expected = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("part", ["text", "decoder", "vision"])
def test_missing_pretrained_weights_are_named(weights, part):
    preset, folder, _ = weights
    name = "model.safetensors"
    (folder / part / name).unlink()
    with pytest.raises(
        OSError, match=f"the pretrained {part} .* must be on the hub or in the folder"
    ):
        build_model(
            preset,
            vocabulary=AnswerVocabulary(["yes"]),
            processor=build_processor(preset, QUESTIONS, ANSWERS, weights=folder),
            weights=folder,
        )


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _not_a_number(path):
    state = load_file(path)
    name = min(name for name in state if state[name].is_floating_point())
    save_file(state | {name: state[name] * torch.nan}, path, metadata={"format": "pt"})


def _without_one(path):
    state = load_file(path)
    del state[max(name for name in state if "layer" in name or "blocks" in name)]
    save_file(state, path, metadata={"format": "pt"})


def _with_code(path):
    config = path.with_name("config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"A": "x--y.Z"}}))


@pytest.mark.parametrize(
    "part, damage",
    [
        *itertools.product(["text", "decoder", "vision"], [_cut, _not_a_number, _without_one]),
        ("text", _with_code),
        ("decoder", _with_code),
    ],
)
def test_pretrained_weights_that_are_refused(weights, part, damage):
    preset, folder, _ = weights
    damage(folder / part / "model.safetensors")
    with pytest.raises(OSError, match=f"the pretrained {part} .* got: .+") as error:
        build_model(
            preset,
            vocabulary=AnswerVocabulary(["yes"]),
            processor=build_processor(preset, QUESTIONS, ANSWERS, weights=folder),
            weights=folder,
        )
    assert "\n" not in str(error.value)
