"""Gaussian stochastic quantisation of one grid by one code per position, with Σ_φ of types I–IV (SQ-VAE, section 3).

Shape legend: B batch, h × w grid (N positions), d code width, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hq_tokenizers.losses.elbo import categorical_kl, mahalanobis
from hq_tokenizers.quantization.functional import gaussian_factors, straight_through
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.reestimation import CodebookReestimation, ReestimatedQuantizer
from hq_tokenizers.quantization.residual_variance import ResidualVariance, level_moments
from hq_tokenizers.quantization.seeded_relaxation import quantize_grid
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook

MINIMUM_VARIANCE = 1e-10


class GaussianVariance(nn.Module):
    """Σ_φ of the stochastic dequantisation, as a tensor that broadcasts to the latents.

    | type | Σ_φ | `released` | `plain` |
    |---|---|---|---|
    | I   | σ² I, one scalar             | floor + exp(s)                       | floor + exp(s) |
    | II  | σ²(x) I, one per image       | floor + exp(mean_{c,h,w} v(x)) + exp(s) | floor + exp(s + mean v(x)) |
    | III | σ_i²(x) I, one per position  | floor + exp(mean_c v(x)) + exp(s)    | floor + exp(s + mean_c v(x)) |
    | IV  | diag σ_{i,c}²(x)             | floor + exp(v(x)) + exp(s)           | floor + exp(s + v(x)) |

    Args:
        variance_type: One of "I", "II", "III", "IV".
        parametrization: "released" adds the scalar's variance to the network's; "plain" multiplies them.
        floor: Added to the variance; 1.0 with type I is the authors' vision code.
        trainable: Whether the scalar s is learned.
    """

    def __init__(self, variance_type: str, parametrization: str, floor: float, trainable: bool):
        super().__init__()
        self.mean_dims = {"I": None, "II": (1, 2, 3), "III": (3,), "IV": ()}[variance_type]
        self.parametrization = parametrization
        self.floor = floor
        self.log_variance = nn.Parameter(torch.empty(()), requires_grad=trainable)

    def forward(self, log_variance_map: torch.Tensor | None) -> torch.Tensor:
        """The variance, four dimensions.

        Args:
            log_variance_map: v(x), (B, h, w, d), for types II–IV; None for type I.
        """
        scalar = self.log_variance.float().reshape(1, 1, 1, 1)
        if self.mean_dims is None:
            variance = scalar.exp()
        else:
            assert log_variance_map is not None
            mean = log_variance_map.float()
            if self.mean_dims:
                mean = mean.mean(dim=self.mean_dims, keepdim=True)
            variance = (mean + scalar).exp() if self.parametrization == "plain" else mean.exp() + scalar.exp()
        return (variance + self.floor).clamp_min(MINIMUM_VARIANCE)


class GaussianQuantizer(ReestimatedQuantizer):
    """Gaussian stochastic quantisation of one grid (SQ-VAE, section 3).

    Contributes to the negative ELBO, per image in nats:

        continuous = E ½ Σ_i (z_i − z_{q,i})ᵀ Σ_φ⁻¹ (z_i − z_{q,i})
        discrete   = N log K − E Σ_i H(P̂(z_{q,i} | z_i))     (a KL divergence, hence ≥ 0)

    Args:
        num_codes: Codebook size K.
        code_dim: Code width d.
        variance: The model of Σ_φ, learned or tied to what the codes leave over.
        dequantization_noise: Adds N(0, Σ_φ) to the latents while training, as the paper's text does; the continuous
            term then loses the noise's own energy Nd/2. The authors leave the noise out, for stability.
        max_elements: See `StochasticCodebook`.
        averages: See `StochasticCodebook`.
        straight_through: Whether training draws codes exactly and gives the encoder the decoder's gradient as it is,
            instead of through a relaxed sample; the two terms keep their own gradients.
        reestimation: Data-dependent re-estimation of the codebook, or None.
    """

    supports_codes_only = True

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        variance: GaussianVariance | ResidualVariance,
        dequantization_noise: bool,
        max_elements: int,
        averages: MovingAverages | None = None,
        straight_through: bool = False,
        reestimation: CodebookReestimation | None = None,
    ):
        super().__init__(1, reestimation)
        self.codebook = StochasticCodebook(
            num_codes, code_dim, gaussian_factors, max_elements, averages, exact_samples=straight_through
        )
        self.variance = variance
        self.dequantization_noise = dequantization_noise
        self.straight_through = straight_through

    def _variance(self, log_variance_map: torch.Tensor | None) -> torch.Tensor:
        """Σ_φ, four dimensions."""
        if isinstance(self.variance, ResidualVariance):
            return self.variance().reshape(1, 1, 1, 1).clamp_min(MINIMUM_VARIANCE)
        return self.variance(log_variance_map)

    def forward(
        self,
        latents: torch.Tensor,
        temperature: torch.Tensor | None,
        log_variance_map: torch.Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        codes_only: bool = False,
    ) -> QuantizerOutput:
        """Quantises latents (B, h, w, d), see `QuantizerOutput`; which code vectors, see `quantize_grid`."""
        with torch.autocast(latents.device.type, enabled=False):
            encoded = latents = latents.float()
            variance = self._variance(log_variance_map)
            precision = variance.reciprocal()
            noise_energy = 0.0
            learning = temperature is not None and generators is None
            if learning and self.dequantization_noise:
                latents = latents + torch.randn_like(latents) * variance.sqrt()
                noise_energy = 0.5 * latents[0].numel()
            quantized, indices, entropy = quantize_grid(
                self.codebook, latents, precision, temperature, generators, codes_only
            )
            terms = {}
            if not codes_only:
                terms["continuous"] = mahalanobis(latents - quantized, precision) - noise_energy
                terms["discrete"] = categorical_kl(entropy, len(self.codebook.weight))
            if learning:
                self._learn(latents, quantized)
                quantized = straight_through(latents, quantized) if self.straight_through else quantized
            output = QuantizerOutput.of_one_level(latents, quantized, indices, terms, entropy, variance)
            return self._as_scheduled(encoded, output) if learning else output

    def _learn(self, latents: torch.Tensor, quantized: torch.Tensor) -> None:
        """What follows the training batch by itself, without a gradient."""
        self.codebook.end_of_part()
        if isinstance(self.variance, ResidualVariance):
            self.variance.observe(level_moments(latents, latents - quantized).unsqueeze(0))

    def level_codebooks(self) -> list[StochasticCodebook]:
        """The codebook of every level: one."""
        return [self.codebook]

    def log_probabilities(self, latents: torch.Tensor, log_variance_map: torch.Tensor | None) -> torch.Tensor:
        """Log P̂(z_q = b_k | z), (B, h, w, K)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.codebook.log_probabilities(latents.float(), self._variance(log_variance_map).reciprocal())
