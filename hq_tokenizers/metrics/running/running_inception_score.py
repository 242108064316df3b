"""The Inception Score from running sums, so that no logits are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class RunningInceptionScore:
    """exp(E_x KL(p(y|x) ‖ p(y))), averaged over splits (Salimans et al. 2016, eq. 1).

    With q the mean of p over a split of n images, the mean KL is (1/n) Σ_x Σ_y p log p − Σ_y q log q: three sums per
    split suffice. An image's hash says which split it belongs to, so that splits do not depend on order, batches or
    processes; torch-fidelity shuffles stored logits instead, which gives other splits of nearly equal size.

    Args:
        num_splits: Number of splits.
    """

    num_splits: int
    _counts: torch.Tensor = field(init=False)
    _negative_entropies: torch.Tensor = field(init=False)
    _probabilities: torch.Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._counts = torch.zeros(self.num_splits, dtype=torch.float64)
        self._negative_entropies = torch.zeros(self.num_splits, dtype=torch.float64)

    def update(self, digests: list[bytes], logits: torch.Tensor) -> None:
        """Adds the classifier's logits (B, classes) for images with these SHA-256 digests."""
        log_p = logits.cpu().double().log_softmax(dim=1)
        p = log_p.exp()
        split = torch.tensor([self.split_of(digest) for digest in digests])
        if self._probabilities is None:
            self._probabilities = torch.zeros(self.num_splits, logits.shape[1], dtype=torch.float64)
        self._counts.index_add_(0, split, torch.ones(len(digests), dtype=torch.float64))
        self._negative_entropies.index_add_(0, split, (p * log_p).sum(dim=1))
        self._probabilities.index_add_(0, split, p)

    def split_of(self, digest: bytes) -> int:
        """The split an image with this digest belongs to."""
        return int.from_bytes(digest[8:16], "big") % self.num_splits

    def merge(self, other: RunningInceptionScore) -> None:
        """Adds the images another one has seen."""
        if other._probabilities is None:
            return
        self._counts += other._counts
        self._negative_entropies += other._negative_entropies
        self._probabilities = other._probabilities + (0 if self._probabilities is None else self._probabilities)

    def compute(self) -> tuple[float, float]:
        """Mean and (population) standard deviation of the score over the splits.

        Raises:
            ValueError: If a split has no image.
        """
        if self._probabilities is None or not self._counts.all():
            raise ValueError(
                f"The Inception Score over {self.num_splits} splits needs images in each; of {int(self._counts.sum())} "
                "images some split got none. Add images or lower inception_score_splits."
            )
        q = self._probabilities / self._counts[:, None]
        scores = (self._negative_entropies / self._counts - torch.xlogy(q, q).sum(dim=1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
