"""A deterministic codebook, learned by gradient or by exponential moving averages, with restart of unused codes.

Shape legend: M latent vectors, d code width, K codes.
"""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.processes import all_reduce, broadcast
from hq_tokenizers.quantization.functional import gaussian_logits, in_chunks
from hq_tokenizers.quantization.usage import code_counts

UPDATES = ("gradient", "ema")
LAPLACE_EPSILON = 1e-5


def codebook_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers of every `VectorCodebook` of a model."""
    codebooks = [module for module in model.modules() if isinstance(module, VectorCodebook)]
    return [tensor for codebook in codebooks for tensor in (*codebook.parameters(), *codebook.buffers())]


class VectorCodebook(nn.Module):
    """K code vectors with nearest-neighbour look-up.

    With `update="ema"` (van den Oord et al., 2017, appendix A) every training look-up moves, with decay γ,

        n_k ← γ n_k + (1 − γ) #{i : z_i → k},   m_k ← γ m_k + (1 − γ) Σ_{i → k} z_i,   b_k = m_k / n̂_k

    where n̂ is n after Laplace smoothing. Under data parallelism all processes see the sums over all of them.

    Args:
        num_codes: Codebook size K.
        code_dim: Code width d.
        update: "gradient" makes the code vectors a parameter, "ema" buffers.
        decay: γ.
        restart_threshold: A code whose n_k falls below it is replaced by a random vector of the batch, and its count
            and sum with it; 0 never replaces any.
        max_elements: Bound on the size of the latents × codes matrix held at once.
    """

    weight: torch.Tensor
    ema_count: torch.Tensor
    ema_sum: torch.Tensor

    def __init__(
        self, num_codes: int, code_dim: int, *, update: str, decay: float, restart_threshold: float, max_elements: int
    ):
        super().__init__()
        self.update_rule = update
        self.decay = decay
        self.restart_threshold = restart_threshold
        self.max_elements = max_elements
        if update == "gradient":
            self.weight = nn.Parameter(torch.empty(num_codes, code_dim))
        else:
            self.register_buffer("weight", torch.empty(num_codes, code_dim))
            self.register_buffer("ema_count", torch.ones(num_codes))
            self.register_buffer("ema_sum", torch.empty(num_codes, code_dim))

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
            return (gaussian_logits(z, codes, unit).argmax(dim=-1),)

        return in_chunks(search, latents, num_codes=len(codes), max_elements=self.max_elements)[0]

    @torch.no_grad()
    def move_averages(self, latents: torch.Tensor, indices: torch.Tensor) -> None:
        """One step of the moving averages and the restart, for latents (M, d) and their codes (M,)."""
        counts = code_counts(indices, len(self.weight))
        sums = torch.zeros_like(self.ema_sum).index_add_(0, indices, latents.to(self.ema_sum.dtype))
        all_reduce(counts)
        all_reduce(sums)
        self.ema_count.lerp_(counts, 1 - self.decay)
        self.ema_sum.lerp_(sums, 1 - self.decay)
        if self.restart_threshold > 0:
            self._restart(latents)
        total = self.ema_count.sum()
        smoothed = (self.ema_count + LAPLACE_EPSILON) / (total + len(self.weight) * LAPLACE_EPSILON) * total
        self.weight.copy_(self.ema_sum / smoothed.unsqueeze(-1))

    def _restart(self, latents: torch.Tensor) -> None:
        chosen = torch.randint(latents.shape[0], (len(self.weight),), device=latents.device)
        candidates = latents[chosen].to(self.ema_sum.dtype)
        broadcast(candidates)
        dead = self.ema_count < self.restart_threshold
        self.ema_count.masked_fill_(dead, 1.0)
        self.ema_sum.copy_(torch.where(dead.unsqueeze(-1), candidates, self.ema_sum))

    @torch.no_grad()
    def assign(self, codes: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        """Replaces all code vectors, and the moving averages with them.

        Args:
            codes: The code vectors (K, d).
            counts: How many vectors each stands for, (K,); None for equally many.
        """
        self.weight.copy_(codes)
        if self.update_rule == "ema":
            # A code without vectors, which k-means makes of fewer distinct vectors than codes, stands for one.
            members = torch.ones_like(self.ema_count) if counts is None else counts.clamp_min(1)
            shares = members / members.sum()
            # As many per batch as before in sum, and none so few that the first batch without it restarts it.
            per_batch = shares * self.ema_count.sum()
            self.ema_count.copy_(per_batch.clamp_min(2 * self.restart_threshold))
            self.ema_sum.copy_(codes * self.ema_count.unsqueeze(-1))
