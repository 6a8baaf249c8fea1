"""The equations of the ops as loops in float64, and calls with special values to hold against them.

`expected` is written from the equations of docs/mathematics.md alone, forward and backward, sample
by sample and step by step over the valid steps. It uses neither the reference nor autograd, so that
kernels and reference cannot be wrong together. NaN and infinities go through it as IEEE 754 has it.
"""

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmimtl_kernels import ops, reference, testing
from tests.kernels import matrix

OPS = (*matrix.SCANS, "causal_conv1d")
INF, NAN = float("inf"), float("nan")


def nan(payload: int, dtype: torch.dtype) -> Tensor:
    """A NaN by its bits from the left: sign, quiet bit and the next one, the others all alike.

    payload: five bits, s q n r l, where r fills all bits but the last one, which is l.
    """
    exponent, mantissa, whole = {
        torch.float64: (11, 52, torch.int64),
        torch.float32: (8, 23, torch.int32),
        torch.bfloat16: (8, 7, torch.int16),
        torch.float16: (5, 10, torch.int16),
    }[dtype]
    sign, quiet, after, rest, last = (payload >> i & 1 for i in (4, 3, 2, 1, 0))
    bits = quiet << (mantissa - 1) | after << (mantissa - 2) | last
    bits |= rest * ((1 << (mantissa - 2)) - 2)
    bits = (bits or 1) | ((1 << exponent) - 1) << mantissa
    width = exponent + mantissa + 1
    bits -= sign << (width - 1)  # two's complement
    return torch.tensor([bits], dtype=whole).view(dtype)


# The equations


def softplus(x: Tensor) -> tuple[Tensor, Tensor]:
    """-> (log(1 + e^x), its derivative)."""
    value = torch.where(x > 0, x + torch.log1p(torch.exp(-x)), torch.log1p(torch.exp(x)))
    return value, 1 / (1 + torch.exp(-x))


def silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """-> (x / (1 + e^-x), its derivative)."""
    s = 1 / (1 + torch.exp(-x))
    return x * s, s * (1 + x * (1 - s))


