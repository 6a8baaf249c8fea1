"""The fusions, all called as fusion(visual, text, visual_lengths, text_lengths) -> visual, text."""

from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmimtl import names
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl_kernels import CrossMamba, CrossMambaBlock


def build_fusion(config: CMIMTLConfig) -> nn.Module:
    """Build the fusion that the configuration names."""
    return names.load(names.FUSIONS[config.fusion])(config)


def cross_mamba(config: CMIMTLConfig, interleave: str = "product-sum") -> nn.Module:
    """The fusion of the paper: Cross-Mamba blocks over products and sums of the two streams."""
    return CrossMamba(
        config.d_model,
        config.fusion_layers,
        interleave=interleave,
        bidirectional=config.fusion_bidirectional,
        recompute=config.fusion_recompute,
    )


def gated_cross_mamba(config: CMIMTLConfig) -> nn.Module:
    """Cross-Mamba with the block of the authors' released code."""
    return cross_mamba(config, "gated")


def co_attention(config: CMIMTLConfig) -> nn.Module:
    """Transformer layers of two streams that attend to each other."""
    return CoAttention(
        config.d_model, config.fusion_layers, config.fusion_heads, dropout=config.fusion_dropout
    )


class InitialisesItself(Protocol):
    """A module that knows how its parameters start."""

    def reset_parameters(self) -> None:
        """Initialise them."""


def initialises_itself(module: nn.Module) -> TypeGuard[InitialisesItself]:
    """Whether a module of a fusion has an initialisation of its own, by ``reset_parameters``."""
    return isinstance(module, CrossMambaBlock) or getattr(module, "initialises_itself", False)


class CoAttention(nn.Module):
    """Transformer fusion: per stream self-attention, attention to the other stream, feed-forward.

        n      = norm(x)
        x      = x + attention(n, n)              queries from the first, keys and values from
        x      = x + attention(norm(x), other)    the second argument
        x      = x + feed_forward(norm(x))

    These three parts make a layer. They have weights of their own for each stream, and a layer
    reads both streams as they were before it.

    Source: the co-attention layers of METER (Dou et al. 2022) and M3AE (Chen et al. 2022), here
    with the normalisation before each part.

    Args:
        d_model: number of features of a token, in both streams.
        n_layers: number of layers per stream.
        num_heads: number of attention heads; it divides d_model.
        dropout: share of each part's output that is dropped in training.
    Shapes: visual (batch, L_v, d_model), text (batch, L_t, d_model), lengths (batch,) or None. The
        outputs have the shapes of the inputs.
    """

    def __init__(self, d_model: int, n_layers: int, num_heads: int, *, dropout: float = 0.0):
        super().__init__()
        self.visual_layers, self.text_layers = (
            nn.ModuleList(_CoAttentionLayer(d_model, num_heads, dropout) for _ in range(n_layers))
            for _ in range(2)
        )

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_lengths: Tensor | None = None,
        text_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        visual_mask = attention_mask(visual, visual_lengths)
        text_mask = attention_mask(text, text_lengths)
        for of_visual, of_text in zip(self.visual_layers, self.text_layers, strict=True):
            visual, text = (
                of_visual(visual, text, visual_mask, text_mask),
                of_text(text, visual, text_mask, visual_mask),
            )
        return visual, text


class _CoAttentionLayer(nn.Module):
    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_forward_norm = (
            nn.LayerNorm(d_model) for _ in range(3)
        )
        self.self_attention = Attention(d_model, num_heads)
        self.cross_attention = Attention(d_model, num_heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, other: Tensor, mask, other_mask) -> Tensor:
        n = self.self_norm(x)
        x = x + self.dropout(self.self_attention(n, n, mask))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), other, other_mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Attention(nn.Module):
    """Multi-head attention of x (batch, n, d_model) to y (batch, m, d_model)."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.output = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, length, dim)
            for part in (self.query(x), *self.key_value(y).chunk(2, dim=-1))
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(out.transpose(1, 2).flatten(2))


def attention_mask(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """(batch, 1, 1, length) bool, True where a token of x may be attended to.

    It is None where all tokens may be.
    """
    if lengths is None:
        return None
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]
