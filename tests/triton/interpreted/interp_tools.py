"""Makes Triton's interpreter as unforgiving as a device; import it with TRITON_INTERPRET=1 set.

Inside `strict()` every launch fails where a device would misbehave without a word:

- a lane that is not masked and points outside the tensors of the launch;
- a load with a mask and without `other`: its masked lanes are NaN, or a huge integer;
- arithmetic on bfloat16, which the interpreter does on the raw bits; and float32 -> bfloat16 rounds
  to nearest even, where it truncates;
- an element that one program writes and another reads or writes, or that two lanes write.
"""

import contextlib
import types

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
Executor = interpreter.GridExecutor
Handle = interpreter.TensorHandle

NOBODY, SEVERAL = -1, -2


class Memory:
    """The tensors of one launch, and which program read and wrote each of their elements."""

    def __init__(self, tensors: dict):
        self.regions = []
        for name, x in tensors.items():
            storage = x.untyped_storage()
            begin, size = storage.data_ptr(), x.element_size()
            count = storage.nbytes() // size
            if count and all(begin != region[0] for region in self.regions):
                owners = np.full(count, NOBODY), np.full(count, NOBODY)
                self.regions.append((begin, begin + storage.nbytes(), size, *owners, name))

    def access(self, pointers, mask, program: int, store: bool) -> None:
        """Record one access.

        Raises:
            IndexError: out of bounds.
            RuntimeError: a conflict, between programs or lanes.
        """
        kind = "store" if store else "load"
        pointers = np.asarray(pointers).reshape(-1)
        pointers = pointers[np.asarray(mask).reshape(-1)]
        if not pointers.size:
            return
        pointers = pointers.astype(np.int64)
        for begin, end, size, writers, readers, name in self.regions:  # noqa: B007
            if begin <= pointers[0] < end:
                break
        else:
            raise IndexError(f"{kind} outside every tensor of the launch")
        if pointers.min() < begin or pointers.max() + size > end:
            first, last = (pointers.min() - begin) // size, (pointers.max() - begin) // size
            raise IndexError(
                f"{kind} of elements {first}..{last} of {name}, which has {len(writers)}"
            )
        i = (pointers - begin) // size
        if _others(writers[i], program):
            raise RuntimeError(f"{kind} of {name}, which another program writes")
        if not store:
            readers[i] = np.where(_is_mine(readers[i], program), program, SEVERAL)
            return
        if np.unique(i).size != i.size:
            raise RuntimeError(f"two lanes store one element of {name}")
        if _others(readers[i], program):
            raise RuntimeError(f"store to {name}, which another program reads")
        writers[i] = program


def _is_mine(owners, program: int):
    return (owners == NOBODY) | (owners == program)


def _others(owners, program: int) -> bool:
    return not _is_mine(owners, program).all()


def round_to_bfloat16(x):
    """float32 -> the bits of bfloat16, to nearest even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _undefined(pointers):
    """What a masked lane holds on a device: anything."""
    dtype = pointers.get_element_ty()
    kind = interpreter._get_np_dtype(dtype)
    if dtype == tl.bfloat16:
        value = np.uint16(0x7FC0)
    else:
        value = np.nan if np.issubdtype(kind, np.floating) else np.iinfo(kind).max // 2
    return Handle(np.full(pointers.data.shape, value, dtype=kind), dtype)


@contextlib.contextmanager
def strict():
    """Check every launch inside the `with` block."""
    replaced = {}
    memory = Memory({})

    def replace(owner, name: str, function) -> None:
        replaced[owner, name] = owner.__dict__[name]
        setattr(owner, name, function)

    def original(owner, name: str):
        return replaced[owner, name]

    def prepare(self, args, kwargs):
        nonlocal memory
        host_args, host_kwargs = original(Executor, "_init_args_hst")(self, args, kwargs)
        named = dict(zip(self.arg_names, host_args, strict=False)) | host_kwargs
        memory = Memory({n: x for n, x in named.items() if hasattr(x, "untyped_storage")})
        return host_args, host_kwargs

    def program(builder) -> int:
        (x, y, z), (_, height, depth) = builder.grid_idx, builder.grid_dim
        return (x * height + y) * depth + z

    def as_bool(mask):
        # `mask & scalar condition` gives int32 in the interpreter and i1 in the compiler.
        return Handle(mask.data.astype(bool), tl.int1)

    def load(self, pointers, mask, other, *options):
        mask = as_bool(mask)
        memory.access(pointers.data, mask.data, program(self), store=False)
        if other is None and not mask.data.all():
            other = _undefined(pointers)
        return original(Builder, "create_masked_load")(self, pointers, mask, other, *options)

    def store(self, pointers, value, mask, *options):
        mask = as_bool(mask)
        memory.access(pointers.data, mask.data, program(self), store=True)
        return original(Builder, "create_masked_store")(self, pointers, value, mask, *options)

    def cast(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return Handle(round_to_bfloat16(source.data), tl.bfloat16)
        return original(Builder, "cast_impl")(self, source, target)

    def binary(self, lhs, rhs, op):
        if tl.bfloat16 in (lhs.dtype.scalar, rhs.dtype.scalar):
            raise TypeError("arithmetic on bfloat16: convert to float32 first")
        return original(Builder, "binary_op")(self, lhs, rhs, op)

    def shortened(general, function):
        """An operator that adds or multiplies two float32 tensors of the same shape at once.

        The general one takes ten times as long, to find out that there is nothing to convert.
        """

        def operator(self, other):
            if type(other) is tl.tensor:
                x, y = self.handle, other.handle
                # A scalar has the shape (1,) too.
                if x.dtype is y.dtype is tl.float32 and x.data.shape == y.data.shape != (1,):
                    return tl.tensor(Handle(function(x.data, y.data), tl.float32), self.type)
            return general(self, other)

        return operator

    # At every call of a helper Triton looks through its whole language for what to interpret, which
    # takes longer than most helpers do. What is replaced here, once, is the same for all kernels.
    language = interpreter._patch_lang(
        types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    )
    language.set_attr(tl.tensor, "__add__", shortened(tl.tensor.__add__, np.add))
    language.set_attr(tl.tensor, "__mul__", shortened(tl.tensor.__mul__, np.multiply))
    replace(interpreter, "_patch_lang", lambda fn: types.SimpleNamespace(restore=lambda: None))
    replace(Executor, "_init_args_hst", prepare)
    replace(Builder, "create_masked_load", load)
    replace(Builder, "create_masked_store", store)
    replace(Builder, "cast_impl", cast)
    replace(Builder, "binary_op", binary)
    try:
        yield
    finally:
        for (owner, name), function in replaced.items():
            setattr(owner, name, function)
        language.restore()
