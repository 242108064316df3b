"""Gaussian stochastic quantisation of one grid by a sum of codes per position (HQ-VAE, section 2.1 and 2.2).

Shape legend: B batch, h × w grid (N positions), d code width, D levels of K_l codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from hq_tokenizers.losses.elbo import categorical_kl, learned_prior_kl, mahalanobis
from hq_tokenizers.quantization.functional import gaussian_factors, straight_through
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.reestimation import CodebookReestimation, ReestimatedQuantizer
from hq_tokenizers.quantization.residual_variance import ResidualVariance, level_moments
from hq_tokenizers.quantization.seeded_relaxation import quantize_grid
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook


class ResidualGaussianQuantizer(ReestimatedQuantizer):
    """Gaussian stochastic quantisation of one grid by a sum of D codes (HQ-VAE: an injected layer and its residuals).

    Starting from r ← ẑ, level l draws z_l from P̂(b_{l,k}) = softmax_k(−‖r − b_{l,k}‖² / (2 s_l²)) and passes
    r ← r − z_l on, with the full gradient of the sample where that is relaxed. The group's terms are

        continuous = E ‖ẑ − Σ_l z_l‖² / (2 Σ_l s_l²)       discrete = Σ_l (N log K_l − E Σ_i H(P̂_l))

    Args:
        codebook_sizes: K_l of each level.
        code_dim: Code width d.
        shared_codebook: Whether all levels use one codebook; their sizes must then be equal.
        log_variance_range: Smallest and largest log s_l²; keeps a starving level from inflating without bound.
        train_variance: Whether the variances are learned.
        learned_prior: Whether `forward` will be given a `prior_mean`.
        max_elements: See `StochasticCodebook`.
        averages_for: Gives the moving averages that a codebook of K codes follows; None for codes learned by gradient.
        residual_variance: The variances when they are tied to what the levels leave over; None trains them.
        straight_through: Whether training draws codes exactly and gives the encoder the decoder's gradient as it is,
            instead of through relaxed samples; the terms keep their own gradients.
        reestimation: Data-dependent re-estimation of the codebooks, or None.
    """

    supports_codes_only = True

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        code_dim: int,
        *,
        shared_codebook: bool,
        log_variance_range: Sequence[float],
        train_variance: bool,
        learned_prior: bool,
        max_elements: int,
        averages_for: Callable[[int], MovingAverages | None] = lambda num_codes: None,
        residual_variance: ResidualVariance | None = None,
        straight_through: bool = False,
        reestimation: CodebookReestimation | None = None,
    ):
        super().__init__(len(codebook_sizes), reestimation)
        self.codebooks = nn.ModuleList(
            StochasticCodebook(
                size, code_dim, gaussian_factors, max_elements, averages_for(size), exact_samples=straight_through
            )
            for size in codebook_sizes[: 1 if shared_codebook else None]
        )
        self.residual_variance = residual_variance
        self.straight_through = straight_through
        self.log_variances: nn.Parameter | None = None
        if residual_variance is None:
            self.log_variances = nn.Parameter(torch.empty(len(codebook_sizes)), requires_grad=train_variance)
        self.prior_log_variances = nn.Parameter(torch.empty(len(codebook_sizes))) if learned_prior else None
        self.log_variance_range = tuple(log_variance_range)

    def level_codebooks(self) -> list[StochasticCodebook]:
        """The codebook of every level; the same object where they share it."""
        codebooks = cast(Sequence[StochasticCodebook], self.codebooks)
        return [codebooks[min(level, len(codebooks) - 1)] for level in range(self.num_levels)]

    def variances(self) -> torch.Tensor:
        """s_l² of every level, (D,)."""
        if self.residual_variance is not None:
            low, high = self.log_variance_range
            return self.residual_variance().clamp(math.exp(low), math.exp(high))
        assert self.log_variances is not None
        return self._bounded(self.log_variances).exp()

    def _bounded(self, log_variance: torch.Tensor) -> torch.Tensor:
        """Clamped to the range, with the gradient of the identity: a level that overshoots finds its way back."""
        value = log_variance.float()
        return value + (value.clamp(*self.log_variance_range) - value).detach()

    def forward(
        self,
        latents: torch.Tensor,
        temperature: torch.Tensor | None,
        generators: Sequence[torch.Generator] | None = None,
        prior_mean: torch.Tensor | None = None,
        codes_only: bool = False,
    ) -> QuantizerOutput:
        """Quantises latents (B, h, w, d); see `QuantizerOutput`.

        Args:
            latents: (B, h, w, d).
            temperature: Gumbel temperature for relaxed samples, None for hard codes.
            generators: One per image, for sampled hard codes, or for relaxed samples from which nothing is learned.
            prior_mean: (B, h, w, d), replaces the uniform prior by P̂(· | prior_mean) with variances of its own.
            codes_only: Without a temperature: leaves out terms and entropies, see `for_codes`.
        """
        with torch.autocast(latents.device.type, enabled=False):
            residual = latents.float()
            prior_residual = None if prior_mean is None else prior_mean.float()
            total = torch.zeros_like(residual)
            variances = self.variances()
            sums, indices, entropies, discrete, moments = [], [], [], [], []
            for level, codebook in enumerate(self.level_codebooks()):
                precision = variances[level].reciprocal().reshape(1, 1, 1, 1)
                quantized, index, entropy = quantize_grid(
                    codebook, residual, precision, temperature, generators, codes_only
                )
                if not codes_only:
                    discrete.append(self._discrete(level, codebook, residual, precision, prior_residual, entropy))
                latents_of_level, residual = residual, residual - quantized
                total = total + quantized
                if prior_residual is not None:
                    prior_residual = prior_residual - quantized
                sums.append(total)
                indices.append(index)
                moments.append(level_moments(latents_of_level, residual))
                entropies.append(entropy.mean())
            terms = {}
            if not codes_only:
                terms["continuous"] = mahalanobis(residual, variances.sum().reciprocal())
                terms["discrete"] = torch.stack(discrete).sum()
            level_stats = torch.stack(moments)
            learning = temperature is not None and generators is None
            if learning:
                self._learn(level_stats)
                sums = [straight_through(latents.float(), total) for total in sums] if self.straight_through else sums
            output = QuantizerOutput(
                tuple(sums),
                torch.stack(indices, -1),
                terms,
                torch.stack(entropies),
                variances,
                latent_energy=latents.detach().float().square().mean(),
                residual_energy=level_stats[:, 0],
            )
            return self._as_scheduled(latents.float(), output) if learning else output

    def _learn(self, moments: torch.Tensor) -> None:
        """What follows the training batch by itself, without a gradient; moments (D, d + 2) of the levels."""
        for codebook in cast(Sequence[StochasticCodebook], self.codebooks):
            codebook.end_of_part()
        if self.residual_variance is not None:
            self.residual_variance.observe(moments)

    def _discrete(
        self,
        level: int,
        codebook: StochasticCodebook,
        residual: torch.Tensor,
        precision: torch.Tensor,
        prior_residual: torch.Tensor | None,
        entropy: torch.Tensor,
    ) -> torch.Tensor:
        """KL(P̂_l ‖ prior) per image in nats."""
        if prior_residual is None:
            return categorical_kl(entropy, codebook.weight.shape[0])
        assert self.prior_log_variances is not None
        prior_precision = self._bounded(self.prior_log_variances[level]).neg().exp().reshape(1, 1, 1, 1)
        cross_entropy = codebook.cross_entropy(residual, precision, prior_residual, prior_precision)
        return learned_prior_kl(cross_entropy, entropy)

    def log_probabilities(self, latents: torch.Tensor, quantized: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Log-probabilities log P̂_l given the code vectors of the levels before: one (B, h, w, K_l) per level.

        Args:
            latents: (B, h, w, d).
            quantized: Code vector of every level, (B, h, w, d).
        """
        with torch.autocast(latents.device.type, enabled=False):
            residual, result = latents.float(), []
            for codebook, variance, vectors in zip(self.level_codebooks(), self.variances(), quantized, strict=True):
                result.append(codebook.log_probabilities(residual, variance.reciprocal().reshape(1, 1, 1, 1)))
                residual = residual - vectors
            return result
