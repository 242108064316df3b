"""A deterministic codebook, learned by gradient, by exponential moving averages or through a linear layer.

Shape legend: M latent vectors, d code width, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.quantization.functional import gaussian_factors, in_chunks
from hq_tokenizers.quantization.moving_averages import MovingAverages


def codebook_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers of every `VectorCodebook` of a model."""
    codebooks = [module for module in model.modules() if isinstance(module, VectorCodebook)]
    return [tensor for codebook in codebooks for tensor in (*codebook.parameters(), *codebook.buffers())]


class VectorCodebook(nn.Module):
    """K code vectors with nearest-neighbour look-up.

    With a linear layer the code vectors are b_k = W c_k + a for random c_k that stay as they are, and W and a are
    learned: one gradient moves all codes, also those that no latent is near to (Zhu et al., SimVQ, 2024).

    Args:
        num_codes: Codebook size K.
        code_dim: Code width d.
        averages: The moving averages that the code vectors follow; None makes them a parameter, learned by gradient.
        max_elements: Bound on the size of the latents × codes matrix held at once.
        linear: Whether the code vectors are those of frozen random vectors through a linear layer.
    """

    weight: torch.Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        averages: MovingAverages | None,
        max_elements: int,
        linear: bool = False,
    ):
        super().__init__()
        self.max_elements = max_elements
        self.averages = averages
        self.projection = nn.Linear(code_dim, code_dim) if linear else None
        if averages is None and not linear:
            self.weight = nn.Parameter(torch.empty(num_codes, code_dim))
        else:
            self.register_buffer("weight", torch.empty(num_codes, code_dim))

    @property
    def codes(self) -> torch.Tensor:
        """The code vectors (K, d) in float32."""
        if self.projection is None:
            return self.weight.float()
        # Also where codes are decoded under autocast: the decoder is to see the vectors that it was trained on.
        with torch.autocast(self.weight.device.type, enabled=False):
            return F.linear(self.weight.float(), self.projection.weight.float(), self.projection.bias.float())

    @torch.no_grad()
    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code by Euclidean distance: (M, d) → (M,)."""
        codes = self.codes
        unit = latents.new_ones(1, 1)

        def search(z: torch.Tensor) -> tuple[torch.Tensor]:
            query, key = gaussian_factors(z, codes, unit)
            return ((query @ key.T).argmax(dim=-1),)

        return in_chunks(search, latents, num_codes=len(codes), max_elements=self.max_elements)[0]

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, indices: torch.Tensor) -> None:
        """Shows the moving averages latents (M, d) and their codes (M,)."""
        if self.averages is not None:
            self.averages.observe(latents, indices)

    @torch.no_grad()
    def end_of_part(self) -> None:
        """After every training forward, when all levels have observed: follows the moving averages."""
        moved = None if self.averages is None else self.averages.end_of_part()
        if moved is not None:
            self.weight.copy_(moved)

    @torch.no_grad()
    def assign(self, codes: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        """Replaces all code vectors, and the moving averages with them; not those of a linear layer.

        Args:
            codes: The code vectors (K, d).
            counts: How many vectors each stands for, (K,); None for equally many.
        """
        self.weight.copy_(codes)
        if self.averages is not None:
            self.averages.start(codes, counts)
