"""Label maps: images whose pixels are classes, such as segmentations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .augmentation import SeededAugmentation
from .images import ImageFormat

_MODES = ("1", "L", "P")


@dataclass(frozen=True)
class LabelMapFormat(ImageFormat):
    """How raw label maps become tensors: grey or palette images, or arrays, of class numbers.

    Nothing is interpolated: resizing takes the nearest pixel.

    Args:
        num_classes: C; classes are 0 to C − 1.
    """

    num_classes: int = 0

    def __str__(self) -> str:
        return f"{self.height}×{self.width} with {self.num_classes} classes"

    def decode(self, raw: Any, augmentation: SeededAugmentation | None = None) -> np.ndarray:
        """uint8 (1, H, W) of an encoded label map ({"bytes", "path"}) or an integer array.

        Raises:
            ValueError: As for images, or for a class that is not below `num_classes`.
        """
        labels = super().decode(raw, augmentation)
        if labels.max() >= self.num_classes:
            raise ValueError(
                f"Found a label map with class {labels.max()}; data.label_map_classes {self.num_classes} means classes "
                f"0 to {self.num_classes - 1}. Raise it (a class for unlabelled pixels counts as well)."
            )
        return labels

    def to_batch(self, pixels: torch.Tensor) -> torch.Tensor:
        """Decoded label maps, uint8 (B, 1, H, W), as the model's classes, long (B, H, W)."""
        return pixels[:, 0].long()

    def _convert(self, image: Image.Image) -> Image.Image:
        if image.mode not in _MODES:
            raise ValueError(
                f"Label maps must be grey or palette images of class numbers (mode {', '.join(_MODES)}), found one of "
                f"mode {image.mode}: choose another data.image_column, or leave out data.label_map_classes for images."
            )
        return image

    def _fit(
        self,
        pixels: np.ndarray,
        augmentation: SeededAugmentation | None = None,
        resampling: Image.Resampling = Image.Resampling.NEAREST,
    ) -> np.ndarray:
        return super()._fit(pixels, augmentation, resampling)
