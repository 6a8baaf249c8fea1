"""Run by torchrun in test_distributed.py: a training, its end undone and resumed, a mistake.

The folder given must not be there.
"""

import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from tests.model.commands import run, train_arguments

if __name__ == "__main__":
    data, output, first = (Path(argument) for argument in sys.argv[1:4])
    arguments = train_arguments(data, output, **{"batch-size": 3, "accumulate": 2})
    assert run(*arguments) == 0
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.copytree(output, first)
        (output / "model.safetensors").unlink()
        shutil.rmtree(output / "checkpoint-6")
    dist.barrier()
    assert run("train", "--output-dir", output, "--resume") == 0
    dist.barrier()
    try:
        code = run(*arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
