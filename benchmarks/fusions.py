"""What is compared: ways to fuse a visual and a text stream of the paper's sizes, and their
inputs."""

from collections.abc import Callable

import torch
from cmimtl.fusion import CoAttention
from torch import Tensor, nn

from cmimtl_kernels import CrossMamba

D_MODEL, HEADS = 768, 12
MAMBA_LAYERS, TRANSFORMER_LAYERS = 2, 6

TRANSFORMER = "Transformer, 6 co-attention layers per stream"
PLAIN = "Cross-Mamba in plain PyTorch"
OURS = "Cross-Mamba"


def cross_mamba(layers: int = MAMBA_LAYERS, **options) -> nn.Module:
    return CrossMamba(D_MODEL, layers, **options)


def transformer(layers: int = TRANSFORMER_LAYERS) -> nn.Module:
    return CoAttention(D_MODEL, layers, num_heads=HEADS)


FUSIONS: dict[str, Callable[[], nn.Module]] = {
    OURS: cross_mamba,
    "Cross-Mamba, gated": lambda: cross_mamba(interleave="gated"),
    "Cross-Mamba, bidirectional": lambda: cross_mamba(bidirectional=True),
    TRANSFORMER: transformer,
    PLAIN: lambda: cross_mamba(backend="reference"),
}


def streams(batch: int, n_visual: int, n_text: int, device: str) -> tuple[Tensor, Tensor]:
    """Two streams with gradient, as encoders give them."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(batch, n, D_MODEL, generator=generator).to(device).requires_grad_()
        for n in (n_visual, n_text)
    )


def forward(module: nn.Module, visual: Tensor, text: Tensor) -> Callable[[], object]:
    """Inference: no gradients."""
    return torch.no_grad()(lambda: module(visual, text))


def forward_backward(module: nn.Module, visual: Tensor, text: Tensor) -> Callable[[], object]:
    """A training step's work without the optimizer: gradients of both streams and every
    parameter."""
    wanted = [visual, text, *module.parameters()]
    ones = [torch.ones_like(x) for x in (visual, text)]
    return lambda: torch.autograd.grad(module(visual, text), wanted, ones)


def peak_of_fusion(name: str, batch: int, n_visual: int, n_text: int, backward: bool):
    """For measure.peak_bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = FUSIONS[name]().to(device)
    make = forward_backward if backward else forward
    return make(module, *streams(batch, n_visual, n_text, device))
