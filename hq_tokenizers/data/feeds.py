"""What training asks for batches: the parts of every step, from any step on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .batches import BatchPlan
from .images import Batch, BatchSource, ImageRows


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

    def rest_of_epoch(self, step: int, device: torch.device) -> Iterator[Batch]:
        """This process's batches from optimiser step `step` to the end of its epoch, part by part."""
        indices = self.plan.rest_of_epoch(step)
        if not isinstance(self.rows, ImageRows):
            return self.rows.batches(indices, device)
        return self.rows.batches(indices, device, noise=(self.plan.seed, step // self.steps_per_epoch))
