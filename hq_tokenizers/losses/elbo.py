"""Reconstruction terms of the negative ELBO, in nats per image, with their constants.

They sum over the D values of an image and average over the batch only: a mean over pixels or positions makes the KL
terms thousands of times too weak or too strong, and the codebook collapses.
"""

from __future__ import annotations

import math

import torch

LOG_2PI = math.log(2 * math.pi)


def squared_error(reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """(1/B) Σ ‖x − x̂‖², summed over the D values of an image: a scalar, in float32."""
    return (reconstruction.float() - pixel_values.float()).square().sum() / pixel_values.shape[0]


def gaussian_nll(
    reconstruction: torch.Tensor, pixel_values: torch.Tensor, log_variance: torch.Tensor | None = None
) -> torch.Tensor:
    """−E log N(x; x̂, σ² I) = ‖x − x̂‖² / (2σ²) + (D/2) log(2πσ²), per image in nats.

    Args:
        reconstruction: x̂, (B, …).
        pixel_values: x, of the same shape.
        log_variance: log σ², a scalar. None puts σ² at its optimum for the batch, σ² = ‖x − x̂‖² / D, which leaves
            (D/2) (log σ² + log 2π + 1).
    """
    num_values = pixel_values[0].numel()
    error = squared_error(reconstruction, pixel_values)
    if log_variance is None:
        log_variance = (error / num_values).clamp_min(torch.finfo(torch.float32).tiny).log()
        return 0.5 * num_values * (log_variance + LOG_2PI + 1)
    log_variance = log_variance.float()
    return 0.5 * (error * (-log_variance).exp() + num_values * (log_variance + LOG_2PI))
