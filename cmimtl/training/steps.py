"""Which examples make a step: the same, however many processes and batches share them."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from cmimtl.data.batches import EpochOrder


class StepBatches(Sampler[list[int]]):
    """The batches of one process, one after the other, as a data loader takes them.

    A step of the optimizer takes ``parts = accumulate * processes`` batches of at most
    ``batch_size`` examples. An epoch of N examples is cut into K = steps * parts batches of nearly
    equal sizes: batch k holds the places k N // K to (k + 1) N // K of the epoch's order. So

    - no step, and not the last one either, is smaller than another by more than ``parts`` examples;
    - where batch_size * accumulate * processes stays the same, every step has the same examples.
      Two processes see together, in the same order, what one process with twice the batch sees.

    With a batch size of 1, and an N that parts does not divide, some batches hold two examples,
    because no batch may be empty.
    """

    def __init__(
        self, order: EpochOrder, *, batch_size: int, accumulate: int, processes: int, process: int
    ) -> None:
        """Take the order of an epoch's examples; process says which of the processes this is.

        Raises:
            ValueError: there are fewer examples than batches in a step.
        """
        count, parts = len(order), accumulate * processes
        if count < parts:
            raise ValueError(
                f"train: the training split must have an example for each of the {parts} batches"
                f" of a step ({accumulate} per process, {processes} processes), got {count}; lower"
                " accumulate."
            )
        self._order = order
        self._steps = min(-(-count // (batch_size * parts)), count // parts)
        self._accumulate = accumulate
        self._processes = processes
        self._process = process

    def __len__(self) -> int:
        return self._steps * self._accumulate

    def __iter__(self) -> Iterator[list[int]]:
        order, total = list(self._order), len(self) * self._processes
        for k in range(self._process, total, self._processes):
            yield order[k * len(order) // total : (k + 1) * len(order) // total]
