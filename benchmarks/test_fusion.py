"""Cross-Mamba fusion against Transformer fusion at the paper's sizes, fusion alone, float32."""

import pytest
import torch

from benchmarks import fusions, measure
from cmimtl_kernels import testing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# batch, visual tokens, text tokens: the 32 queries of a Q-Former; all patches of ViT-B/16 at 384
SIZES = [(16, 32, 32), (4, 577, 32)]

# In plain PyTorch the scan's backward pass takes a quarter of a minute; at 577 tokens, minutes.
TOO_SLOW = {(4, 577, 32): {fusions.PLAIN: "takes minutes"}}


def _name(size):
    return f"{size[0]}x{size[1]}+{size[2]}"


@pytest.fixture(scope="module", autouse=True)
def green():
    """No row of a fusion that is wrong: kernels and reference agree on the whole stack."""
    torch.manual_seed(0)
    stack = fusions.cross_mamba().to(DEVICE)
    plain = fusions.cross_mamba(backend="reference").to(DEVICE)
    plain.load_state_dict(stack.state_dict())
    inputs = fusions.streams(2, 9, 5, DEVICE)
    for a, b in zip(stack(*inputs), plain(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=_name)
@pytest.mark.parametrize("which", ["forward", "forward+backward"])
def test_time(benchmark, record, size, which):
    make = fusions.forward if which == "forward" else fusions.forward_backward
    calls, not_run = {}, TOO_SLOW.get(size, {})
    modules = {n: f().to(DEVICE) for n, f in fusions.FUSIONS.items() if n not in not_run}
    for name, module in modules.items():
        calls[name] = make(module, *fusions.streams(*size, DEVICE))
    ours, others = measure.interleave(benchmark, calls.pop(fusions.OURS), calls, rounds=7)
    batch, n_visual, n_text = size
    shape = dict(batch=batch, n_visual=n_visual, n_text=n_text, which=which)
    for name, timing in {fusions.OURS: ours, **others}.items():
        record.add(
            "fusion",
            name,
            timing,
            **shape,
            parameters=sum(p.numel() for p in modules[name].parameters()),
            samples_per_second=batch / timing.median,
            ratio=timing.median / ours.median,
        )
    for name, reason in not_run.items():
        record.add("fusion", name, **shape, not_run=reason)


@pytest.mark.parametrize("size", SIZES, ids=_name)
@pytest.mark.parametrize("name", [n for n in fusions.FUSIONS if n != fusions.PLAIN])
def test_memory(record, size, name):
    """True peak of forward and backward in a fresh process, gradients included; what autograd
    keeps."""
    batch, n_visual, n_text = size
    sizes = dict(batch=batch, n_visual=n_visual, n_text=n_text)
    module = fusions.FUSIONS[name]().to(DEVICE)
    inputs = fusions.streams(*size, DEVICE)
    record.add(
        "fusion memory",
        name,
        **sizes,
        kept_bytes=testing.kept_bytes(module, *inputs),
        peak_bytes=measure.peak_bytes(
            "benchmarks.fusions:peak_of_fusion", name=name, backward=True, **sizes
        ),
    )


@pytest.mark.quick
def test_quick(benchmark, record):
    """Batch 2 and one round of each, to see that the comparison runs."""
    size = (2, 32, 32)
    modules = {n: fusions.FUSIONS[n]().to(DEVICE) for n in (fusions.OURS, fusions.TRANSFORMER)}
    calls = {
        n: fusions.forward_backward(m, *fusions.streams(*size, DEVICE)) for n, m in modules.items()
    }
    ours, others = measure.interleave(benchmark, calls.pop(fusions.OURS), calls, rounds=3)
    for name, timing in {fusions.OURS: ours, **others}.items():
        record.add(
            "fusion",
            name,
            timing,
            batch=2,
            n_visual=32,
            n_text=32,
            which="forward+backward",
            samples_per_second=2 / timing.median,
            ratio=timing.median / ours.median,
        )
