"""Random calls of the raw ops, right and wrong ones: no call may read or write foreign memory.

    python -m tests.kernels.raw_calls NAMESPACE COUNT SEED

makes COUNT calls of each op of `torch.ops.NAMESPACE` and ends with an error at the first whose
outcome is not the expected one. A call that the schema's conventions allow (`requirement_missed`
says which do, from the shapes alone) is computed, and one that nothing was changed in is compared
with the float64 reference; any other is refused in one line that names the op and an argument.
Under the sanitizers of test_raw_calls.py a call that goes beyond a tensor ends the process.
"""

import random
import re
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from cmimtl_kernels import reference, registration, testing

# Symbols: batch, length and steps of a stream and of the recurrence, dim, dstate, ngroups, chunks,
# width.
SHAPES = {
    **dict.fromkeys(("u", "v", "t", "z", "z_v", "z_t", "x", "dout", "dout_v", "dout_t"), ("bld",)),
    "delta": ("bsd",),
    "A": ("dn",),
    **dict.fromkeys(("B", "C"), ("bsn", "bsgn")),
    **dict.fromkeys(("D", "delta_bias", "bias"), ("d",)),
    **dict.fromkeys(("initial_state", "dlast_state"), ("bdn",)),
    "lengths": ("b",),
    "checkpoints": ("bkdn",),
    "weight": ("dw",),
}
WIDE = frozenset("A D delta_bias bias weight initial_state dlast_state checkpoints".split())
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Those of the engine's builds: some have no kernels for float16.
ENGINE_FLOATS = (torch.float32, torch.bfloat16)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
# Steps between checkpoints that each namespace takes, of one stream and of two; 0 besides.
EVERY = {
    "cmimtl": (range(1, 17), range(2, 17, 2)),
    "cmimtl_cuda_on_cpu": ((8,), (8,)),
    "cmimtl_triton": (range(1, 1 << 63), range(2, 1 << 63, 2)),
}
MOST_STATES, MOST_TAPS = {"cmimtl_cuda_on_cpu": 256}, {"cmimtl_cuda_on_cpu": 32}

Call = dict[str, object]
UNCHANGED = "nothing changed"


def floats_of(namespace: str) -> tuple[torch.dtype, ...]:
    return ENGINE_FLOATS if "cuda" in namespace else FLOATS


def arguments_of(name: str) -> list[tuple[str, str, bool]]:
    """(argument, its kind, whether it may be None) in the order of the op's schema."""
    text = registration.SCHEMAS[name].partition("->")[0]
    return [(n, kind, bool(o)) for kind, o, n in re.findall(r"(Tensor|bool|int)(\??) (\w+)", text)]


