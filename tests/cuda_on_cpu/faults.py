"""Lines of the kernels to break: the tests must see each fault, or they are no guard.

Every fault is planted in the sources that are compiled, asleep: in place of the right expression
stands a choice between it and the broken one, by the number of the fault that the process is to
have, if any. So no fault has a compilation of its own, and a run without one, which must pass,
shows that the choices harm nothing. Whatever the choice, the right expression is there as it is in
the sources.
"""

from dataclasses import dataclass

RACE = "ThreadSanitizer: data race"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
WRONG = "AssertionError"  # a result is far from the reference, or NaN
NOTHING = "void()"


@dataclass(frozen=True)
class Fault:
    """An expression of a file of csrc/cuda to break, and what must see it: a message of a build's
    run.

    Attributes:
        file: in csrc/cuda.
        right: the expression, without a comma or an assignment outside of parentheses.
        broken: what stands in its place where the fault is awake, of the same type.
        build: the build that sees it.
        message: what that build's run then says, a regular expression.
        tests: that run, pytest's -k.
        at: a text with `right` that the file has once; None where `right` is one.
    """

    file: str
    right: str
    broken: str
    build: str
    message: str
    tests: str = "test_scan"
    at: str | None = None


FAULTS = {
    "forward: no barrier after a tile is stored": Fault(
        "scan_forward.cuh", "__syncthreads()", NOTHING, "thread", RACE
    ),
    "backward: no barrier before a tile is overwritten": Fault(
        "scan_backward.cuh",
        "__syncthreads()",
        NOTHING,
        "thread",
        RACE,
        at="__syncthreads();\n      Sums::over_warps",
    ),
    "backward: a checkpoint is read before its copy has ended": Fault(
        "scan_backward.cuh",
        "copies_wait<0>()",
        "copies_wait<1>()",
        "plain",
        "exits with copies that were never waited for",
        at="if (t == 0) copies_wait<0>()",
    ),
    "backward: a warp sums before all lanes have stored": Fault(
        "scan_backward.cuh",
        "__syncwarp()",
        NOTHING,
        "thread",
        RACE,
        at="__syncwarp();\n    Sums::template over_channels",
    ),
    "forward: two segments of a split scan share their place": Fault(
        "scan_forward.cuh",
        "place.segment + 1",
        "0",
        "thread",
        f"{RACE}|{WRONG}",  # no race where one thread of the host happens to run both blocks
        "test_scan and 600",
    ),
    "backward: a row of B and C past the last step is read": Fault(
        "scan_common.cuh", "r < count", "r <= count", "address", OVERFLOW, at="r < count)"
    ),
    "forward: a row of B and C past the last step is read": Fault(
        "scan_common.cuh", "r < count", "r <= count", "address", OVERFLOW, at="r < count ?"
    ),
    "forward: a tile is made of copies that were not waited for": Fault(
        "scan_common.cuh", "copies_wait<kLater>()", NOTHING, "plain", WRONG
    ),
    "forward: a stage is read before its copies are waited for": Fault(
        "loads_in_flight.cuh", "copies_wait<kStages - 1>()", NOTHING, "plain", WRONG, "fills"
    ),
    "forward: the steps past the last one are copied": Fault(
        "loads_in_flight.cuh",
        "valid",
        "true",
        "address",
        OVERFLOW,
        "fills",
        at="place(slot), from, valid)",
    ),
    "forward: half of the shared memory is asked for": Fault(
        "scan_forward_launch.cuh",
        "Forward<T, kStates, kShare, kChannels, kStreams, kGate>::kShared",
        "Forward<T, kStates, kShare, kChannels, kStreams, kGate>::kShared / 2",
        "plain",
        "the target is not in shared memory",
    ),
    "plan: pairs of channels may be misaligned": Fault(
        "plan.h",
        "uintptr_t(2 * element_bytes)",
        "uintptr_t(element_bytes)",
        "plain",
        "address is not a multiple of 8",
        "slices",
    ),
    "forward: a state past the last one is written": Fault(
        "scan_common.cuh",
        "state(i) < dstate",
        "state(i) <= dstate",
        "address",
        OVERFLOW,
        at="if (state(i) < dstate) p[state(i)] = x[i]",
    ),
    "forward: lanes are missing from a mask": Fault(
        "scan_forward.cuh",
        "kAllLanes",
        "0xffffu",
        "plain",
        "the calling lane is not in its own mask",
        at="__shfl_sync(kAllLanes, x[j % kOwn][c]",
    ),
    "forward: padding is not cleared": Fault(
        "scan_forward.cuh",
        "max(begin, valid)",
        "min(end, p.size.length)",
        "plain",
        WRONG,
        "test_scan and lengths",
    ),
    "backward: parts are not fenced before the block's ticket": Fault(
        "scan_backward_parts.cuh",
        "__threadfence()",
        NOTHING,
        "thread",
        RACE,
        at="__threadfence();  // a block that sees the ticket also sees the parts",
    ),
    "backward: the last block reads parts before it has seen the tickets": Fault(
        "scan_backward_parts.cuh",
        "__threadfence()",
        NOTHING,
        "thread",
        RACE,
        at="__threadfence();\n    }",
    ),
    "backward: a block that is not the last adds up the parts": Fault(
        "scan_backward_parts.cuh",
        "unsigned(blocks) - 1",
        "0u",
        "plain",
        WRONG,
        "test_scan and 18",
    ),
    "backward: sums of samples are added up before all are there": Fault(
        "scan_backward_parts.cuh",
        "!is_last(partial.sums_done + tile, partial.sums)",
        "together != partial.sums - 1",
        "plain",
        WRONG,
        "test_scan and 18",
    ),
    "backward: tickets are not cleared": Fault(
        "scan_backward.cu", "memory.tickets > 0", "false", "plain", WRONG
    ),
    "backward: a block's ticket does not wait for all of its threads": Fault(
        "scan_backward_parts.cuh",
        "__syncthreads()",
        NOTHING,
        "thread",
        RACE,
        at="__syncthreads();\n    if (threadIdx.x == 0)",
    ),
    "split: the gradients' carries are in the order of the states'": Fault(
        "split.cu",
        "backward ? split.segments - 1 - i : i",
        "i",
        "plain",
        WRONG,
        "test_scan and 600",
    ),
}


def number(name: str) -> int:
    """The fault's, as simt::planted() knows it; 0 is none."""
    return 1 + list(FAULTS).index(name)


def planted(file: str, text: str) -> str:
    """The text of a file of csrc/cuda with its faults, asleep, on the lines where they were."""
    mine = {name: fault for name, fault in FAULTS.items() if fault.file == file}
    for name, fault in mine.items():
        at = fault.at or fault.right
        if text.count(at) != 1 or at.count(fault.right) != 1:
            raise ValueError(
                f"planted: {file} must have {at!r} once, to plant {name!r} in it, got"
                f" {text.count(at)}; choose another place for it in faults.py"
            )
        choice = f"(simt::planted({number(name)}) ? {fault.broken} : {fault.right})"
        text = text.replace(at, at.replace(fault.right, choice))
    return f'#include "planted.h"\n#line 1\n{text}' if mine else text
