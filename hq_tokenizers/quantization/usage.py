"""How codes are used: the one place for counts, entropy, perplexity, active and dead codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def code_counts(indices: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each code occurs: float32 (K,). Works without a host synchronisation, unlike `torch.bincount`.

    Args:
        indices: Hard codes of any shape, values in [0, K).
        num_codes: K.
    """
    flat = indices.reshape(-1)
    return torch.zeros(num_codes, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))


def code_entropy(counts: Sequence[torch.Tensor]) -> torch.Tensor:
    """H = −Σ_k p_k log p_k in nats of each level's histogram; exp H is its perplexity. No host synchronisation."""
    return torch.stack([torch.special.entr(count / count.sum()).sum() for count in counts])


def active_codes(counts: Sequence[torch.Tensor]) -> torch.Tensor:
    """How many codes of each level occur."""
    return torch.stack([(count > 0).sum().to(count.dtype) for count in counts])


def usage_figures(counts: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """How evenly the codes of each level are used, from their histograms p = counts / Σ counts.

    Args:
        counts: One histogram (K_l,) per level; non-negative weights of a floating type, not all zero.

    Returns:
        Tensors (L,) of that type and device: "entropy" H = −Σ_k p_k log p_k in nats; "perplexity" exp H, between 1 and
        K, K when all codes are used alike; "usage", perplexity / K; "normalized_entropy", H / log K (usage as Łańcucki
        et al. report it; 1 for K = 1); "active_codes" that occur; "dead_rate", the share of codes that do not.
    """
    entropy = code_entropy(counts)
    per_level = list(zip(entropy, map(len, counts), strict=True))
    return {
        "entropy": entropy,
        "perplexity": entropy.exp(),
        "usage": torch.stack([value.exp() / size for value, size in per_level]),
        "normalized_entropy": torch.stack(
            [value / math.log(size) if size > 1 else value + 1 for value, size in per_level]
        ),
        "active_codes": active_codes(counts),
        "dead_rate": torch.stack([(count == 0).to(entropy).mean() for count in counts]),
    }
