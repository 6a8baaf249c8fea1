"""The whole model: gradients, what reaches the answers, generation, saving."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

from cmimtl.data import AnswerVocabulary
from cmimtl.modelling import losses
from cmimtl.modelling.config import FUSIONS, CMIMTLConfig
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.modelling.presets import PRESETS, build_config, build_model, build_processor

INPUTS = ("pixel_values", "input_ids", "attention_mask")


def inputs_of(batch):
    return {name: batch[name] for name in INPUTS}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_learns_and_none_appears(make_model, batch, fusion):
    model = make_model(fusion)
    before = [name for name, _ in model.named_parameters()]
    output = model(**batch)
    assert [name for name, _ in model.named_parameters()] == before
    parts = output.classification_loss, output.contrastive_loss, output.generation_loss
    expected = parts[0] + 0.2 * parts[1] + 1.0 * parts[2]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_token_of_both_streams_reaches_the_classifier(make_model, batch, fusion):
    """The released code read position 0 of a causal scan, which no other token reaches."""
    model = make_model(fusion).eval()
    with torch.no_grad():
        state = model.encode(**inputs_of(batch))
        mask = state["attention_mask"]
        queries, _ = model.qformer(state["image"], batch["input_ids"], mask)
        streams = {
            "visual": model.visual_projection(queries),
            "text": model.text_projection(state["question"]),
        }

        def logits():
            visual, text = model.fusion(streams["visual"], streams["text"], None, mask.sum(1))
            return model.classifier(visual, mask.new_ones(visual.shape[:2]), text, mask)

        before = logits()
        for name, stream in streams.items():
            for position in range(stream.shape[1]):
                streams[name] = stream.clone()
                streams[name][:, position] = torch.randn(stream.shape[2])
                changed = (logits() != before).any(1)
                valid = mask[:, position].bool() if name == "text" else torch.ones(3).bool()
                assert torch.equal(changed, valid), (name, position)
            streams[name] = stream


@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_changes_no_answer(make_model, batch, fusion):
    model = make_model(fusion).eval()
    inputs = inputs_of(batch)
    pad = model.config.text_config.pad_token_id
    longer = dict(
        inputs,
        input_ids=torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=pad),
        attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, 5)),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model(**longer).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5
        )


def test_each_image_and_question_gets_its_own_answer(make_model, batch):
    """No sample's logits depend on the others of its batch."""
    model = make_model().eval()
    inputs = inputs_of(batch)
    with torch.no_grad():
        together = model(**inputs).logits
        for i in range(3):
            length = int(inputs["attention_mask"][i].sum())
            alone = {name: x[i : i + 1] for name, x in inputs.items()}
            alone["input_ids"] = alone["input_ids"][:, :length]
            alone["attention_mask"] = alone["attention_mask"][:, :length]
            torch.testing.assert_close(model(**alone).logits[0], together[i], rtol=1e-4, atol=1e-5)


def test_without_an_open_question_generation_costs_nothing(make_model, batch):
    model = make_model()
    batch["labels"][:] = -100
    output = model(**batch)
    assert output.generation_loss == 0
    output.loss.backward()
    # Gradients of zero, not none: distributed training waits for every parameter.
    assert all(p.grad is not None and not p.grad.any() for p in model.decoder.parameters())


def test_text_blind_pass_is_blind(make_model, batch):
    """The contrast of image and question changes with the question's encoding alone."""
    model = make_model().eval()
    with torch.no_grad():
        image = model.vision(batch["pixel_values"])
        blind, _ = model.qformer(image)
        aware, attention = model.qformer(
            image, batch["input_ids"], batch["attention_mask"], return_attentions=True
        )
        other, _ = model.qformer(image, batch["input_ids"].flip(0), batch["attention_mask"].flip(0))
    assert blind.shape == aware.shape == (3, model.config.num_queries, 96)
    assert not torch.equal(aware, other) and not torch.allclose(aware, blind)
    assert attention.shape[-1] == image.shape[1]
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_it_learns_eight_steps_and_writes_what_it_learned(make_model, processor, batch):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    model.eval()
    tokens = model.generate(**inputs_of(batch), max_new_tokens=12)
    assert processor.batch_decode_answers(tokens)[1:] == [
        "lung",
        "large dark lesion in the left lung",
    ]
    with torch.no_grad():
        assert model(**inputs_of(batch)).logits.argmax(1)[:2].tolist() == [0, 2]


def test_repeated_pictures_are_encoded_once_to_the_same_numbers(make_model, batch):
    """As they are where each is encoded for itself: outputs, losses and every gradient.

    The losses of classification and generation: the contrastive one has other positives where each
    picture has a number of its own.
    """
    model = make_model()
    picture = torch.tensor([1, 0, 1])  # so that neither the first nor the last is number 0
    batch["pixel_values"] = batch["pixel_values"][picture]
    encoded = []
    model.vision.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))

    def run(image_index):
        model.zero_grad()
        output = model(**dict(batch, image_index=image_index))
        (output.classification_loss + output.generation_loss).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return output, gradients

    apart, expected = run(None)
    together, gradients = run(10 * picture)
    assert encoded == [3, 2]
    for name in ("logits", "fused", "classification_loss", "generation_loss"):
        torch.testing.assert_close(together[name], apart[name], rtol=1e-5, atol=1e-5, msg=name)
    assert gradients.keys() == expected.keys() and "vision.vit.pos_embed" in gradients
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-5 * max(1, scale), msg=name
        )


