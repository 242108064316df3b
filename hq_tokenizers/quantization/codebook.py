"""What every codebook has: its vectors, the nearest of them, the averages that they follow, and their replacement.

Shape legend: M latent vectors, d code width, K codes.
"""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.quantization.functional import gaussian_factors, in_chunks
from hq_tokenizers.quantization.moving_averages import MovingAverages


class Codebook(nn.Module):
    """K code vectors, learned by gradient or following moving averages.

    Args:
        num_codes: Codebook size K.
        code_dim: Code width d.
        averages: The moving averages that the code vectors follow; None leaves them to the gradient.
        max_elements: Bound on the size of the latents × codes matrix held at once.
        trained: Whether the vectors themselves are a parameter, where no averages are; else they are a buffer.
    """

    weight: torch.Tensor

    def __init__(
        self, num_codes: int, code_dim: int, averages: MovingAverages | None, max_elements: int, trained: bool = True
    ):
        super().__init__()
        self.max_elements = max_elements
        self.averages = averages
        if averages is None and trained:
            self.weight = nn.Parameter(torch.empty(num_codes, code_dim))
        else:
            self.register_buffer("weight", torch.empty(num_codes, code_dim))

    @property
    def codes(self) -> torch.Tensor:
        """The code vectors (K, d) in float32."""
        return self.weight.float()

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
    def end_of_part(self) -> None:
        """After every training forward, when all levels have been quantised: follows the moving averages."""
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


def codebook_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers of every codebook of a model."""
    codebooks = [module for module in model.modules() if isinstance(module, Codebook)]
    return [tensor for codebook in codebooks for tensor in (*codebook.parameters(), *codebook.buffers())]
