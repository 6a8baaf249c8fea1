"""Every compiled kernel against the reference, and against facts that do not need the reference."""

import itertools

import pytest
import torch

from cmimtl_kernels import (
    backends,
    causal_conv1d,
    cross_selective_scan,
    ops,
    selective_scan,
    testing,
)
from tests.kernels import matrix

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TARGETS = [
    pytest.param("cpu", "cpu", id="cpu"),
    pytest.param("cuda", "cuda", id="cuda", marks=[pytest.mark.gpu, NO_CUDA]),
    pytest.param("triton", "cuda", id="triton", marks=[pytest.mark.gpu, NO_CUDA]),
]
on_every_target = pytest.mark.parametrize("backend, device", TARGETS)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN, so that an element which a kernel does not write cannot pass for 0."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _skip_wide(case: matrix.Case, backend: str) -> None:
    if backend != "cpu" and case.sizes.get("dtype") == torch.float64:
        pytest.skip("GPU kernels take no float64")


@on_every_target
@pytest.mark.parametrize("case", [c for op in matrix.SCANS for c in matrix.scan_cases(op)], ids=str)
def test_scan_matches_reference(case, backend, device):
    _skip_wide(case, backend)
    matrix.check(case, backend=backend, device=device)


@on_every_target
@pytest.mark.parametrize("case", matrix.conv_cases(), ids=str)
def test_convolution_matches_reference(case, backend, device):
    _skip_wide(case, backend)
    matrix.check(case, backend=backend, device=device)


@pytest.mark.gpu
@NO_CUDA
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [512, 511])
@pytest.mark.parametrize("op", matrix.SCANS)
def test_scan_that_fills_a_gpu(op, dim, dtype, backend):
    """So many channels that a thread has two of them, where they lie in pairs, or all states of
    one; the matrix is too small for these kernels."""
    sizes = {"batch": 140, "length": 33, "dim": dim, "dstate": 16, "dtype": dtype}
    matrix.check(matrix.Case(op, sizes, {"delta_softplus": True}), backend=backend, device="cuda")


@pytest.mark.gpu
@NO_CUDA
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("op", matrix.SCANS)
def test_scan_that_is_split_over_time(op, backend):
    """Few channels and many steps."""
    sizes = {"batch": 1, "length": 3001, "dim": 40, "dstate": 16}
    matrix.check(matrix.Case(op, sizes, {"delta_softplus": True}), backend=backend, device="cuda")


def test_largest_state_on_cpu():
    matrix.check(
        matrix.Case(
            "selective_scan", {"dstate": 1024, "length": 5, "dim": 3}, {"delta_softplus": True}
        ),
        backend="cpu",
    )


# Closed forms: the reference and a kernel cannot be wrong together here


@on_every_target
@pytest.mark.parametrize("reverse", [False, True])
def test_without_decay_the_state_is_a_cumulative_sum(backend, device, reverse):
    u = torch.randint(-4, 5, (2, 70, 6)).float()
    ones = torch.ones(2, 70, 1)
    out, last = selective_scan(
        *(x.to(device) for x in (u, torch.ones_like(u), torch.zeros(6, 1), ones, ones)),
        reverse=reverse,
        return_last_state=True,
        backend=backend,
    )
    expected = u.flip(1).cumsum(1).flip(1) if reverse else u.cumsum(1)
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(last.cpu()[..., 0], u.sum(1))


@on_every_target
def test_without_decay_the_cross_scan_sums_products_and_sums(backend, device):
    v, t = torch.randint(-4, 5, (2, 2, 35, 6)).float()
    ones = torch.ones(2, 70, 1)
    out_v, out_t = cross_selective_scan(
        *(x.to(device) for x in (v, t, torch.ones(2, 70, 6), torch.zeros(6, 1), ones, ones)),
        backend=backend,
    )
    before = (v * t + v + t).cumsum(1)  # after both tokens of a pair
    assert torch.equal(out_t.cpu(), before)
    assert torch.equal(out_v.cpu(), before - (v + t))


@on_every_target
def test_constant_input_decays_geometrically(backend, device):
    """One impulse at step 0: out[t] = exp(delta A) ** t."""
    length, rate = 40, -0.25
    u = torch.zeros(1, length, 3)
    u[:, 0] = 1
    ones = torch.ones(1, length, 1)
    out = selective_scan(
        *(x.to(device) for x in (u, torch.ones_like(u), torch.full((3, 1), rate), ones, ones)),
        backend=backend,
    )
    expected = torch.exp(rate * torch.arange(length, dtype=torch.float64))[None, :, None].expand(
        1, -1, 3
    )
    assert testing.relative_l2(out, expected) < 2e-6


