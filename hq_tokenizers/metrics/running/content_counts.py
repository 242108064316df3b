"""How often each content occurred, with a feature vector of those that a bounded sample can need."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

_SIGN = 1 << 63


@dataclass
class ContentCounts:
    """A multiset of contents, known by their digests, of which the numbers of all and the vectors of a few are kept.

    The n occurrences of a multiset have exponential random keys. They are not drawn one by one, which would make
    them depend on the order: of a content that occurs m times, the keys in ascending order are (Rényi 1953)

        X_i = Σ_{j ≤ i} E_j / (m − j + 1),   E_j = −log(1 − U_j),   U_j uniform, from the hash of content and j,

    so that they are a function of the multiset only, and as good as independent. Kept are the vectors of the contents
    with a key below t(n) = −log(1 − r/n), expected to hold r occurrences, and of all while n ≤ r.

    This merges, since 1/t is superadditive (1/t(n) = n/r − ½ − r/12n − …, 0 while n ≤ r): where neither part keeps a
    content, E_1 ≥ m t(n) and E_1 ≥ m' t(n'), then E_1 (1/t(n) + 1/t(n')) ≥ m + m', hence E_1 ≥ (m + m') t(n + n').

    Memory: about r vectors, up to 2r in passing, and one number for each different content.

    Args:
        room: Expected number r of occurrences whose vectors are kept.
    """

    room: int
    total: int = 0
    _counts: Counter[bytes] = field(default_factory=Counter)
    _vectors: dict[bytes, np.ndarray] = field(default_factory=dict)

    def update(self, digests: Sequence[bytes], vectors: torch.Tensor) -> None:
        """Adds occurrences with their SHA-256 digests and vectors (B, D), which equal contents share."""
        self._add(Counter(digests), dict(zip(digests, vectors.cpu().float().numpy(), strict=True)))

    def merge(self, other: ContentCounts) -> None:
        """Adds the occurrences another one of the same room has seen."""
        self._add(other._counts, other._vectors)

    def occurrences(self) -> list[tuple[float, bytes, int]]:
        """(key, content, i) of the occurrences i = 0 … below t(n) of each content, by ascending key."""
        limit = self._limit()
        found = [
            (key, content, index)
            for content in self._vectors
            for index, key in enumerate(self._keys_below(limit, content))
        ]
        return sorted(found)

    def vector(self, content: bytes) -> torch.Tensor:
        """The kept vector (D,) float32 of a content."""
        return torch.from_numpy(self._vectors[content])

    def kept(self) -> list[tuple[bytes, int]]:
        """The contents whose vectors are needed, each with its number of occurrences."""
        limit = self._limit()
        return [(content, self._counts[content]) for content in self._vectors if self._is_needed(content, limit)]

    def _add(self, counts: Counter[bytes], vectors: dict[bytes, np.ndarray]) -> None:
        self._counts.update(counts)
        self.total += counts.total()
        limit = self._limit()
        for content, vector in vectors.items():
            if content not in self._vectors and self._is_needed(content, limit):
                # A copy: a row of the batch would keep the whole batch in memory.
                self._vectors[content] = vector.copy()
        if len(self._vectors) > 2 * self.room:
            self._vectors = {content: self._vectors[content] for content, _ in self.kept()}

    def _limit(self) -> float:
        """t(n)."""
        return math.inf if self.total <= self.room else -math.log1p(-self.room / self.total)

    def _is_needed(self, content: bytes, limit: float) -> bool:
        return exponential(content, 0) < self._counts[content] * limit

    def _keys_below(self, limit: float, content: bytes) -> list[float]:
        """The keys X_1 < X_2 < … of a content that are below the limit."""
        keys, key, count = [], 0.0, self._counts[content]
        for index in range(count):
            key += exponential(content, index) / (count - index)
            if key >= limit:
                break
            keys.append(key)
        return keys


def exponential(content: bytes, index: int) -> float:
    """−log(1 − U), U uniform in (0, 1), from the digest of a content and an index; rises with the digest for index 0.

    The digest's first eight bytes count as a signed number, so that sets without copies keep the sample that earlier
    versions took of them.
    """
    digest = content if index == 0 else indexed_digest(content, index)
    number = int.from_bytes(digest[:8], "big") ^ _SIGN
    # 52 bits and a half are exact in float64, hence U is never 1.
    return -math.log1p(-((number >> 12) + 0.5) / 2**52)


def indexed_digest(content: bytes, index: int) -> bytes:
    """The SHA-256 of a digest and a number."""
    return hashlib.sha256(content + index.to_bytes(8, "big")).digest()
