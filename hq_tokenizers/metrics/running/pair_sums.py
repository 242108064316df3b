"""Running sums over pairs of images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hq_tokenizers.metrics.running.set_identity import SetIdentity


@dataclass
class PairSums:
    """float64 sums of per-image values, and the identity of the reference images.

    Args:
        references: Which reference images were seen.
        sums: Sum over images of each named value.
    """

    references: SetIdentity = field(default_factory=SetIdentity)
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Number of pairs seen."""
        return self.references.num_images

    def update(self, references: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """Adds a batch: 8-bit reference images (B, C, H, W) and one value (B,) per name."""
        self.references.update(references, "references")
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.double().sum())

    def merge(self, other: PairSums) -> None:
        """Adds the pairs another one has seen."""
        self.references.merge(other.references, "references")
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def mean(self, name: str) -> float:
        """Mean over the images seen."""
        return self.sums[name] / self.num_images
