"""Cross-Mamba fusion against Transformer fusion, without a model around them, float32."""

import pytest

from benchmarks import fusions, measure
from benchmarks.measure import DEVICE
from cmimtl_kernels import testing

PASSES = ["forward", "forward+backward"]

TOO_SLOW = {
    (fusions.PATCHES, "forward+backward"): {
        fusions.MAMBAS: "left out: the backward pass of its scan is quadratic in length"
    }
}


def _name(size):
    return f"{size[0]}x{size[1]}+{size[2]}"


def _shape(size, which) -> dict:
    return dict(batch=size[0], n_visual=size[1], n_text=size[2], which=which)


@pytest.fixture(scope="module", autouse=True)
def green():
    """A fusion whose result is wrong gets no row."""
    fusions.check_kernels(DEVICE)
    fusions.check_attention(DEVICE)
    fusions.check_mambas_scan(DEVICE)


def _compare(benchmark, record, size, which, names, rounds):
    modules = {name: fusions.FUSIONS[name]().to(DEVICE) for name in names}
    calls = {
        name: fusions.MAKE[which](module, *fusions.streams(*size, DEVICE))
        for name, module in modules.items()
    }
    shape = _shape(size, which)
    rows = fusions.compare(benchmark, record, "fusion", modules, calls, rounds=rounds, **shape)
    for name, row in rows.items():
        row["parameters"] = fusions.parameters(modules[name])
        row["samples_per_second"] = size[0] / row["seconds"]


@pytest.mark.parametrize("size", fusions.SIZES, ids=_name)
@pytest.mark.parametrize("which", PASSES)
def test_time(benchmark, record, size, which):
    not_run = TOO_SLOW.get((size, which), {})
    names = [name for name in fusions.FUSIONS if name not in not_run]
    _compare(benchmark, record, size, which, names, rounds=9)
    for name, reason in not_run.items():
        record.add("fusion", name, **_shape(size, which), not_run=reason)


@pytest.mark.parametrize("size", fusions.SIZES, ids=_name)
@pytest.mark.parametrize("name", fusions.FUSIONS)
def test_memory(record, size, name):
    """The peak of forward and backward in a fresh process, gradients included, and what autograd
    keeps between them."""
    if reason := TOO_SLOW.get((size, "forward+backward"), {}).get(name):
        record.add("fusion memory", name, **_shape(size, "forward+backward"), not_run=reason)
        return
    module = fusions.FUSIONS[name]().to(DEVICE)
    batch, n_visual, n_text = size
    record.add(
        "fusion memory",
        name,
        **_shape(size, "forward+backward"),
        kept_bytes=testing.kept_bytes(module, *fusions.streams(*size, DEVICE)),
        peak_bytes=measure.peak_bytes(
            "benchmarks.fusions:peak_of_fusion",
            name=name,
            batch=batch,
            n_visual=n_visual,
            n_text=n_text,
        ),
        gradient_bytes=4 * fusions.parameters(module),
    )


@pytest.mark.quick
def test_quick(benchmark, record):
    """A row of batch 2 in few rounds, which shows that the comparison runs."""
    names = (fusions.OURS, fusions.TRANSFORMER)
    _compare(benchmark, record, (2, 32, 32), "forward+backward", names, rounds=3)
