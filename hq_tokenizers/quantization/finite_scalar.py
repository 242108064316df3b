"""Finite scalar quantisation of one grid: every channel is rounded to a few values (Mentzer et al., FSQ, 2023).

Shape legend: B batch, h × w grid, d channels with L_1, …, L_d values each, K = Π L_i codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from hq_tokenizers.quantization.functional import straight_through
from hq_tokenizers.quantization.outputs import QuantizerOutput

EPSILON = 1e-3
"""What the bounds of a channel stay inside of its outermost values, relative to them, as in the authors' code."""


class FiniteScalarQuantizer(nn.Module):
    """Every channel bounded and rounded to one of L_i integers, with a straight-through gradient (FSQ, section 3).

    With h = (L − 1)(1 − ε)/2, and o = ½ for an even L, 0 for an odd one,

        f(z) = h tanh(z + tan(o / h)) − o,    ẑ = round(f(z)) / ⌊L/2⌋,    ∂ẑ/∂f = 1 / ⌊L/2⌋

    The codebook is implicit: code k has in channel i the value (digit_i(k) − ⌊L_i/2⌋) / ⌊L_i/2⌋, where digit_1 is the
    least significant of k in the mixed base L_1, …, L_d. There is nothing to learn, and no term of the loss.

    Args:
        levels: L_i of every channel, each at least 2.
    """

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.levels = tuple(levels)
        self.num_codes = math.prod(self.levels)

    @property
    def codes(self) -> torch.Tensor:
        """The implicit code vectors (K, d)."""
        return self._vectors(torch.arange(self.num_codes))

    def level_codebooks(self) -> list[FiniteScalarQuantizer]:
        """The codebook of every level: one, implicit."""
        return [self]

    def embed(self, indices: torch.Tensor) -> list[torch.Tensor]:
        """Code vectors of codes (B, h, w, 1): a list of one (B, h, w, d)."""
        return [self._vectors(indices[..., 0])]

    def forward(self, latents: torch.Tensor, *_unused: object) -> QuantizerOutput:
        """Quantises latents (B, h, w, d); see `QuantizerOutput`."""
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self._bounded(latents.float())
            indices = self._indices([values.detach().round() for values in bounded])
            latents = self._halved(bounded)
            quantized = straight_through(latents, self._vectors(indices))
            zero = quantized.new_zeros(1)
            return QuantizerOutput.of_one_level(latents, quantized, indices, {}, entropy=zero, variance=zero)

    def bounded(self, latents: torch.Tensor) -> torch.Tensor:
        """f(z) / ⌊L/2⌋, what is rounded to codes: (B, h, w, d) → (B, h, w, d)."""
        return self._halved(self._bounded(latents))

    def _bounded(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """f(z) of every channel."""
        return [_bound(values, size) for values, size in zip(latents.unbind(-1), self.levels, strict=True)]

    def _halved(self, bounded: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([values / (size // 2) for values, size in zip(bounded, self.levels, strict=True)], -1)

    def _indices(self, rounded: Sequence[torch.Tensor]) -> torch.Tensor:
        """The codes of integers from −⌊L_i/2⌋ on, one tensor per channel."""
        index, base = torch.zeros_like(rounded[0], dtype=torch.long), 1
        for values, size in zip(rounded, self.levels, strict=True):
            index = index + base * (values.long() + size // 2)
            base *= size
        return index

    def _vectors(self, indices: torch.Tensor) -> torch.Tensor:
        """Code vectors (…, d) of codes of any shape."""
        values = []
        for size in self.levels:
            values.append((indices % size - size // 2).float() / (size // 2))
            indices = indices.div(size, rounding_mode="floor")
        return torch.stack(values, -1)


def _bound(values: torch.Tensor, size: int) -> torch.Tensor:
    """f(z) of `FiniteScalarQuantizer`, which rounds to `size` different integers."""
    half = (size - 1) * (1 - EPSILON) / 2
    offset = 0.0 if size % 2 else 0.5
    return half * torch.tanh(values + math.tan(offset / half)) - offset
