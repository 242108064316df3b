"""A bounded sample of features that is the same for any order, batch size and number of processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class HashSample:
    """The features of the `capacity` images whose hashes are smallest.

    A hash is as good as a random number, so this is a uniform sample without replacement (bottom-k sampling), and one
    that merges: the smallest of all hashes are among the smallest of each part.

    Args:
        capacity: Number of feature vectors k kept; up to 2k are held in passing.
    """

    capacity: int
    _keys: list[torch.Tensor] = field(default_factory=list)
    _features: list[torch.Tensor] = field(default_factory=list)
    _held: int = 0

    def update(self, digests: list[bytes], features: torch.Tensor) -> None:
        """Adds features (B, D) of images with these SHA-256 digests."""
        keys = [int.from_bytes(digest[:8], "big", signed=True) for digest in digests]
        self.extend(torch.tensor(keys, dtype=torch.int64), features.cpu().float())

    def extend(self, keys: torch.Tensor, features: torch.Tensor) -> None:
        """Adds features (B, D) float32 with their sorting keys (B,) int64."""
        self._keys.append(keys)
        self._features.append(features)
        self._held += len(keys)
        if self._held > 2 * self.capacity:
            self.sorted()

    def merge(self, other: HashSample) -> None:
        """Adds another sample of the same capacity."""
        if other._held:
            self.extend(*other.sorted())

    def sorted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (n,) int64 in ascending order and features (n, D) float32, n ≤ capacity; at least one must be held."""
        keys, features = torch.cat(self._keys), torch.cat(self._features)
        order = keys.argsort(stable=True)[: self.capacity]
        keys, features = keys[order], features[order]
        self._keys, self._features, self._held = [keys], [features], len(keys)
        return keys, features
