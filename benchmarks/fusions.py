"""What is compared: ways to fuse a visual and a text stream of the paper's sizes, and their
inputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import limits, measure
from cmimtl.fusion import CoAttention
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


GATED, BIDIRECTIONAL = "Cross-Mamba, gated", "Cross-Mamba, bidirectional"
FUSIONS: dict[str, Callable[[], nn.Module]] = {
    OURS: cross_mamba,
    GATED: lambda: cross_mamba(interleave="gated"),
    BIDIRECTIONAL: lambda: cross_mamba(bidirectional=True),
    TRANSFORMER: transformer,
    PLAIN: lambda: cross_mamba(backend="reference"),
}


def check_kernels(device: str) -> None:
    """Kernels and reference agree on a whole stack of each kind, or there is nothing to measure."""
    for options in ({}, {"interleave": "gated"}, {"bidirectional": True}):
        torch.manual_seed(0)
        stack = cross_mamba(**options).to(device)
        plain = cross_mamba(backend="reference", **options).to(device)
        plain.load_state_dict(stack.state_dict())
        inputs = streams(2, 9, 5, device)
        for a, b in zip(stack(*inputs), plain(*inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def check_attention(device: str) -> None:
    """The fused attention of the Transformer and attention written out in float64 agree."""
    torch.manual_seed(0)
    fused = transformer(layers=1).to(device)
    plain = transformer(layers=1).to(device).double()
    plain.load_state_dict(fused.state_dict())
    inputs = streams(2, 9, 5, device)
    with sdpa_kernel(SDPBackend.MATH):
        expected = plain(*(x.double() for x in inputs))
    for a, b in zip(fused(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


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


MAKE = {"forward": forward, "forward+backward": forward_backward}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def noted_work(modules: dict[str, nn.Module], which: str) -> tuple[dict, Callable]:
    """A dictionary, and what fills it with the `limits.Work` of each candidate: the `first` of
    `measure.interleave`."""
    work: dict[str, limits.Work] = {}

    def first(name: str, call: Callable[[], object]) -> None:
        count = parameters(modules[name])
        work[name], _ = limits.module_work(call, count, which, measure.DEVICE)

    return work, first


def peak_of_fusion(name: str, batch: int, n_visual: int, n_text: int):
    """For measure.peak_bytes: forward and backward."""
    module = FUSIONS[name]().to(measure.DEVICE)
    return forward_backward(module, *streams(batch, n_visual, n_text, measure.DEVICE))
