"""A deterministic codebook, learned by gradient, by exponential moving averages or through a linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.quantization.codebook import Codebook
from hq_tokenizers.quantization.moving_averages import MovingAverages


class VectorCodebook(Codebook):
    """K code vectors with nearest-neighbour look-up.

    With a linear layer the code vectors are b_k = W c_k + a for random c_k that stay as they are, and W and a are
    learned: one gradient moves all codes, also those that no latent is near to (Zhu et al., SimVQ, 2024).

    Args:
        num_codes: Codebook size K.
        code_dim: Code width d.
        averages: See `Codebook`.
        max_elements: See `Codebook`.
        linear: Whether the code vectors are those of frozen random vectors through a linear layer.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        averages: MovingAverages | None,
        max_elements: int,
        linear: bool = False,
    ):
        super().__init__(num_codes, code_dim, averages, max_elements, trained=not linear)
        self.projection = nn.Linear(code_dim, code_dim) if linear else None

    @property
    def codes(self) -> torch.Tensor:
        """The code vectors (K, d) in float32."""
        if self.projection is None:
            return self.weight.float()
        # Also where codes are decoded under autocast: the decoder is to see the vectors that it was trained on.
        with torch.autocast(self.weight.device.type, enabled=False):
            return F.linear(self.weight.float(), self.projection.weight.float(), self.projection.bias.float())

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, indices: torch.Tensor) -> None:
        """Shows the moving averages latents (M, d) and their codes (M,)."""
        if self.averages is not None:
            self.averages.observe(latents, indices)
