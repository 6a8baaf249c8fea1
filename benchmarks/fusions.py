"""The fusions that are compared, at the paper's sizes, and their inputs."""

import functools
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

# batch, visual tokens, text tokens.
QUERIES = (16, 32, 32)  # the 32 queries of a Q-Former
PATCHES = (4, 577, 32)  # all patches of a ViT-B/16 at 384 pixels
SIZES = (QUERIES, PATCHES)

TRANSFORMER = "Transformer, 6 co-attention layers per stream"
PLAIN = "Cross-Mamba in plain PyTorch"
MAMBAS = "Cross-Mamba on mamba's reference scan"
OURS = "Cross-Mamba"
CO_ATTENTION = "Transformer co-attention"  # one layer of TRANSFORMER


def cross_mamba(layers: int = MAMBA_LAYERS, **options) -> nn.Module:
    return CrossMamba(D_MODEL, layers, **options)


def transformer(layers: int = TRANSFORMER_LAYERS) -> nn.Module:
    return CoAttention(D_MODEL, layers, num_heads=HEADS)


class OnMambasScan(nn.Module):
    """Cross-Mamba on the scan that users of mamba have where mamba's kernels do not run.

    This scan indexes its steps, so that its backward pass is quadratic in length. Nothing is
    recomputed, so that no scan runs outside of `forward`.
    """

    def __init__(self, **options):
        super().__init__()
        self.stack = cross_mamba(**options)

    def forward(self, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        with mock.patch.object(reference, "selective_scan", _mambas_scan):
            return self.stack(visual, text)


def _mambas_scan(u, delta, A, B, C, D, *, delta_bias, **_):
    """Stands in for `reference.selective_scan`, which the reference's cross scan calls."""
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

# The scans of these fusions are no ops whose work could be counted; it is the work of OURS.
UNFUSED = (PLAIN, MAMBAS)


@functools.cache
def check_kernels(device: str) -> None:
    """Raise unless kernels and reference agree on a stack of each kind of Cross-Mamba."""
    for options in ({}, {"interleave": "gated"}, {"bidirectional": True}):
        torch.manual_seed(0)
        stack = cross_mamba(**options).to(device)
        plain = cross_mamba(backend="reference", **options).to(device)
        plain.load_state_dict(stack.state_dict())
        inputs = streams(2, 9, 5, device)
        for a, b in zip(stack(*inputs), plain(*inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@functools.cache
def check_mambas_scan(device: str) -> None:
    """Raise unless Cross-Mamba on mamba's scan agrees with the reference and runs that scan."""
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


@functools.cache
def check_attention(device: str) -> None:
    """Raise unless the Transformer's fused attention agrees with plain attention in float64."""
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
    """Two streams that want gradients, as encoders give them."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(batch, n, D_MODEL, generator=generator).to(device).requires_grad_()
        for n in (n_visual, n_text)
    )


def forward(module: nn.Module, visual: Tensor, text: Tensor) -> Callable[[], object]:
    """The call of an inference."""
    return torch.no_grad()(lambda: module(visual, text))


def forward_backward(module: nn.Module, visual: Tensor, text: Tensor) -> Callable[[], object]:
    """The call of a training step without the optimizer: it gives the gradients of both streams and
    of every parameter."""
    wanted = [visual, text, *module.parameters()]
    ones = [torch.ones_like(x) for x in (visual, text)]
    return lambda: torch.autograd.grad(module(visual, text), wanted, ones)


MAKE = {"forward": forward, "forward+backward": forward_backward}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def compare(
    benchmark,
    record,
    suite: str,
    modules: dict[str, nn.Module],
    calls: dict[str, Callable[[], object]],
    which: str,
    rounds: int,
    **sizes,
) -> dict[str, dict]:
    """Time a call of each module and add a row for it, by the first one's time and by its limit.

    Args:
        benchmark, record: the fixtures.
        modules, calls: by the name of the candidate, the first one ours.
        which: the pass that the calls run.
        sizes: of the inputs, as the rows tell them.
    Returns:
        The rows by name.
    """
    work: dict[str, limits.Work] = {}

    def first(name: str, call: Callable[[], object]) -> None:
        count = parameters(modules[name])
        work[name], _ = limits.module_work(call, count, which, measure.DEVICE)

    with record.rates() as machine:
        timings, _ = measure.interleave(benchmark, calls, rounds, first)
    ours = next(iter(timings))
    rows = {}
    for name, timing in timings.items():
        limit = machine.limit(work[ours if name in UNFUSED else name], timing)
        ratio = timing.median / timings[ours].median
        rows[name] = record.add(suite, name, timing, **sizes, which=which, ratio=ratio, **limit)
    return rows


def peak_of_fusion(name: str, batch: int, n_visual: int, n_text: int):
    """For measure.peak_bytes: the call of one fusion, forward and backward."""
    module = FUSIONS[name]().to(measure.DEVICE)
    return forward_backward(module, *streams(batch, n_visual, n_text, measure.DEVICE))
