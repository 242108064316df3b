"""What training asks for batches: the parts of every step, from any step on."""

from __future__ import annotations

from collections.abc import Generator

import torch

from .batches import BatchPlan
from .images import Batch, BatchSource, ImageRows
from .streams import ImageStream, StreamFeed


def build_feed(
    data: BatchSource | ImageStream, batch_size: int, seed: int, num_parts: int, num_processes: int, process_index: int
) -> RowFeed | StreamFeed:
    """The batches of training data, which stay the same for any number of accumulation steps.

    Raises:
        ValueError: If there are fewer rows than a batch needs, or a batch does not split evenly.
    """
    shares = num_parts, num_processes, process_index
    if isinstance(data, ImageStream):
        return StreamFeed(data, batch_size, seed, *shares)
    return RowFeed(data, BatchPlan(len(data), batch_size, seed, *shares))


class RowFeed:
    """Batches of rows in the order of a plan, a function of seed and step; there is no state to keep.

    Args:
        rows: Training rows.
        plan: Which rows make which batch.
    """

    def __init__(self, rows: BatchSource, plan: BatchPlan):
        self.rows = rows
        self.plan = plan

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return self.plan.steps_per_epoch

    def epochs(self, step: int) -> float | None:
        """Epochs that so many optimiser steps are."""
        return step / self.steps_per_epoch

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Has nothing to restore."""

    def rest_of_epoch(self, step: int, device: torch.device) -> Generator[Batch, None, None]:
        """This process's batches from optimiser step `step` to the end of its epoch, part by part."""
        indices = self.plan.rest_of_epoch(step)
        if not isinstance(self.rows, ImageRows):
            yield from self.rows.batches(indices, device)
        else:
            yield from self.rows.batches(indices, device, noise=(self.plan.seed, step // self.steps_per_epoch))
