"""The scale of latents, which a normalisation takes off before the codes and which code vectors get back after them.

Shape legend: B batch, h × w grid, d code width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of the channels of latents.

    Args:
        mean: (d,), float32.
        deviation: (d,), float32.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of_batch(cls, norm: nn.BatchNorm2d, latents: torch.Tensor) -> LatentScale:
        """What a batch norm takes off latents (B, d, h, w): in training their own scale, else its running one."""
        if not norm.training:
            return cls.running(norm)
        variance, mean = torch.var_mean(latents.float(), dim=(0, 2, 3), correction=0)
        return cls(mean, (variance + norm.eps).sqrt())

    @classmethod
    def running(cls, norm: nn.BatchNorm2d) -> LatentScale:
        """What a batch norm takes off in evaluation."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return cls(norm.running_mean.float(), (norm.running_var.float() + norm.eps).sqrt())

    def restore(self, vectors: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, h, w, d) in the scale of the latents."""
        return self.mean + self.deviation * vectors
