"""The one test matrix of the scans and the convolution, whatever the backend.

A backend's tests call `check(case, backend=..., device=...)` for the cases they can afford:
test_scan.py for compiled kernels, and the tests of kernels that are interpreted for a part of them.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmimtl_kernels import testing

SCANS = ("selective_scan", "cross_selective_scan")

# Around one vector, one checkpoint, several checkpoints, the tokens of ViT-B/16 at 384, a power of
# two; the cross scan has two steps for each.
LENGTHS = {
    "selective_scan": (1, 2, 31, 32, 33, 127, 128, 129, 577, 2047, 2048, 2049),
    "cross_selective_scan": (1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 127, 577, 1023, 1024, 1025),
}
DIMS = (1, 3, 7, 8, 9, 16, 31, 33, 64, 65, 130)
DSTATES = (1, 2, 3, 5, 8, 15, 16, 17, 32, 64, 100, 256)
TENSOR_OPTIONS = ("D", "z", "delta_bias", "initial_state")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Case:
    """One call of a public op.

    Attributes:
        op: its name.
        sizes: arguments of `testing.scan_inputs` or `testing.conv_inputs`.
        options: keyword options of the op.
        layout: of every (batch, length, ...) tensor, see `testing.with_layout`.
        lengths: valid steps of each sample; what lies past them is NaN.
    """

    op: str
    sizes: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    layout: str = "contiguous"
    lengths: tuple[int, ...] | None = None

    def __str__(self) -> str:
        parts = [
            f"{k}={str(v).removeprefix('torch.')}" for k, v in (self.sizes | self.options).items()
        ]
        if self.layout != "contiguous":
            parts.append(self.layout)
        if self.lengths is not None:
            parts.append(f"lengths={'/'.join(map(str, self.lengths))}")
        return "-".join([self.op, *parts])

    def inputs(self, device: str = "cpu") -> dict[str, Tensor | None]:
        """The tensors of the call."""
        sizes = dict(self.sizes)
        if self.op == "causal_conv1d":
            inputs = testing.conv_inputs(**sizes)
        else:
            sizes["delta_softplus"] = self.options.get("delta_softplus", False)
            inputs = testing.scan_inputs(cross=self.op == "cross_selective_scan", **sizes)
        if self.lengths is not None:
            inputs["lengths"] = torch.tensor(self.lengths)
            poison_padding(inputs)
        for name, x in inputs.items():
            if x is not None and name in _SEQUENCES:
                inputs[name] = testing.with_layout(x, self.layout)
        return {name: None if x is None else x.to(device) for name, x in inputs.items()}


_SEQUENCES = ("u", "v", "t", "delta", "B", "C", "z", "z_v", "z_t", "x")


def poison_padding(inputs: dict[str, Tensor | None]) -> None:
    """Fill every step past a sample's length with NaN: no kernel may read it."""
    length = next(x for name, x in inputs.items() if name in ("u", "v", "x")).shape[1]
    for name, x in inputs.items():
        if name not in _SEQUENCES or x is None:
            continue
        per_step = x.shape[1] // length if length else 1  # 2 for delta, B and C of the cross scan
        for sample, valid in enumerate(inputs["lengths"].tolist()):
            x[sample, per_step * valid :] = float("nan")


def check(case: Case, *, backend: str, device: str = "cpu") -> None:
    """Forward and every gradient of the case against the float64 reference, within
    `testing.TOLERANCES`."""
    testing.check_op(case.op, case.inputs(device), backend=backend, **case.options)


def scan_cases(op: str) -> list[Case]:
    """Every case of one scan; each group varies one thing and leaves the rest at its default."""
    soft = {"delta_softplus": True}
    back = {"delta_softplus": True, "reverse": True}
    cases = [Case(op, {"length": n, "dim": 5}, o) for n in LENGTHS[op] for o in (soft, back)]
    cases += [Case(op, {"length": 12, "dim": dim}, soft) for dim in DIMS]
    cases += [Case(op, {"length": 9, "dim": 9, "dstate": n}, soft) for n in DSTATES]
    cases += [
        Case(op, {"length": 40, "dim": 12, "dstate": n, "ngroups": g}, soft)
        for n in (4, 16)
        for g in (1, 3, 12)
    ]
    # Vectors and sums over samples of 16, and one more, in each of two groups.
    cases += [
        Case(op, {"batch": batch, "length": 3, "dim": 2 * each, "dstate": 3, "ngroups": 2}, back)
        for batch, each in ((1, 16), (16, 17), (17, 5), (18, 1))
    ]
    off = dict.fromkeys(TENSOR_OPTIONS, False)
    cases += [Case(op, off), Case(op, off, soft), Case(op, off, {"reverse": True})]
    cases += [Case(op, off | {name: True}) for name in TENSOR_OPTIONS]
    cases += [Case(op, {name: False}, back) for name in TENSOR_OPTIONS]
    for dtype in DTYPES:
        cases += [Case(op, {"length": 45, "dim": 24, "dtype": dtype}, o) for o in (soft, back)]
        cases += [Case(op, {"dtype": dtype, "ngroups": 2}, soft, "sliced", (7, 33))]
    for layout in ("sliced", "transposed", "expanded"):
        cases += [Case(op, {"length": 37, "dim": 20}, o, layout) for o in (soft, back)]
    valid = (0, 1, 32, 33, 45, 70)
    cases += [
        Case(op, {"batch": 6, "length": 70, "dim": 10} | s, o, layout, valid)
        for s in ({}, off, {"ngroups": 2})
        for o in (soft, back)
        for layout in ("contiguous", "sliced")
    ]
    cases += [
        Case(op, {"batch": 0}, soft),
        Case(op, {"length": 0}, soft),
        Case(
            op, {"batch": 1, "length": 300, "dim": 2, "dstate": 8}, soft
        ),  # fewer channels than lanes
        Case(op, {"batch": 1, "length": 300, "dim": 2, "dstate": 8}, back, "contiguous", (211,)),
    ]
    return cases


def conv_cases() -> list[Case]:
    op = "causal_conv1d"
    silu = {"activation": "silu"}
    mirrored = {"activation": "silu", "reverse": True}
    cases = [
        Case(op, {"length": n, "dim": 9}, o)
        for n in (1, 2, 3, 4, 33, 129)
        for o in (silu, mirrored)
    ]
    cases += [Case(op, {"dim": dim, "length": 20}, silu) for dim in DIMS]
    cases += [
        Case(op, {"width": w, "length": 20}, o)
        for w in (1, 2, 3, 4, 5, 9)
        for o in (silu, mirrored)
    ]
    cases += [
        Case(op, {"width": w, "length": 40, "dim": 17, "dtype": torch.bfloat16}, mirrored)
        for w in (17, 18, 32)
    ]
    cases += [Case(op), Case(op, {"bias": False}), Case(op, {"bias": False}, mirrored)]
    for dtype in DTYPES:
        cases += [
            Case(op, {"dtype": dtype, "dim": 24}, o, "contiguous", (33, 5))
            for o in (silu, mirrored)
        ]
    cases += [
        Case(op, {"batch": 5, "length": 40, "dim": 11}, o, layout, lengths)
        for layout in ("sliced", "transposed", "expanded")
        for o in (silu, mirrored)
        for lengths in (None, (0, 1, 2, 31, 40))
        if layout != "expanded"
        or lengths is None  # one sample for all cannot have padding of its own
    ]
    cases += [Case(op, {"batch": 0}, silu), Case(op, {"length": 0}, silu)]
    return cases
