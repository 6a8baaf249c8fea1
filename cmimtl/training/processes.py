"""The processes of one training: which one this is, and what they decide together.

torchrun starts several processes with the same arguments, and tells each by its environment which
one it is. They train one model together. gloo connects them on CPUs, and NCCL on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

Result = TypeVar("Result")


class FailedElsewhere(SystemExit):
    """Another process of this training failed and tells why; this process ends silently."""

    def __init__(self) -> None:
        super().__init__(2)


def join() -> PartialState:
    """Connect to the other processes, if there are any, and return which one this is."""
    return PartialState(cpu=not torch.cuda.is_available())


def together(work: Callable[[], Result], *, main_only: bool = False) -> Result:
    """Do something in every process; where it fails in one of them, none goes on.

    Args:
        work: the function to call. In it, processes must not wait for one another.
        main_only: whether only the first process calls it, and all get its result.
    Returns:
        the result of work.
    Raises:
        Exception: the error of work, in the first process that failed, which is to tell why.
        FailedElsewhere: in all other processes.
    """
    state = join()
    result: Any = None
    error: Exception | None = None
    if state.is_main_process or not main_only:
        try:
            result = work()
        except Exception as caught:
            error = caught
    outcomes = gather_object([(error is not None, result if main_only else None)])
    for process, (failed, _) in enumerate(outcomes):
        if error is not None and process == state.process_index:
            raise error
        if failed:
            raise FailedElsewhere
    return outcomes[0][1] if main_only else result
