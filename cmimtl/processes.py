"""The processes of one training: which one this is, and what they decide together.

torchrun starts several with the same arguments, and tells each by its environment who it is. They
work as one: gloo connects them on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

Result = TypeVar("Result")


class FailedElsewhere(SystemExit):
    """Another process of this training failed and says why; this one ends without a word."""

    def __init__(self) -> None:
        super().__init__(2)


def join() -> PartialState:
    """Meet the other processes, if there are any; who this one is."""
    return PartialState(cpu=not torch.cuda.is_available())


def together(work: Callable[[], Result], *, main_only: bool = False) -> Result:
    """Do something in every process; where it fails in one, none goes on.

    Args:
        work: what is done; processes do not wait for one another in it.
        main_only: the first process alone does it, and its result is everyone's.
    Returns:
        what work gave.
    Raises:
        Exception: of work, in the first process that failed, which is to say why.
        FailedElsewhere: in all others.
    """
    state = join()
    result, error = None, None
    if state.is_main_process or not main_only:
        try:
            result = work()
        except Exception as caught:
            error = caught
    outcomes = gather_object([(error is not None, result if main_only else None)])
    for process, (failed, _) in enumerate(outcomes):
        if failed and process == state.process_index:
            raise error
        if failed:
            raise FailedElsewhere
    return outcomes[0][1] if main_only else result
