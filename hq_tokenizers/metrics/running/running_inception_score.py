"""The Inception Score from running sums, so that no logits are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hq_tokenizers.metrics.running.content_counts import ContentCounts, indexed_digest

# Vectors of logits kept: copies that are fewer than about one in so many images stay in one split.
_ROOM = 5000


@dataclass
class RunningInceptionScore:
    """exp(E_x KL(p(y|x) ‖ p(y))), averaged over splits (Salimans et al. 2016, eq. 1).

    With q the mean of p over a split of n images, the mean KL is (1/n) Σ_x Σ_y p log p − Σ_y q log q: three sums per
    split suffice. An image's hash says which split it belongs to, so that splits do not depend on order, batches or
    processes; torch-fidelity shuffles stored logits instead, which gives other splits of nearly equal size. Copies of
    an image would all be in one split: of those that `ContentCounts` keeps, which are the frequent ones, all but the
    first are spread over the splits in the end, by the hash of the image and their number.

    Args:
        num_splits: Number of splits.
    """

    num_splits: int
    contents: ContentCounts = field(default_factory=lambda: ContentCounts(_ROOM))
    _counts: torch.Tensor = field(init=False)
    _negative_entropies: torch.Tensor = field(init=False)
    _probabilities: torch.Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._counts = torch.zeros(self.num_splits, dtype=torch.float64)
        self._negative_entropies = torch.zeros(self.num_splits, dtype=torch.float64)

    def update(self, digests: list[bytes], logits: torch.Tensor) -> None:
        """Adds the classifier's logits (B, classes) for images with these SHA-256 digests."""
        logits = logits.cpu().float()
        self.contents.update(digests, logits)
        p, negative_entropies = _probabilities(logits)
        split = torch.tensor([self.split_of(digest) for digest in digests])
        if self._probabilities is None:
            self._probabilities = torch.zeros(self.num_splits, logits.shape[1], dtype=torch.float64)
        self._counts.index_add_(0, split, torch.ones(len(digests), dtype=torch.float64))
        self._negative_entropies.index_add_(0, split, negative_entropies)
        self._probabilities.index_add_(0, split, p)

    def split_of(self, digest: bytes, index: int = 0) -> int:
        """The split that an image with this digest belongs to; `index` numbers the copies of one image."""
        if index:
            digest = indexed_digest(digest, index)
        return int.from_bytes(digest[8:16], "big") % self.num_splits

    def merge(self, other: RunningInceptionScore) -> None:
        """Adds the images another one has seen."""
        if other._probabilities is None:
            return
        self.contents.merge(other.contents)
        self._counts += other._counts
        self._negative_entropies += other._negative_entropies
        self._probabilities = other._probabilities + (0 if self._probabilities is None else self._probabilities)

    def compute(self) -> tuple[float, float]:
        """Mean and (population) standard deviation of the score over the splits.

        Raises:
            ValueError: If a split has no image.
        """
        counts, negative_entropies, probabilities = self._sums_with_copies_spread()
        if probabilities is None or not counts.all():
            raise ValueError(
                f"The Inception Score over {self.num_splits} splits needs images in each; of {int(counts.sum())} "
                "images some split got none. Add images or lower inception_score_splits."
            )
        q = probabilities / counts[:, None]
        scores = (negative_entropies / counts - torch.xlogy(q, q).sum(dim=1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))

    def _sums_with_copies_spread(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        copied = [(content, count) for content, count in self.contents.kept() if count > 1]
        if self._probabilities is None or not copied:
            return self._counts, self._negative_entropies, self._probabilities
        p, negative_entropies = _probabilities(torch.stack([self.contents.vector(content) for content, _ in copied]))
        moved = torch.stack([self._moved(content, count) for content, count in copied], dim=1)
        return (
            self._counts + moved.sum(dim=1),
            self._negative_entropies + moved @ negative_entropies,
            self._probabilities + moved @ p,
        )

    def _moved(self, content: bytes, count: int) -> torch.Tensor:
        """How many copies of an image each split gains, float64 (splits,); the split that had them all loses."""
        splits = torch.tensor([self.split_of(content, index) for index in range(count)])
        gained = torch.bincount(splits, minlength=self.num_splits).double()
        gained[self.split_of(content)] -= count
        return gained


def _probabilities(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities p (B, classes) and Σ_y p log p (B,), in float64."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    return p, (p * log_p).sum(dim=1)