# Properties


def _scan(inputs, backend, **options):
    op = cross_selective_scan if "v" in inputs else selective_scan
    return op(**inputs, delta_softplus=True, return_last_state=True, backend=backend, **options)


@on_every_target
@pytest.mark.parametrize("cross", [False, True])
def test_a_scan_resumes_from_its_last_state(backend, device, cross):
    inputs = testing.scan_inputs(length=50, cross=cross, device=device)
    *outs, last = _scan(inputs, backend)
    cut = 19
    parts, state = [], inputs["initial_state"]
    for lo, hi in ((0, cut), (cut, 50)):
        part = dict(inputs, initial_state=state)
        for name in ("u", "v", "t", "z", "z_v", "z_t"):
            if part.get(name) is not None:
                part[name] = part[name][:, lo:hi]
        for name in ("delta", "B", "C"):
            scale = 2 if cross else 1
            part[name] = part[name][:, scale * lo : scale * hi]
        *out, state = _scan(part, backend)
        parts.append(out)
    for whole, *pieces in zip(outs, *parts, strict=True):
        assert testing.relative_l2(torch.cat(pieces, 1), whole) < 2e-6
    assert testing.relative_l2(state, last) < 2e-6


@on_every_target
def test_reverse_is_the_flipped_scan(backend, device):
    inputs = testing.scan_inputs(length=50, device=device)
    out, last = _scan(inputs, backend, reverse=True)
    sequences = ("u", "delta", "B", "C", "z")
    flipped = {k: x.flip(1) if k in sequences else x for k, x in inputs.items()}
    out_flipped, last_flipped = _scan(flipped, backend)
    assert testing.relative_l2(out.flip(1), out_flipped) < 2e-6
    assert testing.relative_l2(last, last_flipped) < 2e-6


@on_every_target
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_nan_stays_in_its_sample(backend, device, cross, reverse):
    inputs = testing.scan_inputs(batch=3, length=40, cross=cross, device=device)
    first = "v" if cross else "u"

    def run(x):
        names = [n for n in x if x[n] is not None]
        leaves = {n: x[n].detach().requires_grad_() for n in names}
        *outs, _ = _scan(dict.fromkeys(x) | leaves, backend, reverse=reverse)
        sum(out[i].sum() for out in outs for i in (0, 2)).backward()
        return outs, {n: leaves[n].grad for n in (first, "delta", "B", "C")}

    expected, expected_grads = run(inputs)
    poisoned = dict(inputs, **{first: inputs[first].clone()})
    poisoned[first][1, 7, 3] = float("nan")
    actual, grads = run(poisoned)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a[::2], e[::2])
    assert actual[0][1].isnan().any()
    for name in grads:
        assert torch.equal(grads[name][::2], expected_grads[name][::2]), name


@on_every_target
@pytest.mark.parametrize("shift", [-60.0, -20.0, 20.0, 80.0], ids=lambda s: f"shift={s:g}")
@pytest.mark.parametrize("op", matrix.SCANS)
def test_extreme_step_sizes(backend, device, op, shift):
    """softplus far below its linear part, where the step is almost 0, and far above it, where exp
    underflows to 0."""
    inputs = testing.scan_inputs(cross=op == "cross_selective_scan", device=device)
    inputs["delta"] = inputs["delta"] + shift
    if shift < 0:
        inputs["A"] = (
            inputs["A"] / 100
        )  # else the gradient of A is 0 in float32 and has no relative error
    errors = testing.compare(op, inputs, backend=backend, delta_softplus=True)
    tolerated = {n: e for n, e in errors.items() if not e <= testing.TOLERANCES[torch.float32][1]}
    # Where the state is forgotten at once its gradients underflow: absolutely small, relatively
    # arbitrary.
    assert set(tolerated) <= {"dA", "dinitial_state"} if shift > 0 else not tolerated, tolerated


