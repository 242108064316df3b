"""Deterministic (residual) vector quantisation of one grid: VQ-VAE with one level, RQ-VAE with several.

Shape legend: B batch, h × w grid, d code width, D levels of K_l codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.quantization.functional import straight_through
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.reestimation import CodebookReestimation, ReestimatedQuantizer
from hq_tokenizers.quantization.vector_codebook import VectorCodebook


class ResidualVectorQuantizer(ReestimatedQuantizer):
    """Nearest-neighbour quantisation by a sum of D codes with a straight-through gradient.

    Starting from r ← z, level l takes the code nearest to r and passes r ← r − b on; the recursion runs on detached
    latents, and one straight-through estimator stands on the sum. Terms, as means over all latent values:

        commitment = β · mean_l ‖z − sg(Σ_{l' ≤ l} b_{l'})‖²
        codebook   = mean_l ‖sg(z) − Σ_{l' ≤ l} b_{l'}‖²        (not for codebooks that follow moving averages)

    Args:
        codebook_sizes: K_l of each level.
        code_dim: Code width d.
        shared_codebook: Whether all levels use one codebook; their sizes must then be equal.
        commitment_weight: β.
        averages_for: Gives the moving averages for a codebook of K codes; None for codes learned by gradient.
        linear: See `VectorCodebook`.
        reestimation: Data-dependent re-estimation of the codebooks, or None.
        max_elements: See `VectorCodebook`.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        code_dim: int,
        *,
        shared_codebook: bool,
        commitment_weight: float,
        averages_for: Callable[[int], MovingAverages | None],
        linear: bool,
        reestimation: CodebookReestimation | None,
        max_elements: int,
    ):
        super().__init__(len(codebook_sizes), reestimation)
        self.codebooks = nn.ModuleList(
            VectorCodebook(size, code_dim, averages_for(size), max_elements, linear)
            for size in codebook_sizes[: 1 if shared_codebook else None]
        )
        self.commitment_weight = commitment_weight

    def level_codebooks(self) -> list[VectorCodebook]:
        """The codebook of every level; the same object where they share it."""
        codebooks = cast(Sequence[VectorCodebook], self.codebooks)
        return [codebooks[min(level, len(codebooks) - 1)] for level in range(self.num_levels)]

    def forward(
        self,
        latents: torch.Tensor,
        temperature: torch.Tensor | None,
        *_unused: None,
    ) -> QuantizerOutput:
        """Quantises latents (B, h, w, d); see `QuantizerOutput`.

        Args:
            latents: (B, h, w, d).
            temperature: Not None while training: then the moving averages and the reservoir are updated.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            learning = temperature is not None
            indices, sums = self._quantize(latents.detach(), learning)
            terms = self._terms(latents, sums)
            zeros = latents.new_zeros(self.num_levels)
            remaining = torch.stack([F.mse_loss(total.detach(), latents.detach()) for total in sums])
            output = QuantizerOutput(
                tuple(straight_through(latents, total) for total in sums),
                torch.stack(indices, -1),
                terms,
                zeros,
                zeros,
                latent_energy=latents.detach().square().mean(),
                residual_energy=remaining,
            )
            if not learning:
                return output
            for codebook in cast(Sequence[VectorCodebook], self.codebooks):
                codebook.end_of_part()
            return self._as_scheduled(latents, output)

    def _quantize(self, latents: torch.Tensor, learning: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        residual, total = latents, torch.zeros_like(latents)
        indices, sums = [], []
        for codebook in self.level_codebooks():
            flat = residual.reshape(-1, residual.shape[-1])
            index = codebook.nearest(flat)
            vectors = F.embedding(index, codebook.codes).reshape(latents.shape)
            if learning:
                codebook.observe(flat, index)
            residual = residual - vectors.detach()
            total = total + vectors
            indices.append(index.reshape(latents.shape[:-1]))
            sums.append(total)
        return indices, sums

    def _terms(self, latents: torch.Tensor, sums: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        def mean_distance(a: torch.Tensor, partial_sums: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([F.mse_loss(a, b) for b in partial_sums]).mean()

        terms = {"commitment": self.commitment_weight * mean_distance(latents, [total.detach() for total in sums])}
        if self.level_codebooks()[0].averages is None:
            terms["codebook"] = mean_distance(latents.detach(), sums)
        return terms
