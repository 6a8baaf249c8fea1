"""Fusions that take Cross-Mamba apart: each lacks one thing that it has, or has another instead.

    scan           a selective scan mixes the tokens       attention      self-attention does
    interleaved    the tokens are products and sums        concatenated   they are the two streams

                    interleaved                     concatenated
    scan            `cross-mamba` itself            `scan-concatenated`
    attention       `attention-interleaved`         `attention-concatenated`

and with products alone, sums alone, or no fusion at all. All are called as
fusion(visual, text, visual_lengths, text_lengths) -> visual, text.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.fusion import Attention, attention_mask
from cmimtl_kernels import selective_scan
from cmimtl_kernels.precision import KeepsFloat32
from cmimtl_kernels.resample import align, blank_padding
from cmimtl_kernels.submodules import convolve, step_size


def scan_concatenated(config: CMIMTLConfig) -> nn.Module:
    """Mamba layers over the visual and then the text tokens."""
    return _Stack(config, lambda: MambaLayer(config.d_model))


def scan_of_products(config: CMIMTLConfig) -> nn.Module:
    """Cross-Mamba without the sums."""
    return _Stack(config, lambda: MambaLayer(config.d_model, torch.mul))


def scan_of_sums(config: CMIMTLConfig) -> nn.Module:
    """Cross-Mamba without the products."""
    return _Stack(config, lambda: MambaLayer(config.d_model, torch.add))


def attention_concatenated(config: CMIMTLConfig) -> nn.Module:
    """A Transformer encoder over the visual and then the text tokens."""
    return _Stack(config, lambda: EncoderLayer(config, interleaved=False))


def attention_interleaved(config: CMIMTLConfig) -> nn.Module:
    """A Transformer encoder over the interleaved products and sums of the two streams."""
    return _Stack(config, lambda: EncoderLayer(config, interleaved=True))


def none(config: CMIMTLConfig) -> nn.Module:
    """Nothing: the heads read both streams as they are."""
    return _Stack(config, None)


class _Stack(nn.Module):
    """As many layers as the configuration says, each called as the fusion is."""

    def __init__(self, config: CMIMTLConfig, layer: Callable[[], nn.Module] | None):
        super().__init__()
        count = config.fusion_layers if layer is not None else 0
        self.layers = nn.ModuleList(layer() for _ in range(count) if layer is not None)

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_lengths: Tensor | None = None,
        text_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if visual_lengths is not None:
            raise ValueError(
                "fusion: visual_lengths must be left out for the fusions of the experiments, whose"
                f" visual stream has no padding, got {tuple(visual_lengths.shape)}."
            )
        for layer in self.layers:
            visual, text = layer(visual, text, text_lengths)
        return visual, text


class MambaLayer(KeepsFloat32):
    """A Mamba layer over tokens that are made of the two streams.

    It has the parameters of a `cmimtl_kernels.CrossMambaBlock` and its steps but the interleaving:
    the tokens are the two streams one after the other or, with combine, the products or the sums of
    the two, whose outputs go to both streams.

    Args:
        d_model: number of features of a token, in both streams.
        combine: what makes one token of two, or None for the two streams one after the other.
    """

    initialises_itself = True

    def __init__(
        self, d_model: int, combine: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.combine = combine
        self.d_inner, self.d_state, self.dt_rank = 2 * d_model, 16, math.ceil(d_model / 16)
        self.norm = nn.LayerNorm(d_model)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, 4, groups=self.d_inner, padding=3)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, self.d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.d_inner, dtype=torch.float32))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # as in the block
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise what `cmimtl_kernels.CrossMambaBlock.reset_parameters` does, in its way."""
        self.A_log.copy_(torch.arange(1.0, self.d_state + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        bound = self.dt_rank**-0.5
        self.dt_proj.weight.uniform_(-bound, bound)
        step = torch.exp(torch.rand(self.d_inner) * math.log(100) + math.log(1e-3))
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(
        self, visual: Tensor, text: Tensor, text_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n_v, n_t = visual.shape[1], text.shape[1]
        (u_v, z_v), (u_t, z_t) = (
            self.in_proj(self.norm(x)).chunk(2, dim=-1)
            for x in (visual, blank_padding(text, text_lengths))
        )
        if self.combine is None:
            lengths = None if text_lengths is None else text_lengths + n_v
            y = self._scan(self._convolve(torch.cat((u_v, u_t), 1), lengths), lengths)
            y = self.out_proj(y * F.silu(torch.cat((z_v, z_t), 1)))
            y_v, y_t = y.split((n_v, n_t), 1)
            return visual + y_v, text + y_t
        c_t, z_t = (
            align(x, n_v, text_lengths, None) for x in (self._convolve(u_t, text_lengths), z_t)
        )
        y = self._scan(self.combine(self._convolve(u_v, None), c_t), None)
        y = self.out_proj(y * F.silu(z_v * z_t))
        return visual + y, text + align(y, n_t, None, text_lengths)

    def _convolve(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        return convolve(self.conv1d, u, lengths, reverse=False, backend="auto")

    def _scan(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        r, B, C = self.x_proj(x).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        delta, delta_bias = step_size(self.dt_proj, r)
        return selective_scan(
            x,
            delta,
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            delta_bias=delta_bias,
            delta_softplus=True,
            lengths=lengths,
        )


class EncoderLayer(nn.Module):
    """A Transformer encoder layer over the tokens of the two streams.

        x = tokens of both streams
        x = x + attention(norm(x))
        x = x + feed_forward(norm(x))

    Interleaved, the tokens are the products and sums that Cross-Mamba scans, and what the layer
    adds to a product goes to the visual stream, and to a sum to the text stream.

    Args:
        config: its ``fusion_feed_forward`` is the width of the feed-forward part.
        interleaved: whether the tokens are products and sums, or the streams one after the other.
    """

    def __init__(self, config: CMIMTLConfig, *, interleaved: bool):
        super().__init__()
        width = config.fusion_feed_forward or 4 * config.d_model
        self.interleaved = interleaved
        if interleaved:
            self.stream_norm = nn.LayerNorm(config.d_model)
        self.attention_norm, self.feed_forward_norm = (
            nn.LayerNorm(config.d_model) for _ in range(2)
        )
        self.attention = Attention(config.d_model, config.fusion_heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.d_model, width), nn.GELU(), nn.Linear(width, config.d_model)
        )
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(
        self, visual: Tensor, text: Tensor, text_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n_v, n_t = visual.shape[1], text.shape[1]
        text = blank_padding(text, text_lengths)
        if not self.interleaved:
            lengths = None if text_lengths is None else text_lengths + n_v
            added = self._encode(torch.cat((visual, text), 1), lengths)
            y_v, y_t = added.split((n_v, n_t), 1)
            return visual + y_v, text + y_t
        v = self.stream_norm(visual)
        t = align(self.stream_norm(text), n_v, text_lengths, None)
        added = self._encode(torch.stack((v * t, v + t), 2).flatten(1, 2), None)
        y_v, y_t = added[:, 0::2], added[:, 1::2]
        return visual + y_v, text + align(y_t, n_t, None, text_lengths)

    def _encode(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """What the two parts add to the tokens."""
        n = self.attention_norm(x)
        added = self.dropout(self.attention(n, n, attention_mask(x, lengths)))
        return added + self.dropout(self.feed_forward(self.feed_forward_norm(x + added)))
