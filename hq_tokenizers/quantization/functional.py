"""The differentiable core of stochastic quantisation; every equation of the quantiser stands here once.

Shape legend: M latent vectors (any leading shape, flattened here), d code width, K codes.
Everything runs in float32 whatever the autocast: bfloat16 distances flip 2–4 % of the codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hq_tokenizers.randomness import gumbel_noise


def gaussian_logits(latents: torch.Tensor, codebook: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """Log P̂(z_q = b_k | z) up to a constant in k: −½ (b_k − z)ᵀ Σ⁻¹ (b_k − z), without its zᵀΣ⁻¹z (SQ-VAE, eq. 5).

    One code path for all four variance types: with w the diagonal of Σ⁻¹, the logits are [w∘z, w] · [b_k, −½ b_k∘b_k].

    Args:
        latents: (M, d), float32.
        codebook: (K, d), float32.
        precision: Diagonal of Σ⁻¹: (M or 1, d or 1). A width of 1 means one value for all channels.

    Returns:
        Logits (M, K).
    """
    squares = codebook.square()
    if precision.shape[-1] == 1:
        squares = squares.sum(dim=-1, keepdim=True)
    weighted = latents * precision
    query = torch.cat([weighted, precision.expand(latents.shape[0], -1)], dim=-1)
    key = torch.cat([codebook, -0.5 * squares], dim=-1)
    return query @ key.T


def vmf_logits(latents: torch.Tensor, codebook: torch.Tensor, concentration: torch.Tensor) -> torch.Tensor:
    """Log P̂(z_q = b_k | z) up to a constant: κ_φ b_kᵀ z for unit vectors (SQ-VAE, section 4.2).

    Args:
        latents: (M, d), unit vectors.
        codebook: (K, d), unit vectors.
        concentration: κ_φ, a positive scalar tensor.

    Returns:
        Logits (M, K).
    """
    return (concentration * latents) @ codebook.T


class _RelaxedSample(torch.autograd.Function):
    """Forward and hand-derived backward of `relaxed_quantize`.

    Keeps two (M, K) tensors where autograd keeps seven, and makes a third of its passes over them.
    """

    @staticmethod
    def forward(
        logits: torch.Tensor, codebook: torch.Tensor, perturbed: torch.Tensor, temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        log_probabilities = F.log_softmax(logits, dim=-1)
        probabilities = log_probabilities.exp()
        weighted = log_probabilities.mul_(probabilities)
        entropy = -weighted.sum(dim=-1)
        # ∂H/∂a_k = −p_k (log p_k + H), with a the logits
        entropy_gradient = weighted.addcmul_(probabilities, entropy.unsqueeze(-1)).neg_()
        assignment = torch.softmax(perturbed, dim=-1)
        return assignment @ codebook, entropy, entropy_gradient, assignment

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:  # type: ignore[no-untyped-def]
        _, codebook, _, temperature = inputs
        quantized, _, entropy_gradient, assignment = output
        ctx.mark_non_differentiable(entropy_gradient, assignment)
        # Zeros for the outputs without gradient would be two more (M, K) tensors.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(codebook, temperature, quantized, entropy_gradient, assignment)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_quantized, grad_entropy, *_unused):  # type: ignore[no-untyped-def]
        codebook, temperature, quantized, entropy_gradient, assignment = ctx.saved_tensors
        if grad_quantized is None:
            return (None if grad_entropy is None else entropy_gradient * grad_entropy.unsqueeze(-1)), None, None, None
        # With z_q = Σ_k y_k b_k:  ∂z_q/∂a_k = y_k (b_k − z_q) / τ
        scaled = grad_quantized / temperature
        mean = torch.linalg.vecdot(scaled, quantized).unsqueeze(-1)
        grad_logits = (scaled @ codebook.T).sub_(mean).mul_(assignment)
        if grad_entropy is not None:
            grad_logits.addcmul_(entropy_gradient, grad_entropy.unsqueeze(-1))
        grad_codebook = assignment.T @ grad_quantized if ctx.needs_input_grad[1] else None
        return grad_logits, grad_codebook, None, None


def relaxed_quantize(
    logits: torch.Tensor, codebook: torch.Tensor, temperature: torch.Tensor, gumbel: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A relaxed sample of P̂ by the Gumbel-softmax, and the entropy of P̂.

    z̃_q = Σ_k y_k b_k with y = softmax((logits + g) / τ), soft: no straight-through and no stop-gradient.

    Args:
        logits: (M, K), unnormalised log-probabilities.
        codebook: (K, d).
        temperature: τ > 0, a scalar tensor; not differentiated.
        gumbel: Gumbel(0, 1) noise g, (M, K); drawn from torch's global generator by default.

    Returns:
        The relaxed samples (M, d) and the entropies H(P̂) in nats (M,).
    """
    noise = gumbel_noise(logits) if gumbel is None else gumbel.clone()
    perturbed = noise.add_(logits.detach()).div_(temperature)
    quantized, entropy, _, _ = _RelaxedSample.apply(logits, codebook, perturbed, temperature)
    return quantized, entropy


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """ẑ + sg(z_q − ẑ): exactly the code vectors in value, the identity with respect to the latents in gradient."""
    return quantized.detach() + (latents - latents.detach())


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """H(softmax(logits)) in nats: (M, K) → (M,)."""
    log_probabilities = F.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


def in_chunks(function, latents: torch.Tensor, *per_vector: torch.Tensor, num_codes: int, max_elements: int):  # type: ignore[no-untyped-def]
    """Applies `function` to slices of the M vectors, so that at most `max_elements` of the M × K matrix exist at once.

    Each slice is checkpointed: the backward recomputes its part of the matrix with the same noise. The result is that
    of one call; memory is bounded, at the price of computing the logits twice.

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
