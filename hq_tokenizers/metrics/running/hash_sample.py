"""A bounded sample of features that is the same for any order, batch size and number of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from hq_tokenizers.metrics.running.content_counts import ContentCounts


@dataclass
class HashSample:
    """A uniform sample without replacement of the features of all images seen, copies of an image counting singly.

    The `capacity` occurrences with the smallest keys of `ContentCounts` (bottom-k sampling). The room there is so
    large, k and ten standard deviations above k, that fewer than k of them are kept with a probability below 10⁻²⁰.

    Args:
        capacity: Number of feature vectors k.
    """

    capacity: int
    contents: ContentCounts = field(init=False)

    def __post_init__(self) -> None:
        self.contents = ContentCounts(self.capacity + 10 * math.isqrt(self.capacity) + 100)

    def update(self, digests: list[bytes], features: torch.Tensor) -> None:
        """Adds features (B, D) of images with these SHA-256 digests."""
        self.contents.update(digests, features)

    def merge(self, other: HashSample) -> None:
        """Adds another sample of the same capacity."""
        self.contents.merge(other.contents)

    def features(self) -> torch.Tensor:
        """The sample, (n, D) float32 with n ≤ capacity, in an order that the set decides; needs an image."""
        chosen = self.contents.occurrences()[: self.capacity]
        return torch.stack([self.contents.vector(content) for _, content, _ in chosen])
