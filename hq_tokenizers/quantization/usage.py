"""How a batch uses its codebook."""

from __future__ import annotations

import torch


def code_counts(indices: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each code occurs: float32 (K,). Works without a host synchronisation, unlike `torch.bincount`.

    Args:
        indices: Hard codes of any shape, values in [0, K).
        num_codes: K.
    """
    flat = indices.reshape(-1)
    return torch.zeros(num_codes, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(−Σ_k p_k log p_k) of the code histogram p: between 1 and K, K when all codes are used alike.

    Args:
        counts: Non-negative weights (K,), not all zero.
    """
    probabilities = counts / counts.sum()
    return torch.special.entr(probabilities).sum().exp()
