"""Every kind of launch through Triton's front end, and some through the whole compiler: run as a
program, as what is interpreted cannot be compiled in the same process.

The front end checks the types of a kernel, which the interpreter does not know. It takes a third of
a second for a kernel, and what it lets through the rest compiles. The whole compiler takes ten
times as long, so it gets what has most to keep in registers.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch
from triton._C.libtriton import ir
from triton.compiler.compiler import make_backend

from benchmarks.static import PASSES, SPLIT_PASSES
from benchmarks.static.triton import MANY, TARGETS, Launch, Recorder, figures
from cmimtl_kernels.triton import launch
from tests.kernels.matrix import SCANS, TENSOR_OPTIONS, Case

TARGET = TARGETS["sm_90"]
EVERY = 16
KERNELS = (
    "scan_forward", "scan_backward", "segment_summary", "segment_carry", "conv_forward",
    "conv_backward",
)  # fmt: skip
SPLIT = 512  # steps of a scan that is split over time
SPLIT_TARGETS = ("sm_90", "gfx942")  # for the kernels that only such a scan has
MANY_CHANNELS = {"dim": 256}  # on one multiprocessor: two to a lane


def cases() -> list[Case]:
    """Each option on and off, in one dtype or the other."""
    soft, back = {"delta_softplus": True}, {"delta_softplus": True, "reverse": True}
    off = dict.fromkeys(TENSOR_OPTIONS, False)
    half = {"dtype": torch.bfloat16}
    conv = "causal_conv1d"
    return [
        *(
            case
            for op in SCANS
            for case in (
                Case(op, MANY_CHANNELS, soft),
                Case(op, half, back, lengths=(9, 33)),
                Case(op, MANY_CHANNELS | half | off),
                Case(op, off, soft),
                Case(op, {"length": SPLIT} | half, soft),
                Case(op, {"length": SPLIT} | off, back, lengths=(9, SPLIT)),
                Case(op, {"dstate": 5} | half | off, back),
                Case(op, {"dstate": 100, "length": SPLIT} | half, back),
            )
        ),
        Case(conv, half, {"activation": "silu"}),
        Case(conv, {"bias": False}, {"reverse": True}, lengths=(9, 33)),
    ]


def launches(case: Case) -> list[Launch]:
    """Those of both passes; the forward scan's with and without a gradient to come."""
    recorded: list[Launch] = []
    inputs, options = case.inputs(), case.options
    with contextlib.ExitStack() as stack:
        for name in KERNELS:
            recorder = Recorder(getattr(launch, name), recorded)
            stack.enter_context(mock.patch.object(launch, name, recorder))
        stack.enter_context(mock.patch.object(launch, "lanes_of", lambda x: 32))
        processors = MANY if case.sizes.get("length") == SPLIT else 1
        stack.enter_context(mock.patch.object(launch, "processors_of", lambda x: processors))
        forward, backward = (getattr(launch, f"{case.op}_{which}") for which in ("fwd", "bwd"))
        reverse = options.get("reverse", False)
        if case.op == "causal_conv1d":
            tensors = inputs.values()
            given = (options.get("activation") == "silu", reverse)
            backward(forward(*tensors, *given), *tensors, *given)
            return recorded
        inputs["B"], inputs["C"] = inputs["B"][:, :, None], inputs["C"][:, :, None]  # one group
        tensors = inputs.values()
        given = (options.get("delta_softplus", False), reverse)
        forward(*tensors, *given, 0)
        *outs, last, checkpoints = forward(*tensors, *given, EVERY)
        backward(*outs, None if reverse else last, *tensors, checkpoints, *given, EVERY)
    return recorded


def lower(made: Launch) -> None:
    """The first stage of triton.compile."""
    source, backend = made.source(), make_backend(TARGET)
    options = backend.parse_options(made.options | source.parse_options())
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    implementation = backend.get_codegen_implementation(options)
    source.make_ir(TARGET, options, implementation, backend.get_module_map(), context)


def compiled() -> list[tuple[str, str, str]]:
    """The (op, pass, target) of the kernels that are compiled.

    On sm_90 these are both ops, whose instructions are counted. Of other targets only spills,
    atomics and shared memory are asked, and the cross scan has all that the selective scan has in
    registers, and the pointers of a second stream.
    """
    *whole, cross = SCANS
    scans = [(op, which, "sm_90") for op in whole for which in PASSES]
    scans += [(cross, which, target) for target in TARGETS for which in PASSES]
    return scans + [(cross, which, target) for target in SPLIT_TARGETS for which in SPLIT_PASSES]


def main(file: Path) -> None:
    """Write what the front end refuses, with the cases, and the figures of the compiled kernels."""
    seen, failures = set(), {}
    for case in cases():
        for made in launches(case):
            if (kind := made.source().hash()) in seen:
                continue
            seen.add(kind)
            try:
                lower(made)
            except Exception as error:  # of any kind: each is a kernel that does not compile
                text = str(error).strip().splitlines()[-1]
                failures.setdefault(f"{made.kernel.__name__}: {text}", []).append(str(case))
    rows = [figures(target, "float32", op, which) for op, which, target in compiled()]
    file.write_text(json.dumps({"kinds": len(seen), "failures": failures, "rows": rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