def of_channels(x: Tensor, dim: int) -> Tensor:
    """(ngroups, dstate) -> (dim, dstate)."""
    return x.repeat_interleave(dim // x.shape[0], 0)


def of_groups(x: Tensor, ngroups: int) -> Tensor:
    """The sum over the channels of each group: (dim, dstate) -> (ngroups, dstate)."""
    return x.view(ngroups, -1, x.shape[1]).sum(1)


def scan(x: dict, douts: list, dlast: Tensor, *, soft: bool, reverse: bool) -> dict[str, Tensor]:
    """Outputs and gradients of either scan, all in float64; the names are those of `Call.run`."""
    names = ("v", "t") if "v" in x else ("u",)
    gates = [n for n in ("z_v", "z_t", "z") if x.get(n) is not None]
    streams, A = [x[n] for n in names], x["A"]
    tokens, (batch, length, dim) = len(streams), streams[0].shape
    maps = {n: x[n] if x[n].dim() == 4 else x[n][:, :, None] for n in "BC"}
    ngroups = maps["B"].shape[2]
    outs = [torch.zeros_like(s) for s in streams]
    last = torch.zeros(batch, dim, A.shape[1], dtype=torch.float64)
    grads = {n: torch.zeros_like(v) for n, v in x.items() if v is not None and n != "lengths"}
    dmaps = {n: grads[n].view(maps[n].shape) for n in "BC"}
    for b in range(batch):
        valid = length if x["lengths"] is None else int(x["lengths"][b])
        pairs = list(range(valid))[:: -1 if reverse else 1]
        order = [0, 1][:tokens][:: -1 if reverse else 1]  # the product is token 0
        state = torch.zeros_like(last[b]) if x["initial_state"] is None else x["initial_state"][b]
        kept = []
        for j in pairs:
            pair = [s[b, j] for s in streams]
            gate, slope_of_gate = None, None
            if gates:
                inner = x[gates[0]][b, j]
                if tokens == 2:
                    inner = inner * x[gates[1]][b, j]
                gate, slope_of_gate = silu(inner)
            for k in order:
                i = tokens * j + k
                value = pair[0] if tokens == 1 else (pair[0] * pair[1], pair[0] + pair[1])[k]
                d = x["delta"][b, i]
                if x["delta_bias"] is not None:
                    d = d + x["delta_bias"]
                d, slope = softplus(d) if soft else (d, torch.ones_like(d))
                B, C = (of_channels(maps[n][b, i], dim) for n in "BC")
                decay, before = torch.exp(d[:, None] * A), state
                state = decay * before + (d * value)[:, None] * B
                y = (C * state).sum(1)
                if x["D"] is not None:
                    y = y + x["D"] * value
                outs[k][b, j] = y if gate is None else y * gate
                kept.append((j, k, pair, value, d, slope, B, C, decay, before, state, y, gate,
                             slope_of_gate))  # fmt: skip
        last[b] = state
        carry = dlast[b]
        for j, k, pair, value, d, slope, B, C, decay, before, state, y, gate, slope_z in kept[::-1]:
            i, dout = tokens * j + k, douts[k][b, j]
            dy = dout if gate is None else dout * gate
            dstate = carry + C * dy[:, None]
            carry = decay * dstate
            through = carry * before
            dinput = (dstate * B).sum(1)
            ddelta = (value * dinput + (A * through).sum(1)) * slope
            dvalue = d * dinput
            if x["D"] is not None:
                dvalue = dvalue + x["D"] * dy
                grads["D"] += dy * value
            grads["delta"][b, i] = ddelta
            grads["A"] += d[:, None] * through
            dmaps["B"][b, i] = of_groups(dstate * (d * value)[:, None], ngroups)
            dmaps["C"][b, i] = of_groups(state * dy[:, None], ngroups)
            if x["delta_bias"] is not None:
                grads["delta_bias"] += ddelta
            for m, name in enumerate(names):
                other = 1.0 if tokens == 1 or k == 1 else pair[1 - m]
                grads[name][b, j] += other * dvalue
            for m, name in enumerate(gates):
                other = 1.0 if tokens == 1 else x[gates[1 - m]][b, j]
                grads[name][b, j] += other * (dout * y * slope_z)
        if x["initial_state"] is not None:
            grads["initial_state"][b] = carry
    results = {f"out_{m}": out for m, out in enumerate([*outs, last])}
    return results | {f"d{n}": g for n, g in grads.items()}


def conv(x: dict, dout: Tensor, *, silu_: bool, reverse: bool) -> dict[str, Tensor]:
    """Outputs and gradients of the convolution. Before the first step, in its order, x is 0."""
    (batch, length, _), width = x["x"].shape, x["weight"].shape[1]
    out = torch.zeros_like(x["x"])
    grads = {n: torch.zeros_like(v) for n, v in x.items() if v is not None and n != "lengths"}
    zero = torch.zeros_like(out[0, 0]) if length else None
    for b in range(batch):
        valid = length if x["lengths"] is None else int(x["lengths"][b])
        for t in range(valid):
            shifts = [width - 1 - k if reverse else k - width + 1 for k in range(width)]
            steps = [t + s if 0 <= t + s < valid else None for s in shifts]
            read = [zero if s is None else x["x"][b, s] for s in steps]
            y = sum((x["weight"][:, k] * read[k] for k in range(width)), zero)
            if x["bias"] is not None:
                y = y + x["bias"]
            dy = dout[b, t]
            if silu_:
                y, slope = silu(y)
                dy = dy * slope
            out[b, t] = y
            for k, s in enumerate(steps):
                grads["weight"][:, k] += dy * read[k]
                if s is not None:
                    grads["x"][b, s] += dy * x["weight"][:, k]
            if x["bias"] is not None:
                grads["bias"] += dy
    return {"out_0": out} | {f"d{n}": g for n, g in grads.items()}


# The calls


@dataclass
class Call:
    """One call of an op, forward and backward, with special values in it.

    Attributes:
        case: the call without them.
        specials: (argument, place, value); the place is an index into the valid elements, modulo
            their number. The incoming gradients are the arguments "dout_0", …
        seed: of the values.
    """

    case: matrix.Case
    specials: list = field(default_factory=list)
    seed: int = 0

    def __str__(self) -> str:
        put = [
            f"{n}[{i}]={v if isinstance(v, float) else f'nan{v:05b}'}" for n, i, v in self.specials
        ]
        return " ".join([str(self.case), f"seed={self.seed}", *put])

    def tensors(self) -> tuple[dict, list[Tensor]]:
        """The arguments, and the incoming gradients of the outputs."""
        case = self.case
        sizes = case.sizes | {"seed": self.seed}
        inputs = matrix.Case(case.op, sizes, case.options, lengths=None).inputs()
        if case.op != "causal_conv1d":
            # No product of decays may underflow, or 0 times infinity would be NaN in one precision
            # and not in another.
            inputs["A"] = -0.05 - inputs["A"].abs().remainder(1.0)
            if case.options.get("delta_softplus"):
                inputs["delta"] = inputs["delta"].clamp(-3, 3)
                if inputs["delta_bias"] is not None:
                    inputs["delta_bias"] = inputs["delta_bias"].clamp(-2, 1)
        if case.lengths is not None:
            inputs["lengths"] = torch.tensor(case.lengths)
        # The outputs have the shapes of these.
        like = [inputs[n] for n in ("u", "v", "t", "x") if n in inputs]
        generator = torch.Generator().manual_seed(self.seed + 1)
        douts = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in like]
        if case.op != "causal_conv1d":
            batch, _, dim = like[0].shape
            last = torch.randn(batch, dim, inputs["A"].shape[1], generator=generator)
            douts.append(last.to(inputs["A"].dtype))
        named = inputs | {f"dout_{i}": d for i, d in enumerate(douts)}
        for name, place, value in self.specials:
            if named.get(name) is not None:
                put(named[name], self._valid(name, named[name], like[0].shape[1]), place, value)
        sequences = {"dout_0", *(["dout_1"] if len(like) == 2 else []), *matrix._SEQUENCES}
        for name in sequences & named.keys():
            x = named[name]
            if x is None:
                continue
            padding = ~self._valid(name, x, like[0].shape[1])
            x[padding] = (NAN, INF)[self.seed % 2]
            if x.shape[0]:
                named[name] = testing.with_layout(x, case.layout)
        douts = [named.pop(f"dout_{i}") for i in range(len(douts))]
        return named, douts

    def _valid(self, name: str, x: Tensor, length: int) -> Tensor:
        """Which elements of an argument are no padding."""
        lengths = self.case.lengths
        of_steps = x.dim() > 1 and length and x.shape[1] in (length, 2 * length)
        if lengths is None or name in ("A", "weight", "initial_state") or not of_steps:
            return torch.ones(x.shape, dtype=torch.bool)
        if name.startswith("dout") and x.shape[1] != length:
            return torch.ones(x.shape, dtype=torch.bool)
        valid = torch.tensor(lengths) * (x.shape[1] // length)
        valid = torch.arange(x.shape[1]) < valid[:, None]
        return valid.view(*valid.shape, *[1] * (x.dim() - 2)).expand(x.shape)

    def run(
        self, function, *, wide: bool = False, device: str = "cpu", **options
    ) -> dict[str, Tensor]:
        """Outputs and gradients of a public op, or of the reference, by name."""
        inputs, douts = self.tensors()
        if wide:
            inputs = {n: x.double() if _floating(x) else x for n, x in inputs.items()}
            douts = [d.double() for d in douts]
        inputs = {n: None if x is None else x.to(device) for n, x in inputs.items()}
        douts = [d.to(device) for d in douts]
        leaves = {n: x.detach().requires_grad_() if _floating(x) else x for n, x in inputs.items()}
        if self.case.op != "causal_conv1d":
            options["return_last_state"] = True
        outs = function(**leaves, **self.case.options, **options)
        outs = outs if isinstance(outs, tuple) else (outs,)
        wanted = {n: x for n, x in leaves.items() if _floating(x)}
        pairs = [(o, d) for o, d in zip(outs, douts, strict=True) if o.requires_grad]
        roots, given = zip(*pairs, strict=True)  # without a step, some depend on nothing
        grads = torch.autograd.grad(roots, list(wanted.values()), given, materialize_grads=True)
        results = {f"out_{i}": out.detach().cpu() for i, out in enumerate(outs)}
        return results | {f"d{n}": g.cpu() for n, g in zip(wanted, grads, strict=True)}

    def expected(self) -> dict[str, Tensor]:
        """The same, by the equations."""
        inputs, douts = self.tensors()
        wide = {n: x.double().contiguous() if _floating(x) else x for n, x in inputs.items()}
        douts = [d.double() for d in douts]
        options = self.case.options
        reverse = options.get("reverse", False)
        if self.case.op == "causal_conv1d":
            return conv(wide, douts[0], silu_=options.get("activation") == "silu", reverse=reverse)
        soft = options.get("delta_softplus", False)
        return scan(wide, douts[:-1], douts[-1], soft=soft, reverse=reverse)

    def check(self, backend: str, device: str = "cpu", *, numbers_only: bool = False) -> None:
        """Hold a backend, or the reference in its own or in double precision, to the equations.

        numbers_only: hold only those elements to them that the backend says are numbers. So no NaN
            and no infinity may be lost, but more may become NaN.

        Raises:
            AssertionError: NaN or an infinity is in other places, or a number is out of tolerance.
        """
        if backend.startswith("reference"):
            function = getattr(reference, self.case.op)
            actual = self.run(function, wide=backend == "reference, double")
        else:
            actual = self.run(getattr(ops, self.case.op), device=device, backend=backend)
        wanted = self.expected()
        assert actual.keys() == wanted.keys()
        if numbers_only:
            numbers = {n: x.isfinite() for n, x in actual.items()}
            actual, wanted = ({n: x[numbers[n]] for n, x in r.items()} for r in (actual, wanted))
        wrong = {n: difference(actual[n], wanted[n]) for n in wanted}
        wrong = {n: text for n, text in wrong.items() if text}
        assert not wrong, f"{self} on {backend}: {wrong}"


def _floating(x) -> bool:
    return x is not None and x.is_floating_point()


def put(x: Tensor, valid: Tensor, place: int, value: float | int) -> None:
    """Write a number, or a NaN of that payload, to one of the valid elements."""
    places = valid.reshape(-1).nonzero()[:, 0]
    if places.numel():
        flat = x.view(-1)
        special = nan(value, x.dtype) if isinstance(value, int) else torch.tensor([value])
        # By its bits, since a conversion would make a signalling NaN quiet.
        at = places[place % places.numel()]
        flat[at : at + 1] = special.to(x.dtype)


def difference(actual: Tensor, wanted: Tensor) -> str:
    """What is wrong with `actual`, a tensor of any dtype, or nothing."""
    forward, backward = testing.TOLERANCES[actual.dtype]
    wanted = wanted.to(actual.dtype).double()
    actual = actual.double()
    kinds = {}
    for name, x in (("actual", actual), ("wanted", wanted)):
        kinds[name] = torch.where(x.isnan(), 2.0, torch.where(x.isinf(), x.sign(), 0.0))
    if not torch.equal(kinds["actual"], kinds["wanted"]):
        at = (kinds["actual"] != kinds["wanted"]).nonzero()
        first = tuple(at[0].tolist())
        return f"{len(at)} of {actual.numel()}, first {first}: {actual[first]}, not {wanted[first]}"
    finite = wanted.isfinite()
    actual, wanted = actual[finite], wanted[finite]
    if not wanted.numel():
        return ""
    # Where one element of a thousand is large, it alone would make the norm.
    scale = wanted.abs() + (wanted.square().mean().sqrt() or 1)
    error = float(((actual - wanted).abs() / scale).max())
    return f"error {error:.1e}" if error > 10 * max(forward, backward) else ""


def arguments(case: matrix.Case) -> list[str]:
    """The names that a special value can be put in."""
    inputs, douts = Call(case).tensors()
    return [n for n, x in inputs.items() if _floating(x)] + [f"dout_{i}" for i in range(len(douts))]


def draw(op: str, seed: int, dtypes=matrix.DTYPES, most: int = 33) -> Call:
    """A call at the edges of the sizes, with up to three special values in it."""
    r = random.Random(f"{op} {seed}")
    length = r.choice([n for n in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 33) if n <= most])
    sizes = {
        "batch": r.choice((1, 1, 2, 3)),
        "length": length,
        "dtype": r.choice(dtypes),
    }
    options = {"reverse": r.random() < 0.5}
    if op == "causal_conv1d":
        sizes |= {
            "dim": r.choice((1, 3, 8, 9, 16, 17, 33)),
            "width": r.choice((1, 2, 3, 4, 5, 9, 18)),
        }
        sizes["bias"] = r.random() < 0.7
        options["activation"] = r.choice((None, "silu"))
    else:
        ngroups = r.choice((None, None, 1, 2, 3))
        sizes |= {"dim": (ngroups or 1) * r.choice((1, 2, 5, 8, 9, 16, 17))}
        sizes |= {"dstate": r.choice((1, 2, 3, 4, 5, 8, 9, 16, 17)), "ngroups": ngroups}
        sizes |= {name: r.random() < 0.6 for name in matrix.TENSOR_OPTIONS}
        options["delta_softplus"] = r.random() < 0.6
    lengths = None
    if r.random() < 0.4:
        lengths = tuple(r.randint(0, length) for _ in range(sizes["batch"]))
    layout = r.choice(("contiguous", "contiguous", "sliced", "transposed"))
    case = matrix.Case(op, sizes, options, layout, lengths)
    names = arguments(case)
    specials = []
    for _ in range(r.choice((1, 1, 2, 2, 3))):
        name = r.choice(names)
        value = r.choice((INF, -INF, 0.0, r.randrange(32)))
        if name in ("A", "delta") and r.random() < 0.3:
            value = r.choice((1e6, -1e6))
        specials.append((name, r.randrange(10**6), value))
    return Call(case, specials, seed=r.randrange(1000))


