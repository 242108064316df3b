"""The scale of latents, which a normalisation takes off before the codes and which code vectors get back after them.

Shape legend: B batch, h × w grid, d code width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hq_tokenizers.quantization.snapshot import snapshot


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of the channels of latents.

    Args:
        mean: (d,), float32.
        deviation: (d,), float32.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def restore(self, vectors: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, h, w, d) in the scale of the latents."""
        return self.mean + self.deviation * vectors


class LatentNorm(nn.BatchNorm2d):
    """A batch norm without learned scale whose running statistics are right from the first batch on, for any scale.

    Batch number n moves them by 1 / n, and by 0.1 from the tenth on.

    Args:
        num_channels: d.
    """

    def __init__(self, num_channels: int):
        # Far below the variance of any latents.
        super().__init__(num_channels, eps=1e-20, momentum=0.1, affine=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, d, h, w) → (B, d, h, w), float32."""
        return self.normalize(input)[0]

    def normalize(self, latents: torch.Tensor) -> tuple[torch.Tensor, LatentScale]:
        """Latents (B, d, h, w) normalised, in float32, and the scale that was taken off: in training the batch's."""
        latents = latents.float()
        if self.training:
            variance, mean = torch.var_mean(latents, dim=(0, 2, 3), correction=0)
            self._follow(mean.detach(), variance.detach())
            scale = LatentScale(mean, (variance + self.eps).sqrt())
        else:
            scale = self.running()
        per_channel = scale.mean[:, None, None], scale.deviation[:, None, None]
        return (latents - per_channel[0]) / per_channel[1], scale

    def running(self) -> LatentScale:
        """The scale that is taken off in evaluation."""
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = snapshot(self.running_mean), snapshot(self.running_var)
        return LatentScale(mean.float(), (variance.float() + self.eps).sqrt())

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        weight = self.num_batches_tracked.reciprocal().clamp_min(self.momentum)
        self.running_mean += weight * (mean - self.running_mean)
        self.running_var += weight * (variance - self.running_var)
