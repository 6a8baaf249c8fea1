"""Faults of the backward pass, and of the carries between segments: see faults.py."""

from tests.cuda_on_cpu import faults


@faults.of("backward", "split")
def test_fault_is_seen(fault, tmp_path):
    faults.check_seen(fault, tmp_path)
