"""Whether a generator has learned images by heart: how far its samples are from the nearest training image."""

from __future__ import annotations

import torch

_IMAGES_AT_A_TIME = 256


def nearest_difference(images: torch.Tensor, references: torch.Tensor) -> float:
    """Mean over the images of the root-mean-square difference of values to the nearest reference.

    A generator that copies has a much smaller one than held-out images, which is what to compare it with.

    Args:
        images: (N, …), floats.
        references: (M, …), floats of the same shape but for M.

    Returns:
        The mean, in the unit of the values.
    """
    flat = references.flatten(1)
    nearest = [torch.cdist(part.flatten(1), flat).amin(1) for part in images.split(_IMAGES_AT_A_TIME)]
    return (torch.cat(nearest) / flat.shape[1] ** 0.5).mean().item()
