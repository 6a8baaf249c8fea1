"""The kernels with one line broken: the tests must see each fault, or they are no guard.

Two files of tests have them, so that two workers share what they take.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.test_sanitizers import KERNELS

RACE = "ThreadSanitizer: data race"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
WRONG = "AssertionError"  # a result is far from the reference, or NaN


@dataclass(frozen=True)
class Fault:
    """One edit of a file of csrc/cuda, and what must see it: a message of a build's run.

    The first occurrence of `line` is replaced by `broken`; `tests` selects (pytest's -k).
    """

    file: str
    line: str
    broken: str
    build: str
    message: str
    tests: str = "test_scan"


FAULTS = {
    "forward: no barrier after a tile is stored": Fault(
        "scan_forward.cuh", "__syncthreads();  // one is enough", "//", "thread", RACE
    ),
    "backward: no barrier before a tile is overwritten": Fault(
        "scan_backward.cuh",
        "__syncthreads();\n      Sums::over_warps",
        "Sums::over_warps",
        "thread",
        RACE,
    ),
    "backward: a checkpoint is read before its copy has ended": Fault(
        "scan_backward.cuh",
        "if (t == 0) copies_wait<0>()",
        "if (t == 0) copies_wait<1>()",
        "plain",
        "exits with copies that were never waited for",
    ),
    "backward: a warp sums before all lanes have stored": Fault(
        "scan_backward.cuh",
        "__syncwarp();\n    Sums::template over_channels",
        "Sums::template over_channels",
        "thread",
        RACE,
    ),
    "forward: two segments of a split scan share their place": Fault(
        "scan_forward.cuh",
        "slot = place.segment + 1",
        "slot = 0",
        "thread",
        f"{RACE}|{WRONG}",  # no race where one thread of the host happens to run both blocks
        "test_scan and 600",
    ),
    "backward: a row of B and C past the last step is read": Fault(
        "scan_common.cuh", "r < count)", "r <= count)", "address", OVERFLOW
    ),
    "forward: a row of B and C past the last step is read": Fault(
        "scan_common.cuh", "r < count ?", "r <= count ?", "address", OVERFLOW
    ),
    "forward: a tile is made of copies that were not waited for": Fault(
        "scan_common.cuh", "copies_wait<kLater>();", ";", "plain", WRONG
    ),
    "forward: a stage is read before its copies are waited for": Fault(
        "ahead.cuh", "copies_wait<kStages - 1>();", ";", "plain", WRONG, "fills"
    ),
    "forward: the steps past the last one are copied": Fault(
        "ahead.cuh",
        "place(slot), from, valid);",
        "place(slot), from);",
        "address",
        OVERFLOW,
        "fills",
    ),
    "forward: half of the shared memory is asked for": Fault(
        "scan_forward_launch.cuh",
        "kStreams, kGate>::kShared)",
        "kStreams, kGate>::kShared / 2)",
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
        "if (state(i) < dstate) p[state(i)] = x[i]",
        "if (state(i) <= dstate) p[state(i)] = x[i]",
        "address",
        OVERFLOW,
    ),
    "forward: lanes are missing from a mask": Fault(
        "scan_forward.cuh",
        "__shfl_sync(kAllLanes, x[j % kOwn][c]",
        "__shfl_sync(0xffffu, x[j % kOwn][c]",
        "plain",
        "the calling lane is not in its own mask",
    ),
    "forward: padding is not cleared": Fault(
        "scan_forward.cuh",
        "max(begin, valid), min(end, p.size.length)",
        "min(end, p.size.length), min(end, p.size.length)",
        "plain",
        WRONG,
        "test_scan and lengths",
    ),
    "backward: parts are not fenced before the block's ticket": Fault(
        "scan_backward_parts.cuh",
        "__threadfence();  // who sees the ticket sees the parts",
        "",
        "thread",
        RACE,
    ),
    "backward: the last block reads parts before it has seen the tickets": Fault(
        "scan_backward_parts.cuh",
        "      __threadfence();\n    }",
        "    }",
        "thread",
        RACE,
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
        "if (all || !is_last(partial.sums_done + tile, partial.sums)) return;",
        "if (all || together != partial.sums - 1) return;",
        "plain",
        WRONG,
        "test_scan and 18",
    ),
    "backward: tickets are not cleared": Fault(
        "scan_backward.cu",
        "if (memory.tickets > 0) clear_memory",
        "if (false) clear_memory",
        "plain",
        WRONG,
    ),
    "backward: a block's ticket does not wait for all of its threads": Fault(
        "scan_backward_parts.cuh",
        "__syncthreads();  // all threads have written theirs",
        "//",
        "thread",
        RACE,
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


def of(*passes: str) -> pytest.MarkDecorator:
    """The faults whose names begin so, for a test of `fault`."""
    chosen = {name: fault for name, fault in FAULTS.items() if name.startswith(passes)}
    return pytest.mark.parametrize("fault", chosen.values(), ids=chosen)


def check_seen(fault: Fault, folder: Path) -> None:
    """Compile the kernels with the fault, in a copy of the sources, and see the tests fail."""
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc, ignore=shutil.ignore_patterns("cpu", "__pycache__"))
    file = csrc / "cuda" / fault.file
    text = file.read_text()
    assert fault.line in text, "the fault's line is not there any more: plant it elsewhere"
    file.write_text(text.replace(fault.line, fault.broken, 1))
    chosen = build.BUILDS[fault.build]
    run = chosen.pytest(build.kernels(chosen, csrc), KERNELS, "-k", fault.tests)
    assert run.returncode != 0, run.stdout
    assert re.search(fault.message, run.stdout), run.stdout
