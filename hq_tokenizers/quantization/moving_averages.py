"""Codebooks that follow moving averages of the vectors they stand for, with restart of codes that nobody uses.

Shape legend: M latent vectors, d code width, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hq_tokenizers.checks import Count, check_value
from hq_tokenizers.processes import all_reduce, broadcast
from hq_tokenizers.quantization.finite_batches import all_finite, follow
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.quantization.usage import code_counts

LAPLACE_EPSILON = 1e-5
FRESH = 2.0
"""A new code counts as this many times the bound for dead ones: it has time to be found before it is judged."""
USED_SHARE = 1 / 4
"""A code that has this part of what every code would have, were all used alike, is never dead."""
RESTART_NOISE = 0.01
"""Standard deviation, relative to the batch's, of what tells copies of one vector apart."""


@dataclass
class _Pending:
    """What the parts of a batch have shown so far: (K,), (K, d), (K, d), and the number of vectors."""

    counts: torch.Tensor
    totals: torch.Tensor
    candidates: torch.Tensor
    number: int
    parts: int


class MovingAverages(nn.Module):
    """Moving averages of K codes (van den Oord et al., 2017, appendix A).

    Once per optimiser step, over the vectors of all levels, processes and parts of the batch, with decay γ:

        c_k = #{i : z_i → k},   n_k ← γ n_k + (1 − γ) c_k,   m_k ← γ m_k + (1 − γ) Σ_{i → k} z_i,   b_k = m_k / n̂_k

    where n̂ is n after Laplace smoothing. A code is dead when both n_k and this step's c_k are below the threshold, or
    below Σ_j c_j / 4 K where that is less: with fewer vectors than codes in a batch, few codes have a count of 1.
    It becomes a vector of the batch, no two codes the same one, and starts anew with n_k twice the bound that it fell
    below and m_k = n_k b_k. Without restarts a code that nobody uses drifts to the origin, once n_k nears the
    smoothing. A step among whose vectors there is an infinite or undefined value, or one whose square is, moves no
    average and restarts no code.

    With a warm-up the decay at step t = 0, 1, … is min(γ, (1 + t) / (10 + t)): what the codes were at the start, when
    the latents went elsewhere, is soon forgotten.

    Args:
        num_codes: K.
        code_dim: d.
        decay: γ.
        restart_threshold: Below it a code is dead; 0 restarts none.
        warmup: Whether the decay starts small.
    """

    count: torch.Tensor
    total: torch.Tensor
    step: torch.Tensor | None

    def __init__(self, num_codes: int, code_dim: int, decay: float, restart_threshold: float, warmup: bool = False):
        super().__init__()
        self.decay = decay
        # Counted only where it is needed: a tensor that is saved.
        self.register_buffer("step", torch.zeros((), dtype=torch.long) if warmup else None)
        self.restart_threshold = restart_threshold
        self.parts = 1
        """Forward passes that make one optimiser step (gradient accumulation)."""
        # From 0 on, the norms of unused codes would explode with the first step.
        self.register_buffer("count", torch.ones(num_codes))
        self.register_buffer("total", torch.empty(num_codes, code_dim))
        self._pending: _Pending | None = None

    def start_step(self, parts: int) -> None:
        """Forgets parts of a step that never ended; the next step has this many."""
        self.parts, self._pending = parts, None

    @torch.no_grad()
    def start(self, codes: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        """Averages that give these code vectors.

        Args:
            codes: (K, d).
            counts: How many vectors each stands for, (K,); None for equally many. Their sum becomes what it was, but
                that no code counts less than a restarted one.
        """
        # A code without vectors, which k-means makes of fewer distinct vectors than codes, stands for one.
        members = torch.ones_like(self.count) if counts is None else counts.clamp_min(1)
        shares = members / members.sum() * self.count.sum()
        self.count.copy_(shares.clamp_min(FRESH * self.restart_threshold))
        self.total.copy_(codes * self.count.unsqueeze(-1))

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, indices: torch.Tensor) -> None:
        """Takes latents (M, d) with their codes (M,); nothing moves before `end_of_part`."""
        latents = latents.to(self.total.dtype)
        counts = code_counts(indices, len(self.count))
        totals = torch.zeros_like(self.total).index_add_(0, indices, latents)
        candidates = _draw(latents, len(self.count)) if self.restart_threshold else latents[:0]
        pending = self._pending
        if pending is None:
            self._pending = _Pending(counts, totals, candidates, len(latents), parts=0)
            return
        pending.counts += counts
        pending.totals += totals
        pending.number += len(latents)
        if self.restart_threshold:
            # Every vector of the batch is as likely to become a candidate, whichever part it came with.
            newer = torch.rand(len(candidates), 1, device=latents.device) < len(latents) / pending.number
            pending.candidates = torch.where(newer, candidates, pending.candidates)

    @torch.no_grad()
    def end_of_part(self) -> torch.Tensor | None:
        """After every training forward: the new code vectors (K, d) when the optimiser step is complete, or None."""
        pending = self._pending
        if pending is None:
            return None
        pending.parts += 1
        if pending.parts < self.parts:
            return None
        self._pending = None
        all_reduce(pending.counts)
        all_reduce(pending.totals)
        # Of what overflows when it is squared, no distance to a code is known.
        usable = all_finite(pending.totals.square())
        weight = 1 - self._decay(usable)
        follow(self.count, pending.counts, weight, usable)
        follow(self.total, pending.totals, weight, usable)
        if self.restart_threshold:
            broadcast(pending.candidates)
            self._restart(pending, usable)
        number = self.count.sum()
        smoothed = (self.count + LAPLACE_EPSILON) / (number + len(self.count) * LAPLACE_EPSILON) * number
        return self.total / smoothed.unsqueeze(-1)

    def _decay(self, usable: torch.Tensor) -> torch.Tensor:
        """γ of this optimiser step, a scalar."""
        decay = self.count.new_tensor(self.decay)
        if self.step is None:
            return decay
        self.step += usable
        return torch.minimum(decay, self.step / (9 + self.step))

    def _restart(self, pending: _Pending, usable: torch.Tensor) -> None:
        used = USED_SHARE * pending.counts.sum() / len(self.count)
        threshold = used.clamp_max(self.restart_threshold)
        dead = (self.count < threshold) & (pending.counts < threshold) & usable
        fresh = FRESH * threshold
        self.count.copy_(torch.where(dead, fresh, self.count))
        self.total.copy_(torch.where(dead.unsqueeze(-1), fresh * pending.candidates, self.total))


def _draw(latents: torch.Tensor, number: int) -> torch.Tensor:
    """`number` of the vectors (M, d), each at most once; where there are fewer, copies that differ by noise."""
    order = torch.randperm(len(latents), device=latents.device)
    if len(latents) >= number:
        return latents[order[:number]]
    copies = latents[order.repeat(-(-number // len(latents)))[:number]]
    spread = latents.std() if latents.numel() > 1 else latents.abs().mean()
    return copies + torch.randn_like(copies) * spread * RESTART_NOISE


def set_accumulation(model: nn.Module, parts: int) -> None:
    """Tells the moving averages of a model, codebooks and variances, how many forward passes make an optimiser step.

    Call it between steps: what passes of an unfinished one have shown is forgotten.

    Args:
        model: Any module.
        parts: Forward passes per optimiser step, at least 1.

    Raises:
        ValueError: If `parts` is no integer, or less.
    """
    check_value("parts", parts, Count)
    for module in model.modules():
        if isinstance(module, MovingAverages | ResidualVariance):
            module.start_step(parts)
