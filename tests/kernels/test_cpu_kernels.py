"""What is special to the CPU kernels: the same bits at any number of threads and any place in a
batch, and memory that does not grow with the states. See test_instruction_sets.py too."""

import os

import pytest
import torch

from benchmarks import measure
from cmimtl_kernels import _library, ops, testing

NOT_BUILT = _library.load_libraries()["cpu"]
pytestmark = pytest.mark.skipif(NOT_BUILT is not None, reason=f"the CPU library: {NOT_BUILT}")

OPS = ("selective_scan", "cross_selective_scan")
WEIGHTS = ("A", "D", "delta_bias")


def run(op, inputs, **options):
    """Outputs and gradients by name; each sample gets the same incoming gradients."""
    given = {n: x for n, x in inputs.items() if x is not None}
    leaves = {n: x.detach().requires_grad_() for n, x in given.items() if x.is_floating_point()}
    outputs = getattr(ops, op)(
        **given | leaves, delta_softplus=True, return_last_state=True, backend="cpu", **options
    )
    cotangents = [
        torch.linspace(-1, 1, out[0].numel()).reshape(out[0].shape).expand_as(out).to(out.dtype)
        for out in outputs
    ]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    results = {f"out_{i}": out for i, out in enumerate(outputs)}
    return results | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_at_any_number_of_threads(op, dtype):
    sizes = {"batch": 3, "length": 150, "dim": 200, "ngroups": 2, "dtype": dtype}
    inputs = testing.scan_inputs(**sizes, cross=op.startswith("cross"))
    results = []
    for threads in (1, 2, 3, 7, 1):
        torch.set_num_threads(threads)
        results.append(run(op, inputs))
    for other in results[1:]:
        assert [name for name, x in results[0].items() if not torch.equal(x, other[name])] == []


@pytest.mark.parametrize("lengths", [None, (4200, 0)], ids=["all", "ragged"])
@pytest.mark.parametrize("sizes", [(4200, 16, 16, 1), (4200, 5, 9, 1), (4200, 34, 70, 2)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_scan_in_phases_has_the_same_bits(op, sizes, lengths):
    """Fewer lines of channels than threads, and several segments of chunks; in the last case also
    several groups of states for each of several groups of channels."""
    length, dim, dstate, ngroups = sizes
    cross = op.startswith("cross")
    sizes = 2, length // (1 + cross), dim, dstate
    inputs = testing.scan_inputs(*sizes, cross=cross, ngroups=ngroups)
    if lengths is not None:
        inputs["lengths"] = torch.tensor(lengths) // (1 + cross)
    torch.set_num_threads(1)
    expected = run(op, inputs)
    torch.set_num_threads(7)
    actual = run(op, inputs)
    assert [name for name, x in expected.items() if not torch.equal(x, actual[name])] == []


@pytest.mark.parametrize(
    ("length", "dim", "dtype", "reverse", "lengths"),
    [
        (70, 40, torch.float32, False, None),
        # The batch's results are above 4 MiB, where they may be stored past the caches; a sample's
        # are below. 3000 channels are no whole cache lines.
        (70, 4096, torch.float32, False, None),
        (70, 4096, torch.float32, True, (70, 0, 33, 64, 7)),
        (40, 4096, torch.float64, False, None),
        (90, 3000, torch.float32, False, None),
        # Above 32 MiB, whose pages are asked for before they are written.
        (420, 4096, torch.float32, False, None),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_a_sample_has_the_same_bits_in_any_batch(op, length, dim, dtype, reverse, lengths):
    if lengths is not None:
        lengths = torch.tensor(lengths)
    cross = op.startswith("cross")
    inputs = testing.scan_inputs(5, length, dim, cross=cross, dtype=dtype, lengths=lengths)
    whole = run(op, inputs, reverse=reverse)
    for sample in (0, 3):
        alone = {
            name: x if x is None or name in WEIGHTS else x[sample : sample + 1]
            for name, x in inputs.items()
        }
        for name, x in run(op, alone, reverse=reverse).items():
            assert name in WEIGHTS or torch.equal(x[0], whole[name][sample]), name


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the kernel has no /proc/self/clear_refs, by which a peak is measured",
)
def test_memory_beyond_inputs_outputs_and_gradients():
    """At most an eighth of the states of all steps, and a smaller share of longer sequences."""
    shares = []
    for length in (1154, 4616):
        peak = measure.peak_bytes(
            "benchmarks.test_ops:peak_of_scan", workload=[2, length, 512], backend="cpu"
        )
        outputs = 4 * 2 * length * (4 * 512 + 2 * 16)  # out; du, ddelta, dz; dB, dC
        shares.append((peak - outputs) / (4 * 2 * length * 512 * 16))
    assert shares[0] <= 1 / 8 and shares[1] < shares[0], shares