@on_every_target
def test_growing_states(backend, device):
    """A > 0: the state grows by up to e^2 over 32 steps.

    delta is constant, so the error of a state's decay comes again at every step, and a GPU's
    exponential may be 2^-22 away (PTX, ex2.approx). Every state has a rate of its own, or the test
    would be of how that one number is rounded.
    """
    inputs = testing.scan_inputs(length=32, delta_bias=False, device=device)
    A = inputs["A"]
    inputs["A"] = torch.linspace(0.05, 0.0625, A.numel(), device=device).view_as(A)
    inputs["delta"] = torch.ones_like(inputs["delta"])
    errors = testing.compare("selective_scan", inputs, backend=backend)
    assert all(error < 32 * 2**-22 for error in errors.values()), errors


@on_every_target
@pytest.mark.parametrize("op", matrix.SCANS)
def test_the_same_bits_every_run(backend, device, op):
    inputs = testing.scan_inputs(
        batch=3, length=70, dim=40, cross=op == "cross_selective_scan", device=device
    )
    function = {"selective_scan": selective_scan, "cross_selective_scan": cross_selective_scan}[op]
    first, second = (
        testing.run_with_gradients(function, inputs, backend=backend, delta_softplus=True)
        for _ in range(2)
    )
    for name in first:
        assert torch.equal(first[name], second[name]), name


@on_every_target
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_outputs_and_gradients_keep_the_strides_of_their_input(backend, device, layout):
    inputs = testing.scan_inputs(length=40, dim=12, device=device)
    for name in ("u", "delta", "z"):
        inputs[name] = testing.with_layout(inputs[name], layout)
    results = testing.run_with_gradients(
        selective_scan, inputs, backend=backend, delta_softplus=True
    )
    x = torch.zeros(2, 40, 12, device=device)
    x = testing.with_layout(x, layout)
    results["conv"] = causal_conv1d(x, torch.ones(12, 4, device=device), backend=backend)
    for name in ("out_0", "du", "ddelta", "dz", "conv"):
        assert results[name].stride() == x.stride(), name


# The contract between forward and backward, which the public functions hide


@on_every_target
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, (70, 33)], ids=["all", "ragged"])
def test_checkpoints_are_the_states_on_the_way(backend, device, reverse, lengths):
    ops = getattr(torch.ops, "cmimtl_triton" if backend == "triton" else "cmimtl")
    every = backends.BACKENDS[backend].checkpoint_every
    inputs = testing.scan_inputs(length=70, device=device)
    inputs["lengths"] = None if lengths is None else torch.tensor(lengths, device=device)
    B, C = inputs["B"][:, :, None], inputs["C"][:, :, None]
    tensors = dict(inputs, B=B, C=C).values()
    _, _, checkpoints = ops.selective_scan_fwd(*tensors, True, reverse, every)
    assert checkpoints.shape == (2, -(-70 // every), 8, 16)
    for sample in range(2):
        valid = 70 if lengths is None else lengths[sample]
        for k in range((valid + every - 1) // every):
            # processing stops after k * every steps: at the front, or counted from the last valid
            # step
            part = {
                n: x if x is None or n in ("A", "D", "delta_bias") else x[sample : sample + 1]
                for n, x in inputs.items()
            }
            done = slice(valid - k * every, valid) if reverse else slice(0, k * every)
            for name in ("u", "delta", "B", "C", "z"):
                part[name] = part[name][:, done]
            part["lengths"] = None
            _, state = _scan(part, "reference", reverse=reverse)
            assert testing.relative_l2(checkpoints[sample, k], state[0]) < 2e-6


@on_every_target
@pytest.mark.parametrize("op", [*matrix.SCANS, "causal_conv1d"])
def test_the_gradients_of_one_or_two_inputs_are_those_of_all(op, backend, device):
    states = {} if op == "causal_conv1d" else {"dstate": 2}
    inputs = matrix.Case(op, {"length": 5, "dim": 3} | states).inputs(device)
    function = getattr(ops, op)
    whole = testing.run_with_gradients(function, inputs, backend=backend)
    names = [n for n, x in inputs.items() if x is not None and x.is_floating_point()]
    for some in [(n,) for n in names] + list(itertools.combinations(names, 2)):
        leaves = {n: inputs[n].clone().requires_grad_() for n in some}
        out = function(**inputs | leaves, backend=backend)
        outs = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator().manual_seed(1)  # as run_with_gradients has it
        given = [torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in outs]
        gradients = torch.autograd.grad(outs, list(leaves.values()), given)
        for n, gradient in zip(some, gradients, strict=True):
            assert torch.equal(gradient, whole[f"d{n}"]), (n, some)
