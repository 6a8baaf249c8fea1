"""The question-aware Q-Former: learnable queries that read an image, with or without a question."""

import torch
from torch import Tensor, nn
from transformers import InstructBlipQFormerModel

from cmimtl.modelling.config import CMIMTLConfig


class QFormer(nn.Module):
    """Learnable queries that read an image through InstructBLIP's Q-Former.

    Called with a question, the queries attend to it too, and its outputs become the visual stream
    of the fusion. Called without a question, it reads the image alone, with the same weights, for
    the contrastive loss: outputs that have seen the question could make that loss small without the
    image.
    """

    def __init__(self, config: CMIMTLConfig, encoder_hidden_size: int):
        super().__init__()
        config.qformer_config.encoder_hidden_size = encoder_hidden_size
        # Only eager attention gives the attention over the patches, which is an output of this
        # part.
        self.encoder = InstructBlipQFormerModel._from_config(
            config.qformer_config, attn_implementation="eager"
        )
        # Only the queries' outputs are read, so the last layer needs no feed-forward for the
        # question.
        last = self.encoder.encoder.layer[-1]
        last.intermediate, last.output = nn.Identity(), _Skip()
        self.hidden_size = config.qformer_config.hidden_size
        self.queries = nn.Parameter(torch.empty(1, config.num_queries, self.hidden_size))
        self.reset_parameters(config.initializer_range)

    def reset_parameters(self, std: float) -> None:
        """Draw the queries from N(0, std²)."""
        nn.init.normal_(self.queries, std=std)

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Read an image.

        Args:
            image: (batch, tokens, encoder_hidden_size).
            input_ids, attention_mask: (batch, length), the question; both None to read the image
                alone.
            return_attentions: whether to return the last cross-attention too.
        Returns:
            the queries' outputs, (batch, num_queries, hidden_size), and the last cross-attention,
            (batch, heads, num_queries, tokens), or None.
        """
        batch, num_queries = image.shape[0], self.queries.shape[1]
        if attention_mask is not None:
            seen = attention_mask.new_ones(batch, num_queries)
            attention_mask = torch.cat((seen, attention_mask), dim=1)
        output = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            query_embeds=self.queries.expand(batch, -1, -1),
            encoder_hidden_states=image,
            output_attentions=return_attentions,
        )
        attentions = output.cross_attentions[-1] if return_attentions else None
        return output.last_hidden_state[:, :num_queries], attentions


class _Skip(nn.Module):
    """Takes the place of the end of a feed-forward layer, and returns only its residual."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return residual
