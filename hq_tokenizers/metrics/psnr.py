"""Peak signal-to-noise ratio of pixel values in [0, 1]."""

from __future__ import annotations

import torch

# A perfect image has no finite PSNR, and one of them would make a data set's mean infinite: 100 dB stands for it.
_SMALLEST_ERROR = 1e-10


def psnr(mean_squared_error: torch.Tensor) -> torch.Tensor:
    """−10 log10(MSE) in dB, at most 100, for mean squared errors of any shape."""
    return -10 * mean_squared_error.clamp_min(_SMALLEST_ERROR).log10()
