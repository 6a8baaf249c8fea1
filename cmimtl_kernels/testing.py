"""Input makers and comparisons for testing a scan against the reference; for other projects too.

inputs = scan_inputs(batch=2, length=33, dim=8)
check_op("selective_scan", inputs, backend="cpu", delta_softplus=True)
"""

import contextlib
import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmimtl_kernels import ops, reference

# dtype -> (largest relative L2 error of the outputs, and of every gradient). Both are measured
# against the float64 reference, which gets the same rounded inputs.
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-6, 1e-5),
    torch.bfloat16: (1e-2, 2e-2),
    torch.float16: (2e-3, 5e-3),
}

# These arguments are made in float32, whatever the dtype of u is.
_WIDE = frozenset({"A", "D", "delta_bias", "initial_state", "weight", "bias"})


def scan_inputs(
    batch: int = 2,
    length: int = 33,
    dim: int = 8,
    dstate: int = 16,
    *,
    cross: bool = False,
    ngroups: int | None = None,
    D: bool = True,
    z: bool = True,
    delta_bias: bool = True,
    initial_state: bool = True,
    lengths: Tensor | None = None,
    delta_softplus: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor | None]:
    """Make random arguments of `selective_scan`, or of `cross_selective_scan` with `cross`.

    Their values are those of a trained model: A is near -1 … -dstate, and the step size lies
    between 1e-3 and 1. The step size is softplus(delta + delta_bias). Without `delta_softplus` it
    is the sum itself, which is then made positive, since negative steps make a state explode.

    Returns:
        argument name -> tensor, or None for an argument that is switched off.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    steps = 2 * length if cross else length
    groups = (dstate,) if ngroups is None else (ngroups, dstate)
    streams, gates = (("v", "t"), ("z_v", "z_t")) if cross else (("u",), ("z",))
    tensors: dict[str, Tensor | None] = {name: normal(batch, length, dim) for name in streams}
    tensors["delta"] = normal(batch, steps, dim)
    states = torch.arange(1, dstate + 1, dtype=torch.float64)
    tensors["A"] = -states * torch.exp(0.2 * normal(dim, dstate))
    tensors["B"], tensors["C"] = normal(batch, steps, *groups), normal(batch, steps, *groups)
    tensors["D"] = normal(dim) if D else None
    for name in gates:
        tensors[name] = normal(batch, length, dim) if z else None
    tensors["delta_bias"] = normal(dim) - 3.0 if delta_bias else None
    tensors["initial_state"] = normal(batch, dim, dstate) if initial_state else None
    if not delta_softplus:
        for name in ("delta", "delta_bias"):
            x = tensors[name]
            if x is not None:
                tensors[name] = 0.1 * torch.exp(0.5 * x.clamp(min=-2.0))
    result = {name: _cast(name, x, dtype, device) for name, x in tensors.items()}
    result["lengths"] = lengths
    return result


def conv_inputs(
    batch: int = 2,
    length: int = 33,
    dim: int = 8,
    width: int = 4,
    *,
    bias: bool = True,
    lengths: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor | None]:
    """Make random arguments of `causal_conv1d`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "x": torch.randn(batch, length, dim, generator=generator, dtype=torch.float64),
        "weight": torch.randn(dim, width, generator=generator, dtype=torch.float64),
        "bias": torch.randn(dim, generator=generator, dtype=torch.float64) if bias else None,
    }
    result = {name: _cast(name, x, dtype, device) for name, x in tensors.items()}
    result["lengths"] = lengths
    return result


def _cast(name: str, x: Tensor | None, dtype: torch.dtype, device: str) -> Tensor | None:
    if x is None:
        return None
    return x.to(reference.accumulation_dtype(dtype) if name in _WIDE else dtype).to(device)


