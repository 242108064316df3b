"""Random changes of training images; those of an image are decided by the run's seed, the epoch and its row alone.

So they are the same for any number of processes that train or decode, and a run that continues needs no state of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from transformers.image_utils import SizeDict

from hq_tokenizers.image_processing_hq import HQImageProcessor, covering_size
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.randomness import hashed_seeds, seeded_noise

_PROCESSOR = HQImageProcessor()


@dataclass(frozen=True)
class Augmentation:
    """Which random changes there are; see the options of the same names.

    Args:
        horizontal_flip: Mirror half of the images.
        random_crop: Cut at a random place instead of the centre.
        random_resized_crop: Range of the share of an image's area that is cut out and scaled to the size, or None.
        color_jitter: Ranges of brightness, contrast, saturation and hue, or None.
    """

    horizontal_flip: bool = False
    random_crop: bool = False
    random_resized_crop: tuple[float, float] | None = None
    color_jitter: tuple[float, float, float, float] | None = None

    @classmethod
    def from_options(cls, config: DataConfig) -> Augmentation:
        """What the options ask for."""
        crop, jitter = config.random_resized_crop, config.color_jitter
        return cls(
            config.horizontal_flip,
            config.random_crop,
            None if crop is None else (crop[0], crop[1]),
            None if jitter is None else (jitter[0], jitter[1], jitter[2], jitter[3]),
        )

    @property
    def crops(self) -> bool:
        """Whether images are cut at random."""
        return self.random_crop or self.random_resized_crop is not None

    @property
    def needs_decoding(self) -> bool:
        """Whether an image has to be decoded anew each time, which mirroring does not need."""
        return self.crops or self.color_jitter is not None

    def flip(self, pixels: torch.Tensor, seeds: np.ndarray) -> torch.Tensor:
        """Mirrors the images (B, …, H, W) whose seed is odd."""
        if not self.horizontal_flip:
            return pixels
        flipped = torch.from_numpy(seeds % 2 == 1).to(pixels.device, non_blocking=True)
        return torch.where(flipped.view(-1, *[1] * (pixels.ndim - 1)), pixels.flip(-1), pixels)

    def with_noise(self, seed: int) -> SeededAugmentation:
        """The changes of one image."""
        return SeededAugmentation(self, seed)


@dataclass(frozen=True)
class SeededAugmentation:
    """The random changes of one image, but for mirroring, which batches are.

    Args:
        augmentation: Which there are.
        seed: What decides them.
    """

    augmentation: Augmentation
    seed: int

    def crop(self, pixels: torch.Tensor, size: SizeDict, resampling: Any) -> torch.Tensor:
        """Cuts a random part of the size out of an image.

        Args:
            pixels: (C, H, W), floats in [0, 1].
            size: Height and width.
            resampling: Interpolation, antialiased, of whatever is scaled.
        """
        scale = self.augmentation.random_resized_crop
        with seeded_noise(self.seed):
            if scale is None:
                covering = _scaled(pixels, covering_size(pixels, size), resampling)
                return v2.RandomCrop([size.height, size.width])(covering)
            box = v2.RandomResizedCrop([size.height, size.width], scale=scale).make_params([pixels])
            part = v2.functional.crop(pixels, box["top"], box["left"], box["height"], box["width"])
            return _scaled(part, size, resampling)

    def colour(self, pixels: np.ndarray, max_value: int) -> np.ndarray:
        """Changes the colours of an image, uint8 (C, H, W) from 0 to `max_value`, which stay such."""
        if self.augmentation.color_jitter is None:
            return pixels
        # Seeds of crops and colours differ, lest bright images were cut at the top.
        with seeded_noise(self.seed ^ 1):
            changed = v2.ColorJitter(*self.augmentation.color_jitter)(torch.from_numpy(pixels.copy()) / max_value)
        return changed.mul(max_value).round().to(torch.uint8).numpy()


def augmentation_seeds(noise: tuple[int, int], rows: torch.Tensor) -> np.ndarray:
    """The seeds of rows, uint64.

    Args:
        noise: Seed of the run, and number of the epoch.
        rows: LongTensor of their numbers.
    """
    return hashed_seeds(*noise, rows.numpy())


def _scaled(pixels: torch.Tensor, size: SizeDict, resampling: Any) -> torch.Tensor:
    if tuple(pixels.shape[-2:]) == (size.height, size.width):
        return pixels
    return _PROCESSOR.resize(pixels, size, resampling).clamp_(0, 1)
