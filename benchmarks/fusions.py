"""What is compared: ways to fuse a visual and a text stream of the paper's sizes, and their
inputs."""

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import baselines, limits, measure
from cmimtl.modelling.fusion import CoAttention
from cmimtl_kernels import CrossMamba, reference

D_MODEL, HEADS = 768, 12
MAMBA_LAYERS, TRANSFORMER_LAYERS = 2, 6

TRANSFORMER = "Transformer, 6 co-attention layers per stream"
PLAIN = "Cross-Mamba in plain PyTorch"
MAMBAS = "Cross-Mamba on mamba's reference scan"
OURS = "Cross-Mamba"


def cross_mamba(layers: int = MAMBA_LAYERS, **options) -> nn.Module:
    return CrossMamba(D_MODEL, layers, **options)


def transformer(layers: int = TRANSFORMER_LAYERS) -> nn.Module:
    return CoAttention(D_MODEL, layers, num_heads=HEADS)


class OnMambasScan(nn.Module):
    """Cross-Mamba with the scan that users of mamba have where its kernels do not run.

    It is as plain as this library's reference, but indexes its steps, and so its backward pass is
    quadratic in length. Without recomputation, so that no scan runs outside of `forward`.
    """

    def __init__(self, **options):
        super().__init__()
        self.stack = cross_mamba(**options)

    def forward(self, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        with mock.patch.object(reference, "selective_scan", _mambas_scan):
            return self.stack(visual, text)


def _mambas_scan(u, delta, A, B, C, D, *, delta_bias, **_):
    """In the place of `reference.selective_scan`, which `cross_selective_scan` calls."""
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    out = baselines.mamba_reference(u, delta, A, B, C, D, None, delta_bias)
    return out.transpose(1, 2), None


GATED, BIDIRECTIONAL = "Cross-Mamba, gated", "Cross-Mamba, bidirectional"
FUSIONS: dict[str, Callable[[], nn.Module]] = {
    OURS: cross_mamba,
    GATED: lambda: cross_mamba(interleave="gated"),
    BIDIRECTIONAL: lambda: cross_mamba(bidirectional=True),
    TRANSFORMER: transformer,
    PLAIN: lambda: cross_mamba(backend="reference"),
    MAMBAS: lambda: OnMambasScan(backend="reference", recompute=False),
}

# Their scan is no op that could be counted; they compute what OURS does.
UNFUSED = (PLAIN, MAMBAS)


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


def check_mambas_scan(device: str) -> None:
    """The stack on mamba's scan and on this library's reference agree, and are not one scan."""
    plain = cross_mamba(backend="reference").to(device)
    on_mambas = FUSIONS[MAMBAS]().to(device)
    on_mambas.stack.load_state_dict(plain.state_dict())
    inputs = streams(2, 9, 5, device)
    with mock.patch.object(baselines, "mamba_reference", wraps=baselines.mamba_reference) as scan:
        found = on_mambas(*inputs)
    if scan.call_count != MAMBA_LAYERS:
        raise AssertionError(f"mamba's scan must run in each layer, ran {scan.call_count} times")
    for a, b in zip(found, plain(*inputs), strict=True):
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
