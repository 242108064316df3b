"""Every term of the negative ELBO, in nats per image, with its constants.

    −ELBO = E −log p(x | z_q)  +  continuous  +  discrete                      (SQ-VAE, eq. 8; HQ-VAE, eq. 12)

| term | function |
|---|---|
| reconstruction, −log p(x ∣ z_q) of images | `gaussian_nll`; of label maps see `losses.likelihoods` |
| continuous, Gaussian: ½ (z − z_q)ᵀ Σ⁻¹ (z − z_q) | `mahalanobis` |
| continuous, von Mises–Fisher: κ (1 − z_qᵀ z) | `vmf_distance` |
| discrete: KL(P̂ ‖ uniform) = N log K − Σ H(P̂) | `categorical_kl` |
| discrete, with a learned prior: KL(P̂ ‖ prior) | `learned_prior_kl` |
| KL of a VAE's continuous latents | `gaussian_kl` |

Terms sum over the D values of an image, or its N positions, and average over the batch only: a mean over pixels or
positions makes the KL terms thousands of times too weak or too strong, and the codebook collapses.
"""

from __future__ import annotations

import math

import torch

LOG_2PI = math.log(2 * math.pi)


def squared_error(reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """(1/B) Σ ‖x − x̂‖², summed over the D values of an image: a scalar, in float32."""
    return (reconstruction.float() - pixel_values.float()).square().sum() / pixel_values.shape[0]


def gaussian_nll(
    reconstruction: torch.Tensor,
    pixel_values: torch.Tensor,
    log_variance: torch.Tensor | None = None,
    min_variance: float = 0.0,
) -> torch.Tensor:
    """−E log N(x; x̂, σ² I) = ‖x − x̂‖² / (2σ²) + (D/2) log(2πσ²), per image in nats.

    Args:
        reconstruction: x̂, (B, …).
        pixel_values: x, of the same shape.
        log_variance: log σ², a scalar. None puts σ² at its optimum for the batch, σ² = ‖x − x̂‖² / D, which leaves
            (D/2) (log σ² + log 2π + 1).
        min_variance: Without `log_variance`: the smallest σ²; where the error is below, σ² is this constant.
    """
    num_values = pixel_values[0].numel()
    error = squared_error(reconstruction, pixel_values)
    if log_variance is None:
        optimum = (error / num_values).clamp_min(torch.finfo(torch.float32).tiny)
        # Without gradient: at its optimum it has none, below the bound it is constant.
        variance = optimum.detach().clamp_min(min_variance)
        return 0.5 * num_values * (variance.log() + LOG_2PI + optimum / variance)
    log_variance = log_variance.float()
    return 0.5 * (error * (-log_variance).exp() + num_values * (log_variance + LOG_2PI))


def mahalanobis(difference: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """½ Σ_i (z_i − z_{q,i})ᵀ Σ⁻¹ (z_i − z_{q,i}), summed over the positions and averaged over the batch.

    Args:
        difference: z − z_q, (B, …, d).
        precision: Diagonal of Σ⁻¹, broadcastable to it.
    """
    return 0.5 * (difference.square() * precision).sum() / difference.shape[0]


def vmf_distance(latents: torch.Tensor, quantized: torch.Tensor, concentration: torch.Tensor) -> torch.Tensor:
    """Σ_i κ_φ (1 − z_{q,i}ᵀ z_i), summed over the positions and averaged over the batch (SQ-VAE, section 4.2).

    Args:
        latents: z, unit vectors (B, h, w, d).
        quantized: z_q, (B, h, w, d).
        concentration: κ_φ, four dimensions of size 1.
    """
    alignment = (latents * quantized).sum(dim=-1)
    return (concentration.squeeze(-1) * (1 - alignment)).sum() / latents.shape[0]


def categorical_kl(entropy: torch.Tensor, num_codes: int) -> torch.Tensor:
    """KL(P̂ ‖ uniform) = N log K − Σ_i H(P̂_i) in nats, averaged over the batch; ≥ 0.

    Args:
        entropy: H(P̂) of every position, (B, h, w).
        num_codes: K.
    """
    return entropy[0].numel() * math.log(num_codes) - entropy.sum() / entropy.shape[0]


def learned_prior_kl(cross_entropy: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """KL(P̂ ‖ prior) = Σ_i (−Σ_k P̂_k log prior_k − H(P̂_i)) in nats, averaged over the batch, both (B, h, w)."""
    return (cross_entropy - entropy).sum() / entropy.shape[0]


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²), averaged over the batch, both (B, …)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / mean.shape[0]
