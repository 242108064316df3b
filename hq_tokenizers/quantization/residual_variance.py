"""Quantisation variances that follow what the levels leave over, instead of being trained."""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.processes import all_reduce

DECAY = 0.99


class ResidualVariance(nn.Module):
    """s_l² = factor · E_l, with E_l the moving average of ‖r_l − z̃_l‖² / d, the energy that level l leaves over.

    Trained freely, deep levels of a residual hierarchy inflate their variance, since the uniform prior rewards entropy;
    tied to what remains, they stay as sharp as their task. Averages move once per optimiser step, over all processes
    and parts of the batch, with decay min(0.99, (1 + t) / (10 + t)) at step t, so that the start is soon forgotten.

    Args:
        num_levels: Number of levels L.
        factor: Variance per remaining energy; 1 is sharp, 3 soft.
    """

    energy: torch.Tensor
    step: torch.Tensor

    def __init__(self, num_levels: int, factor: float):
        super().__init__()
        self.factor = factor
        self.parts = 1
        """Forward passes that make one optimiser step (gradient accumulation)."""
        self.register_buffer("energy", torch.ones(num_levels))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._pending: torch.Tensor | None = None
        self._parts_seen = 0

    def forward(self) -> torch.Tensor:
        """s_l² of every level, (L,)."""
        return self.factor * self.energy.float()

    @torch.no_grad()
    def observe(self, energies: torch.Tensor) -> None:
        """Takes the mean energies per value (L,) that the levels left over in a forward pass of training."""
        self._pending = energies.clone() if self._pending is None else self._pending + energies
        self._parts_seen += 1
        if self._parts_seen < self.parts:
            return
        # Sums and their number together, so that every part and process counts alike.
        sums = torch.cat([self._pending, torch.full_like(self._pending[:1], self._parts_seen)])
        all_reduce(sums)
        decay = ((1 + self.step) / (10 + self.step)).clamp_max(DECAY)
        self.energy.copy_(decay * self.energy + (1 - decay) * sums[:-1] / sums[-1])
        self.step += 1
        self._pending, self._parts_seen = None, 0
