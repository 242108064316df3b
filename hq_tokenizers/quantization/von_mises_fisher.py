"""Von Mises–Fisher stochastic quantisation of unit vectors (SQ-VAE, section 4.2).

Shape legend: B batch, h × w grid (N positions), d code width, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.losses.elbo import categorical_kl, vmf_distance
from hq_tokenizers.quantization.functional import straight_through, vmf_factors
from hq_tokenizers.quantization.gaussian import MINIMUM_VARIANCE
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.residual_variance import ResidualVariance, level_moments
from hq_tokenizers.quantization.seeded_relaxation import quantize_grid
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook, UnitCodebook


class VonMisesFisherQuantizer(nn.Module):
    """Von Mises–Fisher quantisation of one grid of unit vectors (SQ-VAE, section 4.2).

    P̂(z_q = b_k | z) = softmax_k(κ_φ b_kᵀ z) with κ_φ = 1 + exp(s); latents and codes lie on the unit sphere.
    The continuous term is E Σ_i κ_φ (1 − z_{q,i}ᵀ z_i), the discrete one that of `GaussianQuantizer`.

    Args:
        num_codes: Codebook size K.
        code_dim: Code width, one more than the dimension of the sphere.
        max_elements: See `StochasticCodebook`.
        averages: See `StochasticCodebook`.
        residual_variance: 1/κ_φ · (d − 1)/d when it is tied to what the codes leave over, ‖z − z_q‖² / (d − 1), the
            variance of a von Mises–Fisher distribution per dimension of the sphere; None trains κ_φ.
        straight_through: See `GaussianQuantizer`.
    """

    supports_codes_only = True

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        max_elements: int,
        averages: MovingAverages | None = None,
        residual_variance: ResidualVariance | None = None,
        straight_through: bool = False,
    ):
        super().__init__()
        self.codebook = UnitCodebook(
            num_codes, code_dim, vmf_factors, max_elements, averages, exact_samples=straight_through
        )
        self.residual_variance = residual_variance
        self.straight_through = straight_through
        self.log_concentration = nn.Parameter(torch.empty(())) if residual_variance is None else None

    def concentration(self) -> torch.Tensor:
        """κ_φ, four dimensions of size 1."""
        if self.residual_variance is not None:
            dim = self.codebook.weight.shape[1]
            variance = self.residual_variance() * (dim / (dim - 1))
            return variance.clamp_min(MINIMUM_VARIANCE).reciprocal().reshape(1, 1, 1, 1)
        assert self.log_concentration is not None
        return (1 + self.log_concentration.float().exp()).reshape(1, 1, 1, 1)

    def forward(
        self,
        latents: torch.Tensor,
        temperature: torch.Tensor | None,
        log_variance_map: None = None,
        generators: Sequence[torch.Generator] | None = None,
        codes_only: bool = False,
    ) -> QuantizerOutput:
        """Quantises latents (B, h, w, d), normalising them first; otherwise as `GaussianQuantizer`."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = F.normalize(latents.float(), dim=-1)
            concentration = self.concentration()
            quantized, indices, entropy = quantize_grid(
                self.codebook, latents, concentration, temperature, generators, codes_only
            )
            terms = {}
            if not codes_only:
                terms["continuous"] = vmf_distance(latents, quantized, concentration)
                terms["discrete"] = categorical_kl(entropy, len(self.codebook.weight))
            if temperature is not None and generators is None:
                self._learn(latents, quantized)
                quantized = straight_through(latents, quantized) if self.straight_through else quantized
            return QuantizerOutput.of_one_level(latents, quantized, indices, terms, entropy, concentration.reciprocal())

    def _learn(self, latents: torch.Tensor, quantized: torch.Tensor) -> None:
        """What follows the training batch by itself, without a gradient."""
        self.codebook.end_of_part()
        if self.residual_variance is not None:
            self.residual_variance.observe(level_moments(latents, latents - quantized).unsqueeze(0))

    def level_codebooks(self) -> list[StochasticCodebook]:
        """The codebook of every level: one."""
        return [self.codebook]

    def embed(self, indices: torch.Tensor) -> list[torch.Tensor]:
        """Code vectors of codes (B, h, w, 1): a list of one (B, h, w, d)."""
        return [F.embedding(indices[..., 0], self.codebook.codes)]

    def log_probabilities(self, latents: torch.Tensor, log_variance_map: None = None) -> torch.Tensor:
        """Log P̂(z_q = b_k | z), (B, h, w, K)."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = F.normalize(latents.float(), dim=-1)
            return self.codebook.log_probabilities(latents, self.concentration())
