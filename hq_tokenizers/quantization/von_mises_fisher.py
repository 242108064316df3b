"""Von Mises–Fisher stochastic quantisation of unit vectors (SQ-VAE, section 4.2).

Shape legend: B batch, h × w grid (N positions), d code width, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.losses.elbo import categorical_kl, vmf_distance
from hq_tokenizers.quantization.functional import vmf_logits
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook, UnitCodebook


class VonMisesFisherQuantizer(nn.Module):
    """Von Mises–Fisher quantisation of one grid of unit vectors (SQ-VAE, section 4.2).

    P̂(z_q = b_k | z) = softmax_k(κ_φ b_kᵀ z) with κ_φ = 1 + exp(s); latents and codes lie on the unit sphere.
    The continuous term is E Σ_i κ_φ (1 − z_{q,i}ᵀ z_i), the discrete one that of `GaussianQuantizer`.

    Args:
        num_codes: Codebook size K.
        code_dim: Code width, one more than the dimension of the sphere.
        max_elements: See `StochasticCodebook`.
    """

    def __init__(self, num_codes: int, code_dim: int, max_elements: int):
        super().__init__()
        self.codebook = UnitCodebook(num_codes, code_dim, vmf_logits, max_elements)
        self.log_concentration = nn.Parameter(torch.empty(()))

    def concentration(self) -> torch.Tensor:
        """κ_φ, four dimensions of size 1."""
        return (1 + self.log_concentration.float().exp()).reshape(1, 1, 1, 1)

    def forward(
        self,
        latents: torch.Tensor,
        temperature: torch.Tensor | None,
        log_variance_map: None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> QuantizerOutput:
        """Quantises latents (B, h, w, d), normalising them first; see `QuantizerOutput`."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = F.normalize(latents.float(), dim=-1)
            concentration = self.concentration()
            quantized, indices, entropy = self.codebook(latents, concentration, temperature, generators)
            terms = {
                "continuous": vmf_distance(latents, quantized, concentration),
                "discrete": categorical_kl(entropy, len(self.codebook.codes)),
            }
            return QuantizerOutput.of_one_level(quantized, indices, terms, entropy, concentration.reciprocal())

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