# Errors that do not grow

# What a result that is computed in float32 and rounded once may be away, as relative L2 error.
ROUNDED_ONCE = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-5}


def growth_cases(op: str, dtype: torch.dtype, scale: int = 1) -> list[matrix.Case]:
    """Calls in each of which another size is large, and with it the sums along it."""
    few = {"batch": 1, "length": 4, "dim": 16, "dtype": dtype}
    long, soft = {"length": 512 // scale, "dim": 4}, {"delta_softplus": True}
    if op == "causal_conv1d":
        silu = {"activation": "silu"}
        large = [{"batch": 512 // scale}, {"length": 2048 // scale}, {"width": 32}]
        return [matrix.Case(op, few | sizes, silu) for sizes in large]
    large = [{"dim": 4096 // scale}, {"batch": 512 // scale}, long, {"dstate": 256}]
    return [matrix.Case(op, few | sizes, soft) for sizes in large]


def check_growth(case: matrix.Case, backend: str, device: str = "cpu") -> None:
    """Hold every output and gradient to an error that does not depend on the sizes."""
    inputs = case.inputs(device)
    if "A" in inputs:  # near -1 for every state, or those of many states would forget at once
        inputs["A"] = inputs["A"] / inputs["A"].abs().amax(0)
    errors = testing.compare(case.op, inputs, backend=backend, **case.options)
    # Gradients of weights are sums in float32, whatever the dtype of u is.
    wide = {"dA", "dD", "ddelta_bias", "dinitial_state", "dweight", "dbias"}
    if case.op != "causal_conv1d":
        wide.add(max(name for name in errors if name.startswith("out_")))
    dtype = case.sizes["dtype"]
    limits = {n: ROUNDED_ONCE[torch.float32 if n in wide else dtype] for n in errors}
    # For half types, the step sizes are computed to some 1e-5.
    wrong = {n: e for n, e in errors.items() if not e <= limits[n] * (1 + 3 * (n in wide))}
    assert not wrong, f"{case} on {backend}: {wrong}"
