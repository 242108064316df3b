"""Which class was taken for which."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hq_tokenizers.metrics.running.set_identity import SetIdentity


@dataclass
class Confusion:
    """Running confusion matrix of label maps.

    Args:
        matrix: LongTensor (C, C): row the reference's class, column the predicted one.
        references: Which reference label maps were seen.
    """

    matrix: torch.Tensor
    references: SetIdentity = field(default_factory=SetIdentity)

    @property
    def num_images(self) -> int:
        """Number of pairs of label maps seen."""
        return self.references.num_images

    def merge(self, other: Confusion) -> None:
        """Adds the label maps another one has seen."""
        self.references.merge(other.references, "references")
        self.matrix = self.matrix + other.matrix

    def intersection_over_union(self) -> torch.Tensor:
        """TP / (TP + FP + FN) per class, float64 (C,); NaN for a class in neither side."""
        matrix = self.matrix.double()
        hits = matrix.diagonal()
        return hits / (matrix.sum(dim=0) + matrix.sum(dim=1) - hits)
