"""Which images a number was computed on: how many, of what size, and a hash of their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

_MODULUS = 2**256


@dataclass
class SetIdentity:
    """Running identity of a set of items (images, label maps, codes).

    The hash is the sum modulo 2²⁵⁶ of the SHA-256 of each item (its shape as text, then its bytes): it depends on the
    items and how often each occurs, not on their order, the batches or the processes they came in.

    Args:
        num_images: Items seen.
        shape: Their common shape; for images (C, H, W).
        total: The sum of hashes.
    """

    num_images: int = 0
    shape: tuple[int, ...] | None = None
    total: int = 0

    @property
    def sha256(self) -> str:
        """The hash in hexadecimal, 64 digits."""
        return f"{self.total:064x}"

    @property
    def image_size(self) -> list[int] | None:
        """[height, width] of the items, None while there are none."""
        return None if self.shape is None else list(self.shape[-2:])

    def check_shape(self, shape: tuple[int, ...], side: str) -> None:
        """Checks that further items have the shape of those before.

        Raises:
            ValueError: If they do not, naming both.
        """
        if self.shape is not None and tuple(shape) != self.shape:
            raise ValueError(
                f"{side}: all have one shape within a set, so far {self.shape}, now {tuple(shape)}. Resize them to one "
                "size, or compute a metric per size."
            )

    def update(self, items: torch.Tensor, side: str) -> list[bytes]:
        """Adds a batch (B, …) and returns the SHA-256 digest of each item.

        Raises:
            ValueError: If the items have another shape than those before.
        """
        self.check_shape(tuple(items.shape[1:]), side)
        self.shape = tuple(items.shape[1:])
        prefix = str(self.shape).encode()
        arrays = items.cpu().contiguous().numpy()
        digests = [hashlib.sha256(prefix + array.tobytes()).digest() for array in arrays]
        self.num_images += len(digests)
        self.total = (self.total + sum(int.from_bytes(digest, "big") for digest in digests)) % _MODULUS
        return digests

    def merge(self, other: SetIdentity, side: str) -> None:
        """Adds the items of another set.

        Raises:
            ValueError: If they have another shape.
        """
        if other.shape is not None:
            self.check_shape(other.shape, side)
            self.shape = other.shape
        self.num_images += other.num_images
        self.total = (self.total + other.total) % _MODULUS
