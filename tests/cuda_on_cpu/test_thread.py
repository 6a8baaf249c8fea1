"""The kernels under the thread sanitizer: see runs.py."""

from tests.cuda_on_cpu import build, runs


def test_kernels_are_clean():
    runs.check_clean(build.THREAD)


@runs.faults_of(build.THREAD)
def test_fault_is_seen(name):
    runs.check_seen(name)
