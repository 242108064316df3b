"""Mean and covariance of features, in float64, one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


def _empty() -> torch.Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class RunningGaussian:
    """Count n, mean μ and scatter S = Σ (x − μ)(x − μ)ᵀ of the features seen, mergeable (Chan, Golub, LeVeque 1979).

        μ ← μ + δ m/(n+m),   S ← S + S' + δδᵀ nm/(n+m),   δ = μ' − μ

    Unlike sums of x and xxᵀ this loses no digits when the mean is large against the spread.

    Args:
        count: Number of feature vectors n.
        mean: (D,) float64; empty while n = 0.
        scatter: (D, D) float64; empty while n = 0.
    """

    count: int = 0
    mean: torch.Tensor = field(default_factory=_empty)
    scatter: torch.Tensor = field(default_factory=_empty)

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance S/(n − 1), (D, D) float64; needs n ≥ 2."""
        return self.scatter / (self.count - 1)

    def update(self, features: torch.Tensor) -> None:
        """Adds feature vectors (B, D)."""
        x = features.cpu().double()
        mean = x.mean(dim=0)
        centred = x - mean
        self.merge(RunningGaussian(len(x), mean, centred.T @ centred))

    def merge(self, other: RunningGaussian) -> None:
        """Adds the feature vectors another one has seen."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter.addr_(delta, delta, alpha=self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total
