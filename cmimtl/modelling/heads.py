"""The two heads that read the fused streams: a classifier of answers, and a T5 decoder."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from cmimtl.modelling.config import CMIMTLConfig


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over the valid tokens: (batch, length, dim), (batch, length) -> (batch, dim)."""
    valid = mask[..., None].to(x.dtype)
    # Padding may hold anything, NaN included, so it is replaced and not multiplied by 0.
    total = torch.where(valid.bool(), x, x.new_zeros(())).sum(1)
    return total / valid.sum(1).clamp(min=1)


class AnswerClassifier(nn.Module):
    """Gives one logit per answer class, from the masked means of both streams."""

    def __init__(self, config: CMIMTLConfig):
        super().__init__()
        width = 2 * config.d_model
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(config.fusion_dropout),
            nn.Linear(width, cast("int", config.num_labels)),
        )

    def forward(
        self, visual: Tensor, visual_mask: Tensor, text: Tensor, text_mask: Tensor
    ) -> Tensor:
        return self.layers(
            torch.cat((masked_mean(visual, visual_mask), masked_mean(text, text_mask)), dim=-1)
        )


class AnswerDecoder(T5ForConditionalGeneration):
    """T5 without its encoder. The fused streams take the place of the encoder's output."""

    _tied_weights_keys = {  # noqa: RUF012 - transformers reads a plain dict
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    }

    def __init__(self, config):
        super().__init__(config)
        del self.encoder

    def logits(self, fused: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Logits of the answers' tokens under teacher forcing.

        Args:
            fused: (batch, tokens, d_model), the tokens to attend to.
            mask: (batch, tokens), 1 at the valid ones.
            labels: (batch, length), the answers' tokens, -100 at padding.
        Returns:
            (batch, length, vocabulary).
        """
        return self(
            encoder_outputs=BaseModelOutput(last_hidden_state=fused),
            attention_mask=mask,
            decoder_input_ids=self._shift_right(labels),
            use_cache=False,
        ).logits

    def write(self, fused: Tensor, mask: Tensor, **options):
        """Write answers: call ``generate`` on the fused streams; options are those it takes."""
        return self.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=fused), attention_mask=mask, **options
        )
