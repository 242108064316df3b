"""Averages that a batch with an infinite or undefined value does not spoil for good.

Those of the quantisers, and of the batch norm before one that is a layer. Batch norms of networks are PyTorch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def all_finite(*values: torch.Tensor) -> torch.Tensor:
    """Whether no value is infinite or undefined, a boolean scalar tensor: no one waits for the device."""
    return torch.stack([value.isfinite().all() for value in values]).all()


def follow(average: torch.Tensor, value: torch.Tensor, weight: torch.Tensor, usable: torch.Tensor) -> None:
    """Moves an average in place: average ← average + weight · (value − average).

    Args:
        average: What moves.
        value: Of the same shape.
        weight: A scalar in [0, 1].
        usable: A boolean scalar; where it is False the average stays exactly what it is, whatever `value` holds.
    """
    average.copy_(torch.where(usable, average.lerp(value, weight), average))


class FiniteBatchNorm1d(nn.BatchNorm1d):
    """A batch norm without learned scale, whose running statistics do not follow a batch with an infinite or
    undefined value.

    Args:
        num_channels: d.
    """

    def __init__(self, num_channels: int):
        super().__init__(num_channels, affine=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(M, d) → (M, d)."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        moved = self.running_mean.clone(), self.running_var.clone()
        normalized = F.batch_norm(input, *moved, training=True, momentum=self.momentum, eps=self.eps)
        usable = all_finite(*moved)
        with torch.no_grad():
            self.running_mean.copy_(torch.where(usable, moved[0], self.running_mean))
            self.running_var.copy_(torch.where(usable, moved[1], self.running_var))
            self.num_batches_tracked += usable
        return normalized
