"""The whole model of a preset with random weights, and random inputs; nothing is fetched."""

from collections.abc import Callable

import torch

from benchmarks import measure
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.modelling.presets import PRESETS

# Tokens of the question, tokens of the answer, answer classes (about SLAKE's).
QUESTION, ANSWER, CLASSES = 32, 8, 220

# How many entries the vocabularies of questions and answers have. Those of the base preset are
# RoBERTa's and T5's; the tokenizers of the tiny preset learn about as many from a small data set.
VOCABULARIES = {"base": (50265, 32128), "tiny": (1000, 1000)}


def build(preset: str, fusion: str) -> CMIMTLForVisualQuestionAnswering:
    """The model of a preset, not trained, with the same weights at every call."""
    words, pieces = VOCABULARIES[preset]
    config = PRESETS[preset].config
    torch.manual_seed(0)
    return CMIMTLForVisualQuestionAnswering(
        CMIMTLConfig(
            **{
                **config,
                "text_config": {**config["text_config"], "vocab_size": words},
                "decoder_config": {
                    **config["decoder_config"],
                    "vocab_size": pieces,
                    "decoder_start_token_id": 0,
                },
            },
            fusion=fusion,
            id2label={index: str(index) for index in range(CLASSES)},
            label2id={str(index): index for index in range(CLASSES)},
        )
    )


def inputs(
    model: CMIMTLForVisualQuestionAnswering, batch: int, targets: bool, device: str
) -> dict[str, torch.Tensor]:
    """The arguments of the model's forward, with the targets of all three losses if asked for."""
    config, generator = model.config, torch.Generator().manual_seed(0)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(device)

    size = config.image_size
    arguments = {
        "pixel_values": torch.randn(batch, 3, size, size, generator=generator).to(device),
        "input_ids": integers(4, config.text_config.vocab_size, batch, QUESTION),
    }
    if targets:
        arguments["answer_scores"] = torch.zeros(batch, CLASSES, device=device)
        arguments["answer_scores"][torch.arange(batch), integers(0, CLASSES, batch)] = 1
        arguments["labels"] = integers(2, config.decoder_config.vocab_size, batch, ANSWER)
    return arguments


def forward(model: CMIMTLForVisualQuestionAnswering, batch: int, device: str) -> Callable:
    """The call of an inference, which scores every class of answers."""
    arguments = inputs(model, batch, False, device)
    model.eval()
    return torch.no_grad()(lambda: model(**arguments).logits)


def forward_backward(model: CMIMTLForVisualQuestionAnswering, batch: int, device: str) -> Callable:
    """The call of a training step without the optimizer: it computes all three losses and the
    gradient of every parameter."""
    arguments = inputs(model, batch, True, device)
    model.train()
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(model(**arguments).loss, parameters, allow_unused=True)


MAKE = {"forward": forward, "forward+backward": forward_backward}


def peak_of_model(preset: str, fusion: str, batch: int, which: str) -> Callable:
    """For measure.peak_bytes: the call of one model and pass."""
    device = measure.DEVICE
    return MAKE[which](build(preset, fusion).to(device), batch, device)
