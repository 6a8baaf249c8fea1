"""The engine: what it must see in a faulty kernel, and that it sees nothing in a right one."""

import dataclasses
import re

import pytest

from tests.cuda_on_cpu import build

HERE = build.HERE
RACE = "ThreadSanitizer: data race"
# What each faulty kernel of engine_cases.cu must lead to, by build.
FAULTS = {
    "removed_barrier": {"plain": r"element \d+ is -?nan", "thread": RACE},
    "removed_second_barrier": {"thread": RACE},
    "divergent_barrier": {"plain": "__syncthreads, while thread"},
    "exit_before_barrier": {"plain": r"__syncthreads, which thread \(5,0,0\) never reached"},
    "removed_warp_barrier": {"thread": RACE},
    "shuffle_as_barrier": {"thread": RACE},
    "wrong_mask": {"plain": "mask names lane 16, which has exited"},
    "not_in_own_mask": {"plain": "calling lane is not in its own mask"},
    "different_collectives": {"plain": "lane .* of the mask is in another collective"},
    "barrier_against_shuffle": {"plain": "waits for lanes that never come: 1 threads are in"},
    "unwritten_shared_memory": {"plain": "element 56 is -?nan"},
    "shared_off_by_one": {"address": "AddressSanitizer: heap-buffer-overflow"},
    "global_off_by_one": {"address": "AddressSanitizer: heap-buffer-overflow"},
    "misaligned_load_vector": {"plain": "load_vector: address is not a multiple of 16"},
    "misaligned_float4": {"address": "misaligned address"},
    "copy_without_wait": {"plain": "exits with copies that were never waited for"},
    "copy_wait_for_one_less": {"plain": "is -?nan", "thread": RACE},
    "copy_without_commit": {"plain": "exits with copies that were never waited for"},
    "copy_without_barrier": {"thread": RACE},
    "copy_misaligned": {"plain": "copy_async: shared: address is not a multiple of 8"},
    "copy_outside": {"plain": "copy_async: the target is not in shared memory"},
    "copy_over_what_is_read": {"thread": RACE},
    "copy_of_invalid": {"plain": "element 0 is 65"},
    "cross_block_race": {"thread": RACE},
    "ticket_without_fence_before": {"thread": RACE},
    "ticket_without_fence_after": {"thread": RACE},
    "ticket_without_barrier": {"thread": RACE},
    "too_much_shared_memory": {"plain": "232449 bytes of shared memory: more than 232448"},
}


def run_case(name: str, case: str, seed: int = 0):
    chosen = build.BUILDS[name]
    return chosen.run([build.executable(chosen, HERE / "engine_cases.cu"), case, seed])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", build.BUILDS)
def test_right_kernels_pass(name, seed):
    run = run_case(name, "right", seed)
    assert run.returncode == 0 and not run.stdout, run.stdout


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "fault, name", [(fault, name) for fault, names in FAULTS.items() for name in names]
)
def test_faulty_kernels_are_caught(fault, name, seed):
    run = run_case(name, fault, seed)
    assert run.returncode != 0
    assert re.search(FAULTS[fault][name], run.stdout), run.stdout


def test_every_faulty_kernel_is_expected_to_be_caught():
    source = (HERE / "engine_cases.cu").read_text()
    table = source[source.index("kCases = {") :]
    assert set(re.findall(r'(?:CASE\(|\{")(\w+)', table)) == set(FAULTS)


def test_a_sanitizer_that_does_not_start_is_a_reason_to_skip(monkeypatch):
    """As that of threads, where addresses are drawn too far apart."""
    build.ADDRESS.require()
    unknown = dataclasses.replace(
        build.ADDRESS, environment=(("ASAN_OPTIONS", "max_allocation_size_mb=none"),)
    )
    with pytest.raises(pytest.skip.Exception, match="does not start here: ERROR: Invalid value"):
        unknown.require()


def test_errors_name_line_block_and_thread():
    run = run_case("plain", "wrong_mask")
    pattern = r"wrong_mask: engine_cases\.cu:\d+: block \(0,0,0\) thread \(\d+,0,0\): the mask"
    assert re.match(pattern, run.stdout), run.stdout
