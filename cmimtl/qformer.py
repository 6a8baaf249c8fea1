"""The question-aware Q-Former: learnable queries that read an image, with or without a question."""

import torch
from torch import Tensor, nn
from transformers import InstructBlipQFormerModel

from cmimtl.config import CMIMTLConfig


class QFormer(nn.Module):
    """Learnable queries through InstructBLIP's Q-Former.

    Called with a question its queries attend to it: the visual stream of the fusion. Called without
    one it sees the image alone, with the same weights: the contrastive loss, which a pass that has
    seen the question could meet without looking at the image.
    """

    def __init__(self, config: CMIMTLConfig, encoder_hidden_size: int):
        super().__init__()
        config.qformer_config.encoder_hidden_size = encoder_hidden_size
        # Eager attention: the attention over the patches is an output of this part.
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
        """Queries ~ N(0, std)."""
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
            input_ids, attention_mask: (batch, length), the question; both None for the text-blind
                pass.
            return_attentions: also give the last cross-attention.
        Returns:
            (batch, num_queries, hidden_size) and None or (batch, heads, num_queries, tokens).
        """
        batch, num_queries = image.shape[0], self.queries.shape[1]
        if input_ids is not None:
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
    """In the place of a feed-forward's output: its residual alone."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return residual
