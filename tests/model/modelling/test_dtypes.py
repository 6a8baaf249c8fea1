"""Models in half precision, however they became so, and the masks that say what a question is."""

import numpy as np
import pytest
import torch

from cmimtl.evaluation.answer import QuestionAnswerer
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from tests.model.conftest import QUESTIONS

WIDE = ("A_log", "D")


def _loaded(model, dtype, folder):
    model.save_pretrained(folder)
    return CMIMTLForVisualQuestionAnswering.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("way", ["from_pretrained", "to"])
@pytest.mark.parametrize("fusion", ["cross-mamba", "scan-concatenated", "transformer"])
def test_a_model_of_another_dtype(make_model, processor, batch, tmp_path, fusion, way, dtype):
    """Rounding changed a logit by at most 0.023 standard deviations of all, in bfloat16."""
    wide = make_model(fusion).eval()
    with torch.no_grad():
        expected = wide(**batch)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    model = wide.to(dtype) if way == "to" else _loaded(wide, dtype, tmp_path).eval()

    half = dtype != torch.float64
    for name, parameter in model.named_parameters():
        if half and name.rpartition(".")[2] in WIDE:
            assert parameter.dtype == torch.float32, name
            assert torch.equal(parameter, before[name]), name
        elif way == "to" or not (name.endswith("wo.weight") or name.rpartition(".")[2] in WIDE):
            assert parameter.dtype == dtype, name
    pixels = batch["pixel_values"]
    with torch.no_grad():
        output = model(**batch | {"pixel_values": pixels.to(dtype)})
        error = (output.logits.float() - expected.logits).abs().max() / expected.logits.std()
        assert error < (0.1 if half else 1e-5)
        assert output.loss.float().item() == pytest.approx(expected.loss.item(), rel=0.02)
        with pytest.raises(ValueError, match=r"pixel_values must have the model's dtype"):
            model(**batch)
    answerer = QuestionAnswerer(model, processor)
    picture = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    assert answerer.answer(picture, QUESTIONS[0]).generated is not None


def _padded_on_the_left(ids, mask):
    rows = [torch.cat((torch.where(~m)[0], torch.where(m)[0])) for m in mask.bool()]
    return torch.stack([row[order] for row, order in zip(ids, rows, strict=True)]), torch.stack(
        [row[order] for row, order in zip(mask, rows, strict=True)]
    )


def test_a_question_is_the_first_tokens_of_its_row(make_model, batch):
    model = make_model().eval()
    pixels, ids, mask = (batch[n] for n in ("pixel_values", "input_ids", "attention_mask"))
    assert mask[0].sum() < mask.shape[1]
    hole, nothing, two = mask.clone(), mask.clone(), mask.clone()
    hole[1, 3] = 0
    nothing[2] = 0
    two[0, 0] = 2
    wrong = {
        "left": _padded_on_the_left(ids, mask),
        "hole": (ids, hole),
        "nothing": (ids, nothing),
        "two": (ids, two),
        "half": (ids, mask / 2),
        "short": (ids, mask[:, :-1]),
    }
    for name, (tokens, seen) in wrong.items():
        with pytest.raises(ValueError, match=r"^CMIMTL: attention_mask must .*got"):
            model(pixels, tokens, seen)
            raise AssertionError(name)
    with torch.no_grad():
        expected = model(pixels, ids, mask).logits
        for kind in (torch.bool, torch.int32, torch.float32):
            assert torch.equal(model(pixels, ids, mask.to(kind)).logits, expected)


@pytest.mark.parametrize("part", ["tokenizer", "answer_tokenizer"])
def test_the_processor_pads_on_the_right(processor, monkeypatch, part):
    texts = {"text": QUESTIONS, "answers": ["yes", "no", "dark lesion in the lung"]}
    expected = processor(**texts)
    monkeypatch.setattr(getattr(processor, part), "padding_side", "left")
    for name, tensor in processor(**texts).items():
        assert torch.equal(tensor, expected[name]), name
