"""The differentiable core of stochastic quantisation; its relaxed samples are in `relaxed_sample.py`.

Shape legend: M latent vectors (any leading shape, flattened here), d code width, K codes.
Everything runs in float32 whatever the autocast: bfloat16 distances flip 2–4 % of the codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

Factors = tuple[torch.Tensor, torch.Tensor]


def gaussian_factors(latents: torch.Tensor, codebook: torch.Tensor, precision: torch.Tensor) -> Factors:
    """Log P̂(z_q = b_k | z) up to a constant in k: −½ (b_k − z)ᵀ Σ⁻¹ (b_k − z), without its zᵀΣ⁻¹z (SQ-VAE, eq. 5).

    One code path for all four variance types: with w the diagonal of Σ⁻¹, the logits are [w∘z, w] · [b_k, −½ b_k∘b_k].

    Args:
        latents: (M, d), float32.
        codebook: (K, d), float32.
        precision: Diagonal of Σ⁻¹: (M or 1, d or 1). A width of 1 means one value for all channels.

    Returns:
        Factors (M, r) and (K, r) of the logits (M, K), with r = d + 1 or 2d.
    """
    squares = codebook.square()
    if precision.shape[-1] == 1:
        squares = squares.sum(dim=-1, keepdim=True)
    weighted = latents * precision
    query = torch.cat([weighted, precision.expand(latents.shape[0], -1)], dim=-1)
    return query, torch.cat([codebook, -0.5 * squares], dim=-1)


def vmf_factors(latents: torch.Tensor, codebook: torch.Tensor, concentration: torch.Tensor) -> Factors:
    """Log P̂(z_q = b_k | z) up to a constant: κ_φ b_kᵀ z for unit vectors (SQ-VAE, section 4.2).

    Args:
        latents: (M, d), unit vectors.
        codebook: (K, d), unit vectors.
        concentration: κ_φ, a positive scalar tensor.

    Returns:
        Factors (M, d) and (K, d) of the logits (M, K).
    """
    return concentration * latents, codebook


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """ẑ + sg(z_q − ẑ): exactly the code vectors in value, the identity with respect to the latents in gradient."""
    return quantized.detach() + (latents - latents.detach())


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """H(softmax(logits)) in nats: (M, K) → (M,)."""
    # Not the exponential of the logarithms: of the very negative ones of sharp logits it takes many times as long.
    return -(torch.softmax(logits, dim=-1) * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def in_chunks(function, latents: torch.Tensor, *per_vector: torch.Tensor, num_codes: int, max_elements: int):  # type: ignore[no-untyped-def]
    """Applies `function` to slices of the M vectors, so that at most `max_elements` of the M × K matrix exist at once.

    Each slice is checkpointed: the backward recomputes its part of the matrix. The result is that of one call; memory
    is bounded, at the price of computing the logits twice.

    Args:
        function: Maps slices of the tensors to a tuple of tensors whose first dimension is the slice.
        latents: (M, d).
        *per_vector: Further tensors; those with M rows are sliced with `latents`, others are passed whole.
        num_codes: K.
        max_elements: Largest allowed number of elements of a slice's matrix.
    """
    num_vectors = latents.shape[0]
    rows = max(1, max_elements // num_codes)
    if num_vectors <= rows:
        return function(latents, *per_vector)
    outputs = []
    for start in range(0, num_vectors, rows):
        part = slice(start, start + rows)
        arguments = [t[part] if t.shape[0] == num_vectors else t for t in (latents, *per_vector)]
        outputs.append(checkpoint(function, *arguments, use_reentrant=False))
    return tuple(torch.cat(column) for column in zip(*outputs, strict=True))
