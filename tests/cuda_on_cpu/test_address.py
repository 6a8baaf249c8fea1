"""The kernels under the address sanitizer and that of undefined behaviour: see runs.py."""

from tests.cuda_on_cpu import build, runs


def test_kernels_are_clean():
    runs.check_clean(build.ADDRESS)


@runs.faults_of(build.ADDRESS)
def test_fault_is_seen(name):
    runs.check_seen(name)
