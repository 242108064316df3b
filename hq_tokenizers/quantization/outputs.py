"""What every quantiser returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class QuantizerOutput:
    """Result of quantising one grid of latent vectors with D levels of codes.

    Args:
        partial_sums: Code vectors summed over the first 1, …, D levels: D tensors (B, h, w, d). While a
            stochastic quantiser trains, of samples, exact or relaxed; in a warm-up the latents themselves. From exact
            samples and nearest codes the latents have a straight-through gradient.
        indices: Hard codes, LongTensor (B, h, w, D); None for a continuous bottleneck.
        terms: The quantiser's contributions to the loss, scalars; none `for_codes`.
        entropy: Mean entropy of P̂ per position in nats, (D,); zeros for deterministic quantisers, and `for_codes`.
        variance: Mean quantisation variance (1/κ_φ for von Mises–Fisher), (D,); zeros for deterministic quantisers.
        latent_energy: ‖ẑ‖² / d, mean over positions, a scalar; of no meaning for a continuous bottleneck.
        residual_energy: ‖ẑ − Σ_{l' ≤ l} z_{l'}‖² / d, what the levels so far leave over, mean over positions: (D,).
    """

    partial_sums: tuple[torch.Tensor, ...]
    indices: torch.Tensor | None
    terms: dict[str, torch.Tensor]
    entropy: torch.Tensor
    variance: torch.Tensor
    latent_energy: torch.Tensor
    residual_energy: torch.Tensor

    @classmethod
    def of_one_level(
        cls,
        latents: torch.Tensor,
        quantized: torch.Tensor,
        indices: torch.Tensor,
        terms: dict[str, torch.Tensor],
        entropy: torch.Tensor,
        variance: torch.Tensor,
    ) -> QuantizerOutput:
        """The output of a quantiser with one code per position.

        Args:
            latents: (B, h, w, d).
            quantized: (B, h, w, d).
            indices: (B, h, w).
            terms: As above.
            entropy: Of every position, (B, h, w).
            variance: Of any shape; its mean is reported.
        """
        remaining = (latents - quantized).detach()
        return cls(
            (quantized,),
            indices.unsqueeze(-1),
            terms,
            entropy.mean().reshape(1),
            variance.mean().reshape(1),
            latent_energy=latents.detach().square().mean(),
            residual_energy=remaining.square().mean().reshape(1),
        )

    @property
    def quantized(self) -> torch.Tensor:
        """The code vectors for the decoder, summed over all levels: (B, h, w, d)."""
        return self.partial_sums[-1]
