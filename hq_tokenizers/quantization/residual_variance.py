"""Quantisation variances that follow what the levels leave over, instead of being trained.

Shape legend: L levels, M latent vectors of width d.
"""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.processes import all_reduce
from hq_tokenizers.quantization.finite_batches import all_finite, follow
from hq_tokenizers.quantization.snapshot import snapshot

DECAY = 0.99


class ResidualVariance(nn.Module):
    """s_l² = max(factor · E_l, share · V_l).

    E_l is the moving average of ‖r_l − z_l‖² / d, the energy per value that level l leaves over, and V_l that of the
    variance of r_l, what the level quantises.

    Trained freely, deep levels of a residual hierarchy inflate their variance, since the uniform prior rewards entropy;
    tied to what remains, they stay as sharp as their task. Tied to it alone, they may become too sharp: the closer the
    latents lie to the codes, the more the continuous term holds them there, until no latent can change its code. The
    share of V_l bounds that, whatever the scale of the latents.

    Averages move once per optimiser step, over all processes and parts of the batch, with decay
    min(0.99, (1 + t) / (10 + t)) at step t, so that the start is soon forgotten. A step with an infinite or undefined
    value moves nothing.

    Args:
        num_levels: Number of levels L.
        factor: Variance per remaining energy; 1 is sharp, 3 soft.
        share: Smallest variance per variance of what the level quantises.
    """

    energy: torch.Tensor
    spread: torch.Tensor
    step: torch.Tensor

    def __init__(self, num_levels: int, factor: float, share: float = 0.0):
        super().__init__()
        self.factor = factor
        self.share = share
        self.parts = 1
        """Forward passes that make one optimiser step (gradient accumulation)."""
        self.register_buffer("energy", torch.ones(num_levels))
        self.register_buffer("spread", torch.zeros(num_levels))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._pending: torch.Tensor | None = None
        self._parts_seen = 0

    def start_step(self, parts: int) -> None:
        """Forgets parts of a step that never ended; the next step has this many."""
        self.parts, self._pending, self._parts_seen = parts, None, 0

    def forward(self) -> torch.Tensor:
        """s_l² of every level, (L,)."""
        energy, spread = snapshot(self.energy), snapshot(self.spread)
        return torch.maximum(self.factor * energy.float(), self.share * spread.float())

    def restart(self) -> None:
        """Lets the averages soon forget what they are: of codes that were replaced at once."""
        self.step.zero_()

    @torch.no_grad()
    def observe(self, moments: torch.Tensor) -> None:
        """Takes the `level_moments` of every level in a forward pass of training, (L, d + 2)."""
        self._pending = moments.clone() if self._pending is None else self._pending + moments
        self._parts_seen += 1
        if self._parts_seen < self.parts:
            return
        # Sums and their number together, so that every part and process counts alike.
        sums = torch.cat([self._pending.flatten(), self._pending.new_full((1,), self._parts_seen)])
        all_reduce(sums)
        moments = (sums[:-1] / sums[-1]).reshape(moments.shape)
        usable = all_finite(moments)
        weight = 1 - ((1 + self.step) / (10 + self.step)).clamp_max(DECAY)
        follow(self.energy, moments[:, 0], weight, usable)
        follow(self.spread, moments[:, 1] - moments[:, 2:].square().mean(dim=1), weight, usable)
        self.step += usable
        self._pending, self._parts_seen = None, 0


def level_moments(latents: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """What `ResidualVariance` is told of a level, as means over a batch, which average over its parts.

    Args:
        latents: What the level quantises, (…, d).
        residual: What it leaves over, (…, d).

    Returns:
        (d + 2,): the mean squares of the residual's and of the latents' values, and the latents' mean vector.
    """
    latents, residual = latents.detach(), residual.detach()
    squares = torch.stack([residual.square().mean(), latents.square().mean()])
    return torch.cat([squares, latents.flatten(0, -2).mean(dim=0)])
