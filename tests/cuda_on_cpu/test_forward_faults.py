"""Faults of the forward pass, and of the plans: see faults.py."""

from tests.cuda_on_cpu import faults


@faults.of("forward", "plan")
def test_fault_is_seen(fault, tmp_path):
    faults.check_seen(fault, tmp_path)


def test_every_fault_is_in_one_of_the_two_files():
    assert all(name.startswith(("forward", "plan", "backward", "split")) for name in faults.FAULTS)
