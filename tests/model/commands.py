"""The command line as the tests of it call it, and a disk that is full."""

import contextlib
import resource

from cmimtl.cli import main


def run(*arguments):
    """Run a command in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def train_arguments(data, output, **options):
    """Of `cmimtl train` on a phantom set: six steps of eight questions, unless options say else."""
    options = {"max-steps": 6, "batch-size": 8, "save-every": 2, "log-every": 1} | options
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["train", "--data", "phantom", "--root", str(data), "--output-dir", str(output), *flags]


@contextlib.contextmanager
def largest_file(size):
    """A limit on files, which the system answers as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