def with_layout(x: Tensor, layout: str) -> Tensor:
    """Give the values of a (batch, length, dim) tensor other strides.

    Args:
        x: (batch, length, dim).
        layout: "contiguous";
            "sliced": every dimension is a slice of a larger tensor filled with NaN;
            "transposed": x is stored as (batch, dim, length), as mamba stores it;
            "expanded": every sample is sample 0, by a stride of 0 over the batch.
    """
    if layout == "contiguous":
        return x.contiguous()
    if layout == "sliced":
        shape = [size + 3 for size in x.shape]
        big = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
        view = big[tuple(slice(1, 1 + size) for size in x.shape)]
        return view.copy_(x)
    if layout == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded":
        return x[:1].expand_as(x)
    raise ValueError(f"with_layout: layout must be one of the four documented, got {layout!r}")


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, in float64.

    It is ||actual|| where expected is 0, and infinite where only one of the two has a NaN.
    """
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    if not torch.equal(actual.isnan(), expected.isnan()):
        return float("inf")
    actual, expected = actual.nan_to_num(), expected.nan_to_num()
    norm = float(expected.norm())
    return float((actual - expected).norm()) / (norm if norm > 0 else 1.0)


def run_with_gradients(
    function: Callable, inputs: dict[str, Tensor | None], seed: int = 1, **options
) -> dict[str, Tensor]:
    """Run function(**inputs, **options) forward and backward.

    Returns the outputs as `out_0`, `out_1`, … and the gradient of every input as `d<name>`.
    The incoming gradients are random and the same for every function.
    """
    leaves = {
        name: x.detach().requires_grad_() if x is not None and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    outputs = function(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(seed)
    # A value that is rounded to bfloat16 is exact in every dtype, so that every function gets the
    # same gradients.
    cotangents = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]
    wanted = {n: x for n, x in leaves.items() if x is not None and x.requires_grad}
    # An input of no step at all has no influence, and its gradient is 0.
    gradients = torch.autograd.grad(
        outputs, list(wanted.values()), cotangents, materialize_grads=True
    )
    results = {f"out_{i}": out.detach() for i, out in enumerate(outputs)}
    return results | {f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}


def compare(
    op: str, inputs: dict[str, Tensor | None], *, backend: str, **options
) -> dict[str, float]:
    """Compare a public op with the float64 reference.

    -> the relative L2 error of every output and every gradient, by name.
    """
    if op != "causal_conv1d":
        options["return_last_state"] = True
    actual = run_with_gradients(getattr(ops, op), inputs, backend=backend, **options)
    wide = {
        name: x.double().cpu() if x is not None and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    if wide["lengths"] is not None:
        wide["lengths"] = wide["lengths"].cpu()
    expected = run_with_gradients(getattr(reference, op), wide, **options)
    return {name: relative_l2(actual[name], expected[name]) for name in expected}


def check_op(
    op: str, inputs: dict[str, Tensor | None], *, backend: str, **options
) -> dict[str, float]:
    """Compare a public op with the reference, as `compare`, and hold it to the tolerances.

    Raises:
        AssertionError: an output or gradient is out of tolerance; the message lists all that are.
    """
    errors = compare(op, inputs, backend=backend, **options)
    forward, backward = TOLERANCES[next(x for x in inputs.values() if x is not None).dtype]
    limits = {name: forward if name.startswith("out_") else backward for name in errors}
    bad = {name: e for name, e in errors.items() if not e <= limits[name]}
    if bad:
        worst = ", ".join(f"{name} {e:.2e} > {limits[name]:.0e}" for name, e in bad.items())
        raise AssertionError(f"{op} on {backend}: {worst}")
    return errors


def kept_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Count the bytes that are held between module(*inputs) and its backward pass.

    These are the inputs, and all that autograd and checkpointing keep. Parameters and outputs do
    not count.
    """

    def storages() -> dict[int, int]:
        found = {}
        for x in gc.get_objects():
            if issubclass(type(x), Tensor):
                # Tensors of torch.compile and sparse ones may be alive. They have no memory, and
                # raise when asked.
                with contextlib.suppress(RuntimeError):
                    storage = x.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
        return found

    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    gc.collect()
    before = storages()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = module(*inputs)
    # Tensors that checkpointing keeps do not pass through the hooks; Python objects hold them.
    kept |= {pointer: size for pointer, size in storages().items() if pointer not in before}
    kept |= {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in inputs}
    for x in (*module.parameters(), *(outputs if isinstance(outputs, tuple) else (outputs,))):
        kept.pop(x.untyped_storage().data_ptr(), None)
    return sum(kept.values())
