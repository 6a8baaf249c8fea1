"""The CUDA kernels against the reference, thread by thread: see conftest.py for how they run, and
which cases."""

import os

import pytest
import torch

import cmimtl_kernels
from cmimtl_kernels import testing
from tests.cuda_on_cpu.build import WHOLE_MATRIX
from tests.cuda_on_cpu.conftest import BUILD, NAMESPACE
from tests.kernels import matrix, raw_calls
from tests.kernels import test_scan as properties
from tests.kernels.matrix import Case

pytestmark = pytest.mark.usefixtures("cuda_on_cpu")

LONGEST = 129  # steps of the matrix's cases here; longer ones below, where they reach other code
SOFT = {"delta_softplus": True}
BACK = {"delta_softplus": True, "reverse": True}


def chosen(cases: list[Case]) -> list[Case]:
    """The matrix's cases that are run: none in float64, which the CUDA kernels do not take, nor in
    what the build has not."""
    absent = {torch.float64, torch.float16} if BUILD.few else {torch.float64}
    cases = [case for case in cases if case.sizes.get("dtype") not in absent]
    return [case for case in cases if WHOLE_MATRIX or case.sizes.get("length", 0) <= LONGEST]


def split_cases(op: str) -> list[Case]:
    """Scans long enough to be split in time, the last segment short or without a valid step."""
    steps = 2 if op == "cross_selective_scan" else 1
    one = {"batch": 1, "dim": 3, "dstate": 4, "length": 600 // steps}
    two = one | {"batch": 2, "dstate": 16}
    half = {"dtype": torch.bfloat16}
    return [
        Case(op, one | {"batch": 2}, SOFT, "sliced", (600 // steps, 130 // steps)),
        Case(op, one, BACK),
        Case(op, two, SOFT, "sliced", (601 // steps - 1, 130 // steps)),
        Case(op, two, BACK, "sliced", (0, 400 // steps)),
        Case(op, one | dict.fromkeys(matrix.TENSOR_OPTIONS, False)),
        # Three segments of 152 steps, and two steps of the last one.
        Case(op, two | half, SOFT, "transposed", (456 // steps, 458 // steps)),
        Case(op, one | half | {"dstate": 40}, BACK, lengths=(150 // steps,)),
    ]


def few_cases(op: str) -> list[Case]:
    """A few cases that together reach every branch."""
    off = dict.fromkeys(matrix.TENSOR_OPTIONS, False)
    return [
        Case(op, {"batch": 1, "length": 37, "dim": 9}, SOFT),
        Case(op, {"batch": 3, "length": 35, "dim": 6, "ngroups": 2}, BACK, "sliced", (0, 7, 33)),
        Case(op, {"batch": 1, "length": 34, "dim": 130} | off),
        *(Case(op, {"batch": 1, "length": 9, "dim": 5, "dstate": n}, SOFT) for n in (1, 17, 100)),
        Case(op, {"batch": 1, "length": 12, "dim": 5, "dstate": 256}, BACK),
        Case(op, {"batch": 18, "length": 3, "dim": 3}, SOFT),  # samples are added up 16 at a time
        Case(op, {"batch": 1, "length": 20, "dim": 6, "dtype": torch.bfloat16}, SOFT, "transposed"),
    ]


def full_cases(op: str) -> list[Case]:
    """Scans with a whole channel in a thread, or a pair of channels, as where they fill the chip:
    pairs where every group has an even number of channels that lie side by side and aligned."""
    off = dict.fromkeys(matrix.TENSOR_OPTIONS, False)
    half = {"dtype": torch.bfloat16}
    cases = [
        Case(op, {"batch": 1, "length": 37, "dim": 6}, SOFT),
        Case(op, {"batch": 2, "length": 21, "dim": 6, "ngroups": 3} | half, BACK, lengths=(21, 8)),
        Case(op, {"batch": 1, "length": 19, "dim": 6, "dstate": 15} | half, SOFT),
        Case(op, {"batch": 1, "length": 9, "dim": 260} | off),
        Case(op, {"batch": 1, "length": 19, "dim": 6, "dstate": 10} | half, BACK, "sliced"),
    ]
    if BUILD.few:
        return cases
    lengths = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 64, 129)
    cases += [Case(op, {"length": n, "dim": 6}, o) for n in lengths for o in (SOFT, BACK)]
    cases += [Case(op, {"length": 21, "dim": dim}, SOFT) for dim in (1, 2, 3, 130, 257, 258)]
    cases += [
        Case(op, {"batch": 3, "length": 40, "dim": 12, "ngroups": g} | t, o, layout, (0, 23, 40))
        for g in (1, 2, 4)  # groups of 12, 6 and 3 channels
        for layout, t in (("contiguous", {}), ("sliced", half), ("transposed", half))
        for o in (SOFT, BACK)
    ]
    cases += [
        Case(op, {"length": 21, "dim": 4, "dtype": dtype, "dstate": n}, BACK, layout)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for n in (9, 16)
        for layout in ("contiguous", "expanded")
    ]
    cases += [Case(op, {"dim": 4} | off | {name: True}) for name in matrix.TENSOR_OPTIONS]
    return cases


def conv_cases() -> list[Case]:
    return chosen(matrix.conv_cases())[:: 4 if BUILD.few else 1]


def scan_cases(op: str) -> list[Case]:
    if BUILD.few:
        return [*few_cases(op), *split_cases(op)[:1]]
    return [*few_cases(op), *chosen(matrix.scan_cases(op)), *split_cases(op)]


def check(case: Case) -> None:
    matrix.check(case, backend="cuda")


@pytest.mark.parametrize("case", [c for op in matrix.SCANS for c in scan_cases(op)], ids=str)
def test_scan(case):
    check(case)


@pytest.mark.parametrize("case", [c for op in matrix.SCANS for c in full_cases(op)], ids=str)
def test_scan_that_fills_the_chip(cuda_on_cpu, case):
    cuda_on_cpu.simt_set_warps_to_fill(1)
    check(case)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("op", matrix.SCANS)
def test_scan_of_slices(cuda_on_cpu, op, first):
    """Channels that are a slice of a larger tensor, as after a split: pairs are aligned words where
    they begin at an even one."""
    cuda_on_cpu.simt_set_warps_to_fill(1)
    inputs = Case(op, {"batch": 2, "length": 21, "dim": 6}).inputs()
    for name in ("u", "v", "t", "delta", "z", "z_v", "z_t"):
        if name in inputs:
            x = inputs[name]
            larger = torch.full((*x.shape[:2], x.shape[2] + 4), torch.nan)
            inputs[name] = larger[:, :, first : first + x.shape[2]].copy_(x)
    testing.check_op(op, inputs, backend="cuda", **SOFT)


@pytest.mark.parametrize("case", conv_cases(), ids=str)
def test_convolution(case):
    check(case)


def test_random_raw_calls():
    """Wrong ones too: see raw_calls.py. Lengths on a GPU reach the kernels without a check."""
    count = int(os.environ.get("CMIMTL_RAW_CALLS", 8 if BUILD.few else 30))
    outcomes = raw_calls.run_all(NAMESPACE, count, int(os.environ.get("CMIMTL_RAW_CALLS_SEED", 0)))
    assert min(outcomes.values()) > sum(outcomes.values()) / 4, outcomes


@pytest.mark.parametrize("length, dim", [(40, 20), (600, 3)], ids=["one pass", "split in time"])
@pytest.mark.parametrize("op", matrix.SCANS)
def test_the_same_bits_under_every_schedule(cuda_on_cpu, op, length, dim):
    inputs = testing.scan_inputs(
        batch=2, length=length, dim=dim, cross=op == "cross_selective_scan"
    )
    function, runs = getattr(cmimtl_kernels, op), []
    for seed in (0, 1, 2):
        cuda_on_cpu.simt_set_seed(seed)
        runs.append(
            testing.run_with_gradients(function, inputs, backend="cuda", delta_softplus=True)
        )
    for run in runs[1:]:
        for name, result in run.items():
            assert torch.equal(result, runs[0][name]), name


HERE = ("cuda", "cpu")  # backend, device
PROPERTIES = {
    "cumulative sum": lambda: properties.test_without_decay_the_state_is_a_cumulative_sum(
        *HERE, reverse=False
    ),
    "cumulative sum, reverse": lambda: properties.test_without_decay_the_state_is_a_cumulative_sum(
        *HERE, reverse=True
    ),
    "cross scan": lambda: properties.test_without_decay_the_cross_scan_sums_products_and_sums(
        *HERE
    ),
    "decay": lambda: properties.test_constant_input_decays_geometrically(*HERE),
    "resumes": lambda: properties.test_a_scan_resumes_from_its_last_state(*HERE, cross=False),
    "cross scan resumes": lambda: properties.test_a_scan_resumes_from_its_last_state(
        *HERE, cross=True
    ),
    "reverse": lambda: properties.test_reverse_is_the_flipped_scan(*HERE),
    "NaN": lambda: properties.test_a_nan_stays_in_its_sample(*HERE, cross=False, reverse=True),
    "NaN, cross scan": lambda: properties.test_a_nan_stays_in_its_sample(
        *HERE, cross=True, reverse=False
    ),
    "steps near 0": lambda: properties.test_extreme_step_sizes(*HERE, "selective_scan", -60.0),
    "small steps": lambda: properties.test_extreme_step_sizes(*HERE, "cross_selective_scan", -20.0),
    "large steps": lambda: properties.test_extreme_step_sizes(*HERE, "selective_scan", 20.0),
    "largest steps": lambda: properties.test_extreme_step_sizes(*HERE, "selective_scan", 80.0),
    "growing states": lambda: properties.test_growing_states(*HERE),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name):
    PROPERTIES[name]()