def requirement_missed(namespace: str, name: str, call: Call) -> bool:
    """Whether the call breaks the conventions of registration.py."""
    first = next(call[n] for n in ("u", "v", "x") if n in call)
    if not isinstance(first, Tensor) or first.dim() != 3 or first.dtype not in FLOATS:
        return True
    if namespace != "cmimtl" and first.dtype == torch.float64:
        return True
    wide = reference.accumulation_dtype(first.dtype)
    streams = 2 if "v" in call else 1
    sizes = dict(zip("bld", first.shape, strict=True)) | {"s": streams * first.shape[1]}
    if every := call.get("checkpoint_every"):
        if every not in EVERY[namespace][streams - 1]:
            return True
        sizes["k"] = -(-sizes["s"] // every)
    elif name.endswith("bwd") and "checkpoint_every" in call:
        return True
    for argument, kind, optional in arguments_of(name):
        x = call[argument]
        if kind != "Tensor" or (x is None and optional):
            continue
        if x is None or x.device.type != "cpu" or not _in_memory(x):
            return True
        wanted = torch.int64 if argument == "lengths" else wide if argument in WIDE else first.dtype
        if x.dtype != wanted or not any(_fits(x, shape, sizes) for shape in SHAPES[argument]):
            return True
    given = [call.get(n) is not None for n in ("z_v", "z_t")]
    groups, states, taps = sizes.get("g", 1), sizes.get("n", 1), sizes.get("w", 1)
    return (
        given[0] != given[1]
        or groups == 0
        or sizes["d"] % groups != 0
        or not 0 < states <= MOST_STATES.get(namespace, 1 << 30)
        or not 0 < taps <= MOST_TAPS.get(namespace, 1 << 30)
    )


def _fits(x: Tensor, symbols: str, sizes: dict[str, int]) -> bool:
    """Whether x has the shape; what a symbol stands for is noted where it is new."""
    if x.dim() != len(symbols):
        return False
    wanted = dict(zip(symbols, x.shape, strict=True))
    if symbols == "bsn":
        wanted["g"] = 1
    if any(sizes.get(symbol, size) != size for symbol, size in wanted.items()):
        return False
    sizes |= wanted
    return True


def _in_memory(x: Tensor) -> bool:
    last = x.storage_offset() + sum(
        (n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)
    )
    return not x.numel() or (last + 1) * x.element_size() <= x.untyped_storage().nbytes()


def valid_call(namespace: str, name: str, draw: random.Random) -> Call:
    """Arguments that the op must take."""
    dtypes = floats_of(namespace)
    batch, length = draw.choice((0, 1, 1, 2, 3, 17)), draw.choice((0, 1, 2, 15, 16, 17, 32, 33))
    dim, dtype, seed = (
        draw.choice((1, 2, 7, 16, 17, 34)),
        draw.choice(dtypes),
        draw.randrange(1 << 30),
    )
    lengths = None
    if draw.random() < 0.4:
        lengths = torch.tensor([draw.randint(0, length) for _ in range(batch)], dtype=torch.int64)
    if name.startswith("causal"):
        call: Call = dict(
            testing.conv_inputs(
                batch, length, dim, draw.choice((1, 2, 4, 9)), bias=draw.random() < 0.5,
                lengths=lengths, dtype=dtype, seed=seed,
            )
        )  # fmt: skip
        call |= {"silu": draw.random() < 0.5}
    else:
        streams = 2 if name.startswith("cross") else 1
        groups = draw.choice([None, *(g for g in (1, 2, 17) if dim % g == 0)])
        options = {n: draw.random() < 0.5 for n in ("D", "z", "delta_bias", "initial_state")}
        softplus = draw.random() < 0.5
        call = dict(
            testing.scan_inputs(
                batch, length, dim, draw.choice((1, 2, 16, 17)), cross=streams == 2, ngroups=groups,
                lengths=lengths, dtype=dtype, seed=seed, delta_softplus=softplus, **options,
            )
        )  # fmt: skip
        every = draw.choice(EVERY[namespace][streams - 1])
        if name.endswith("fwd") and draw.random() < 0.3:
            every = 0
        call |= {"delta_softplus": softplus, "checkpoint_every": every}
    call["reverse"] = draw.random() < 0.5
    wide = reference.accumulation_dtype(dtype)
    for argument, x in call.items():
        if isinstance(x, Tensor):
            x = x.to(wide) if argument in WIDE else x
            call[argument] = _laid_out(x, draw) if x.is_floating_point() else x
    if name.endswith("bwd"):
        generator = torch.Generator().manual_seed(seed)
        forward = name.replace("bwd", "fwd")
        outputs = run(namespace, forward, call)
        names = {"selective": ["dout", "dlast_state"], "cross": ["dout_v", "dout_t", "dlast_state"]}
        for argument, out in zip(names.get(name.split("_")[0], ["dout"]), outputs, strict=False):
            gradient = torch.randn(out.shape, generator=generator).to(out.dtype)
            call[argument] = _laid_out(gradient, draw)
        if "dlast_state" in call and draw.random() < 0.5:
            call["dlast_state"] = None
        if not name.startswith("causal"):
            call["checkpoints"] = outputs[-1]
    return call


def _laid_out(x: Tensor, draw: random.Random) -> Tensor:
    """The values of x under other strides, in most draws."""
    layout = draw.choice(("as it is", "contiguous", "permuted", "strided", "offset"))
    if layout == "permuted":
        order = draw.sample(range(x.dim()), x.dim())
        return x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    if layout == "strided":
        big = x.new_full([2 * n for n in x.shape], float("nan"))
        return big[(slice(None, None, 2),) * x.dim()].copy_(x)
    if layout == "offset":
        return x.new_full((x.numel() + 3,), float("nan"))[3:].view(x.shape).copy_(x)
    return x.contiguous() if layout == "contiguous" else x


def changed(namespace: str, name: str, call: Call, draw: random.Random) -> str:
    """Changes one argument of the call in place. -> what was changed."""
    argument, kind, _ = draw.choice(arguments_of(name))
    x, dtypes = call[argument], (*floats_of(namespace), *OTHERS)
    if kind == "bool":
        call[argument] = not x
        return f"{argument} = {call[argument]}"
    if kind == "int":
        call[argument] = draw.choice((-1, 0, 1, 3, 16, 33, 1 << 20, 1 << 31, 1 << 62, -(1 << 62)))
        return f"{argument} = {call[argument]}"
    if x is None:  # given where it was left out, of a likely shape
        like = next(call[n] for n in ("u", "v", "x") if n in call)
        shape = draw.choice((tuple(like.shape), (like.shape[2],), (like.shape[0],), ()))
        call[argument] = torch.zeros(shape, dtype=draw.choice((like.dtype, *dtypes)))
        return f"{argument} given as {_text(call[argument])}"
    how = draw.choice(("None", "dtype", "shape", "shape", "meta", "freed", "swapped", "lengths"))
    if how == "None":
        call[argument] = None
    elif how == "dtype":
        call[argument] = x.detach().to(draw.choice(dtypes))
    elif how == "shape":
        call[argument] = _reshaped(x, draw)
    elif how == "meta":
        call[argument] = x.to("meta")
    elif how == "freed":
        x = call[argument] = x.clone()
        whole = x.untyped_storage().nbytes()
        x.untyped_storage().resize_(draw.choice((0, whole // 2, max(0, whole - 1))))
    elif how == "swapped":
        call[argument] = draw.choice([y for y in call.values() if isinstance(y, Tensor)])
    elif call.get("lengths") is not None:  # kernels clamp them
        values = (-1, -(1 << 62), 1 << 40, (1 << 63) - 1, 1)
        call["lengths"] = torch.tensor([draw.choice(values) for _ in call["lengths"]]).long()
    return f"{argument} {how}: {_text(call[argument])}"


def _reshaped(x: Tensor, draw: random.Random) -> Tensor:
    shape = list(x.shape)
    how = draw.choice(("more", "less", "none", "rank", "flat", "transposed", "expanded"))
    if how == "rank" or not shape:
        return x[None]
    axis = draw.randrange(len(shape))
    if how == "flat":
        return x.flatten()
    if how == "transposed":
        return x.transpose(axis, draw.randrange(len(shape)))
    if how == "expanded":
        return x.narrow(axis, 0, min(1, shape[axis])).expand(shape)
    shape[axis] = {"more": shape[axis] + 1, "less": max(0, shape[axis] - 1), "none": 0}[how]
    return torch.zeros(shape, dtype=x.dtype)


def _text(x: object) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)} {x.stride()} on {x.device}"


def run(namespace: str, name: str, call: Call) -> tuple[Tensor, ...]:
    """The results of the raw op."""
    op = getattr(getattr(torch.ops, namespace), name)
    with torch.no_grad():
        results = op(*(call[argument] for argument, _, _ in arguments_of(name)))
    return results if isinstance(results, (tuple, list)) else (results,)


def expected(name: str, call: Call) -> dict[str, Tensor]:
    """The results that the float64 reference gives: those of the op's schema, by name."""
    op = name.removesuffix("_fwd").removesuffix("_bwd")
    order = [argument for argument, kind, _ in arguments_of(f"{op}_fwd") if kind == "Tensor"]
    wide = {
        n: None if call[n] is None else call[n].double() if n != "lengths" else call[n].clone()
        for n in order
    }
    if wide["lengths"] is not None:
        length = next(call[n] for n in ("u", "v", "x") if n in call).shape[1]
        wide["lengths"].clamp_(0, length)
    leaves = [n for n in order if n != "lengths" and wide[n] is not None]
    for n in leaves:
        wide[n].requires_grad_(name.endswith("bwd"))
    options = call["silu" if op.startswith("causal") else "delta_softplus"], call["reverse"]
    outputs = reference.run(op, tuple(wide[n] for n in order), *options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = re.findall(r"Tensor (\w+)", registration.SCHEMAS[name].partition("->")[2])
    if name.endswith("fwd"):
        return dict(zip([n for n in results if n != "checkpoints"], outputs, strict=True))
    incoming = [call[n] for n in ("dout", "dout_v", "dout_t", "dlast_state") if n in call]
    pairs = [  # no step at all: no influence
        (out, g.double())
        for out, g in zip(outputs, incoming, strict=True)
        if g is not None and out.requires_grad
    ]
    gradients = torch.autograd.grad(
        [out for out, _ in pairs],
        [wide[n] for n in leaves],
        [g for _, g in pairs],
        materialize_grads=True,
    )
    return {f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}


def check_call(namespace: str, name: str, call: Call, values: bool) -> str:
    """Makes the call, and with `values` compares its results. -> "computed" or "refused".

    Raises AssertionError where the outcome is not the expected one.
    """
    missed = requirement_missed(namespace, name, call)
    try:
        results = run(namespace, name, call)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        assert missed, f"refused, though the schema allows it: {said}"
        names = "|".join(argument for argument, _, _ in arguments_of(name))
        assert re.search(rf"^{name}: ({names}) must .*, got ", said), f"unclear: {said}"
        return "refused"
    assert not missed, "computed, though it breaks a convention of the schema"
    if not values:
        return "computed"
    first = next(call[n] for n in ("u", "v", "x") if n in call)
    forward, backward = testing.TOLERANCES[first.dtype]
    tolerance = forward if name.endswith("fwd") else backward
    schema = re.findall(r"Tensor (\w+)", registration.SCHEMAS[name].partition("->")[2])
    by_name = dict(zip(schema, results, strict=True))
    for result, value in expected(name, call).items():
        assert by_name[result].shape == value.shape, f"{result}: {_text(by_name[result])}"
        # The inputs are of the order of 1; of what cancels in a few results the rounding stays.
        norm = max(float(value.norm()), value.numel() ** 0.5)
        error = float((by_name[result].double() - value).norm()) / (norm or 1.0)
        assert error <= 4 * tolerance, f"{result} is wrong by {error:.1e}"
    return "computed"


def calls(namespace: str, name: str, count: int, seed: int) -> Iterator[tuple[str, Call]]:
    """`count` calls of an op, two thirds with an argument that was changed. Text says which."""
    for i in range(count):
        draw = random.Random(f"{seed} {name} {i}")
        call = valid_call(namespace, name, draw)
        change = changed(namespace, name, call, draw) if draw.random() < 2 / 3 else UNCHANGED
        yield f"call {i} of {name} with seed {seed}, {change}", call


def run_all(namespace: str, count: int, seed: int) -> dict[str, int]:
    """Makes `count` calls of each op. -> how many had each outcome."""
    outcomes = {"computed": 0, "refused": 0}
    for name in registration.SCHEMAS:
        for what, call in calls(namespace, name, count, seed):
            try:
                outcome = check_call(namespace, name, call, what.endswith(UNCHANGED))
                outcomes[outcome] += 1
            except Exception as error:
                given = ", ".join(f"{n}={_text(x)}" for n, x in call.items())
                raise AssertionError(f"{what}: {error}\n{given}") from error
    return outcomes


if __name__ == "__main__":
    print(run_all(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