def test_the_contrast_is_the_same_where_repeated_pictures_are_encoded_once(make_model, batch):
    model = make_model()
    repeated, number = torch.tensor([1, 0, 1]), torch.tensor([7, 3, 7])
    batch["pixel_values"] = batch["pixel_values"][repeated]
    loss = model(**dict(batch, image_index=number)).contrastive_loss
    queries, _ = model.qformer(model.vision(batch["pixel_values"]))
    state = model.encode(**inputs_of(batch))
    expected = losses.contrastive_loss(
        torch.nn.functional.normalize(model.contrast_visual(queries), dim=-1),
        torch.nn.functional.normalize(model.contrast_text(state["question"][:, 0]), dim=-1),
        model.temperature,
        image_index=number,
        question_index=batch["question_index"],
        label_smoothing=0.1,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_the_picture_that_stands_first_is_taken(make_model, batch):
    """Pictures with one number should be the same; which one is encoded is fixed all the same."""
    model = make_model().eval()
    same = dict(inputs_of(batch), image_index=torch.tensor([5, 5, 2]))
    first = dict(inputs_of(batch), pixel_values=batch["pixel_values"][torch.tensor([0, 0, 2])])
    with torch.no_grad():
        torch.testing.assert_close(
            model(**same).logits, model(**first).logits, rtol=1e-5, atol=1e-5
        )


def test_generate_encodes_repeated_pictures_once(make_model, batch):
    model = make_model().eval()
    batch["pixel_values"] = batch["pixel_values"][torch.tensor([1, 0, 1])]
    words = model.generate(**inputs_of(batch), max_new_tokens=5)
    index = torch.tensor([1, 0, 1])
    assert torch.equal(
        model.generate(**inputs_of(batch), image_index=index, max_new_tokens=5), words
    )


def test_the_decoder_reads_the_image_where_it_is_told_to(make_model, batch):
    """Other image tokens behind the same fused streams change what it writes, or do not."""
    logits = {}
    for reads in (True, False):
        model = make_model(decoder_reads_image=reads).eval()
        assert hasattr(model, "image_projection") == reads
        with torch.no_grad():
            state = model.encode(**inputs_of(batch))
            for image in ("image", "other"):
                if image == "other":
                    state = dict(state, image=state["image"].flip(0))
                tokens, mask = model.decoder_input(state)
                logits[reads, image] = model.decoder.logits(tokens, mask, batch["labels"])
        assert mask.shape == tokens.shape[:2]
        if reads:  # their places are open to attention, those of padding are not
            patches = state["image"].shape[1]
            assert mask[:, -patches:].all()
            assert torch.equal(mask[:, 8:-patches], batch["attention_mask"])
            assert torch.equal(tokens[:, -patches:], model.image_projection(state["image"]))
    assert torch.equal(logits[False, "image"], logits[False, "other"])
    change = (logits[True, "image"] - logits[True, "other"]).abs().amax((1, 2))
    assert (change[[0, 2]] > 1e-3).all() and change[1] == 0  # the one in the middle stays


def test_the_decoder_does_not_read_the_image_by_default():
    assert not CMIMTLConfig().decoder_reads_image and not CMIMTLConfig().learns_from_scratch


def test_a_model_from_scratch_starts_as_it_says(make_model):
    """Linear layers of n inputs with n**-0.5, embeddings and queries with 1."""
    model = make_model()
    expected = {}
    for part in (model.vision, model.text, model.qformer, model.contrast_visual,
                 model.contrast_text, model.classifier, model.image_projection):  # fmt: skip
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                expected[module.weight] = module.in_features**-0.5
            elif isinstance(module, torch.nn.Embedding):
                expected[module.weight] = 1.0
    for layer in model.fusion.layers:
        expected[layer.in_proj.weight] = layer.in_proj.in_features**-0.5
    expected[model.qformer.queries] = 1.0
    expected[model.vision.vit.pos_embed] = 0.5
    expected[model.classifier.layers[-1].weight] *= 0.1
    assert len(expected) > 30
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, std in expected.items():
        # Five times the error of a standard deviation that is estimated from as many numbers.
        bound = 5 * std / (2 * parameter.numel()) ** 0.5
        assert parameter.std().item() == pytest.approx(std, abs=bound), names[parameter]
        assert abs(parameter.mean().item()) < 5 * std / parameter.numel() ** 0.5


def test_a_saved_model_that_learned_from_scratch_comes_back_as_it_was(make_model, tmp_path):
    model = make_model()
    assert model.config.learns_from_scratch
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path)
    again = CMIMTLForVisualQuestionAnswering.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


