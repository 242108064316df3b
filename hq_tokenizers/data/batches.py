"""Which rows make which batch: a pure function of seed and step, so that a run resumes at any step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


def share_of_batch(batch_size: int, num_parts: int, num_processes: int) -> int:
    """Rows that a process has of each of the parts that a batch is split into.

    Raises:
        ValueError: If it does not split evenly.
    """
    shares = num_parts * num_processes
    if batch_size % shares:
        raise ValueError(
            f"batch_size {batch_size} does not split evenly over {num_processes} processes × {num_parts} accumulation "
            f"steps: use a multiple of {shares}."
        )
    return batch_size // shares


@dataclass(frozen=True)
class BatchPlan:
    """The order of the training rows.

    Every epoch is a permutation that only the seed and the epoch decide, cut into batches; rows left over sit out that
    epoch. A batch is split over processes and accumulation steps without changing what is in it.

    Args:
        num_rows: Rows of the training split.
        batch_size: Rows per optimiser step, over all processes and accumulation steps.
        seed: Seed of the order.
        num_parts: Accumulation steps.
        num_processes: Processes.
        process_index: This process.

    Raises:
        ValueError: If there are fewer rows than a batch needs, or a batch does not split evenly.
    """

    num_rows: int
    batch_size: int
    seed: int
    num_parts: int = 1
    num_processes: int = 1
    process_index: int = 0

    def __post_init__(self) -> None:
        if self.num_rows < self.batch_size:
            raise ValueError(
                f"The training split has {self.num_rows} rows, fewer than batch_size {self.batch_size}: use a smaller "
                "batch_size."
            )
        share_of_batch(self.batch_size, self.num_parts, self.num_processes)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return self.num_rows // self.batch_size

    def rest_of_epoch(self, step: int) -> list[torch.Tensor]:
        """This process's row indices from optimiser step `step` to the end of its epoch, part by part."""
        epoch, first = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)
        batches = order[first * self.batch_size : self.steps_per_epoch * self.batch_size]
        share = share_of_batch(self.batch_size, self.num_parts, self.num_processes)
        shares = batches.reshape(-1, self.num_processes, share)
        return list(torch.from_numpy(shares[:, self.process_index]))


def validation_batches(
    num_rows: int, batch_size: int, num_processes: int = 1, process_index: int = 0
) -> list[torch.Tensor]:
    """This process's share of batches that together visit every row exactly once, in order.

    Whole batches are dealt out, so that a loss that depends on its batch is the same for any number of processes.
    """
    return list(torch.arange(num_rows).split(batch_size))[process_index::num_processes]


def evenly(number: int, most: int) -> list[int]:
    """Up to `most` of the numbers from 0 to `number` − 1, spread evenly."""
    return np.linspace(0, number - 1, min(most, number)).round().astype(int).tolist()
