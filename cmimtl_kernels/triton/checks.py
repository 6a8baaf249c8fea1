"""What an op was given, checked before its kernels run: `csrc/bindings_checks.h` in Python.

The ops are public, and between the passes a caller can change what autograd saved. A kernel takes a
pointer for what the schema says it is, and would read and write beyond it.
"""

import re

import torch
from torch import Tensor

from cmimtl_kernels.registration import SCHEMAS

# What the letters of a shape stand for. Those of the first stream are known from the start.
SIZES = {
    "b": "batch",
    "l": "length",
    "s": "steps",
    "d": "dim",
    "n": "dstate",
    "g": "ngroups",
    "k": "chunks",
    "w": "width",
}
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
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# (argument, whether it may be None) of every tensor, by op; the other arguments come last.
TENSORS = {
    op: [(n, bool(o)) for o, n in re.findall(r"Tensor(\??) (\w+)", schema.partition("->")[0])]
    for op, schema in SCHEMAS.items()
}


def check(op: str, args: tuple) -> None:
    """Raise RuntimeError where the arguments break a convention of registration.py."""

    def require(holds: bool, name: str, must: str, got: object) -> None:
        if not holds:
            raise RuntimeError(f"{op}: {name} must {must}, got {got}")

    tensors = TENSORS[op]
    given: dict[str, Tensor | None] = {name: x for (name, _), x in zip(tensors, args, strict=False)}
    for name, optional in tensors:
        require(optional or given[name] is not None, name, "be a tensor", None)
    streams = 2 if "v" in given else 1
    first_name = next(name for name in ("u", "v", "x") if name in given)
    first = given[first_name]
    require(first.dtype in FLOATS, first_name, "be float32, bfloat16 or float16", _name(first))
    shape = tuple(first.shape)
    require(len(shape) == 3, first_name, "have shape (batch, length, dim)", shape)
    sizes = dict(zip("bld", shape, strict=True)) | {"s": streams * shape[1]}
    if "delta" in given:
        every, backward = args[-1], "checkpoints" in given
        least = streams if backward else 0
        must = f"be a multiple of {streams} from {least} on"
        require(every >= least and every % streams == 0, "checkpoint_every", must, every)
        sizes["k"] = -(-sizes["s"] // every) if every else 0
    if streams == 2:
        for one, other in (("z_v", "z_t"), ("z_t", "z_v")):
            together = given[one] is not None or given[other] is None
            require(together, one, f"be given together with {other}", None)
    # Incoming gradients come first in a schema, and say nothing of the sizes.
    for name, x in sorted(given.items(), key=lambda item: item[0].startswith(("dout", "dlast"))):
        if x is None:
            continue
        dtype = torch.float32 if name in WIDE else first.dtype
        dtype = torch.int64 if name == "lengths" else dtype
        require(x.dtype == dtype, name, f"be {str(dtype).removeprefix('torch.')}", _name(x))
        require(x.device == first.device, name, f"be on {first.device}", x.device)
        shape = tuple(x.shape)
        fits = any(_fits(shape, letters, sizes) for letters in SHAPES[name])
        require(fits, name, f"have shape {_text(name, sizes)}", shape)
        require(_in_memory(x), name, "lie in its memory", "storage that was made smaller")
    for letter, name in (("n", "A"), ("w", "weight")):
        holds = sizes.get(letter, 1) > 0
        require(holds, name, f"have {SIZES[letter]} >= 1", tuple(given.get(name, first).shape))
    groups = sizes.get("g", 1)
    divisor = f"have groups that divide dim={sizes['d']}"
    require(groups > 0 and sizes["d"] % groups == 0, "B", divisor, groups)


def _fits(shape: tuple[int, ...], letters: str, sizes: dict[str, int]) -> bool:
    """Whether a tensor has the shape. A letter that is new stands for the tensor's size from then
    on."""
    if len(shape) != len(letters):
        return False
    found = dict(zip(letters, shape, strict=True))
    if letters == "bsn":
        found["g"] = 1
    if any(sizes.get(letter, size) != size for letter, size in found.items()):
        return False
    sizes |= found
    return True


def _text(name: str, sizes: dict[str, int]) -> str:
    """The shapes that a tensor may have: a size where it is known, else its name."""
    shapes = (", ".join(str(sizes.get(n, SIZES[n])) for n in letters) for letters in SHAPES[name])
    return " or ".join(f"({shape}{',' if len(shape) < 2 else ''})" for shape in shapes)


def _in_memory(x: Tensor) -> bool:
    if x.numel() == 0:
        return True
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return (x.storage_offset() + last + 1) * x.element_size() <= x.untyped_storage().nbytes()


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