@pytest.mark.parametrize("belong", [True, False], ids=["belong together", "unrelated"])
def test_the_contrast_is_learned_where_question_and_image_belong_together(belong):
    """Eight grey pictures and eight questions: each picture has its own, or a new one each step.

    Where questions say nothing of the pictures, the mean answer, ln 8, is the best there is.
    """
    questions = [f"Is this picture number {word}?" for word in WORDS]
    preset = PRESETS["tiny"]
    processor = build_processor(preset, questions, ["yes"])
    torch.manual_seed(0)
    model = build_model(preset, vocabulary=AnswerVocabulary(["yes"]), processor=processor)
    size = preset.config["image_size"]
    greys = np.linspace(0, 255, len(WORDS)).astype(np.uint8)[:, None, None, None]
    batch = processor(text=questions)
    batch["pixel_values"] = processor.pixel_values(
        np.broadcast_to(greys, (8, size, size, 3)).copy()
    )
    batch["answer_scores"] = torch.zeros(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(60):
        order = torch.arange(8) if belong else torch.randperm(8)
        now = dict(batch, input_ids=batch["input_ids"][order])
        loss = model(**now, image_index=torch.arange(8), question_index=order).contrastive_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    last = sum(seen[-10:]) / 10
    # What label smoothing of 0.1 leaves of a loss that is met: 0.61 by itself.
    assert last < 1.2 if belong else abs(last - math.log(8)) < 0.2, seen


def test_saving_and_loading_keeps_every_bit(make_model, processor, batch, tmp_path):
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path).eval()
    assert isinstance(again, CMIMTLForVisualQuestionAnswering)
    with torch.no_grad():
        assert torch.equal(again(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits)
    assert again.config.id2label == {0: "yes", 1: "no", 2: "lung"}
    loaded = AutoProcessor.from_pretrained(tmp_path)
    texts = ["Which lesion is it?"]
    assert torch.equal(loaded(text=texts)["input_ids"], processor(text=texts)["input_ids"])
    assert loaded.max_question_length == processor.max_question_length


def test_weights_of_other_shapes_are_made_anew_where_that_is_asked_for(make_model, tmp_path):
    """Of one parameter; its neighbours are the saved ones."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(1.0)
    name = "fusion.layers.0.A_log"
    state = {**model.state_dict(), name: model.state_dict()[name][:, :8].clone()}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=rf"with {name} of shape \(192, 8\); the model's has"):
        CMIMTLForVisualQuestionAnswering.from_pretrained(tmp_path)
    again = CMIMTLForVisualQuestionAnswering.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    layer, old = again.fusion.layers[0], model.fusion.layers[0]
    fresh = torch.arange(1.0, 17.0).log().expand_as(layer.A_log)
    torch.testing.assert_close(layer.A_log.detach(), fresh)
    assert torch.equal(layer.D, old.D) and torch.equal(layer.dt_proj.bias, old.dt_proj.bias)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fusion": "sum"}, "fusion must be one of cross-mamba, cross-mamba-gated, transformer"),
        ({"num_queries": 0}, "num_queries must be positive, got 0"),
        (
            {"image_size": 100, "patch_size": 16},
            r"image_size must be a multiple of patch_size \(16\)",
        ),
        ({"d_model": 100}, r"fusion_heads must divide d_model \(100\), got 12"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ValueError, match=f"CMIMTLConfig: {message}"):
        CMIMTLConfig(**changes)


def test_bad_inputs(make_model, batch):
    model = make_model()
    with pytest.raises(ValueError, match="CMIMTL: pixel_values must have shape"):
        model(batch["pixel_values"][:, :, :8], batch["input_ids"])
    with pytest.raises(
        ValueError, match=r"input_ids must have the batch of pixel_values \(3\), got 2"
    ):
        model(batch["pixel_values"], batch["input_ids"][:2])


def test_base_has_the_papers_sizes(processor):
    """ViT-B/16 has 86 M parameters, RoBERTa-base 124 M, T5-base's decoder with embeddings 138 M."""
    preset = PRESETS["base"]
    config = build_config(preset, AnswerVocabulary(["yes", "no"]), processor, fusion="cross-mamba")
    config.text_config.vocab_size = config.qformer_config.vocab_size = 50265
    config.decoder_config.vocab_size = 32128
    with torch.device("meta"):
        model = CMIMTLForVisualQuestionAnswering(config)
    millions = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in model.named_children()
    }
    assert millions["vision"] == pytest.approx(86.1, abs=0.3)
    assert millions["text"] == pytest.approx(124.1, abs=0.3)
    assert millions["decoder"] == pytest.approx(137.9, abs=1.0)
    assert millions["fusion"] == pytest.approx(2 * 3.77, abs=0.2)
    assert model.qformer.queries.shape == (1, 32, 768)
    assert (config.image_size, config.patch_size, config.fusion_layers) == (384, 16, 2)
    assert (config.contrastive_weight, config.generation_weight) == (0.2, 0.3)
    assert not config.decoder_reads_image and not hasattr(model, "image_projection")
    assert not config.learns_from_scratch


def test_tiny_is_tiny(make_model):
    assert 5e5 < sum(p.numel() for p in make_model().parameters()) < 1e6
