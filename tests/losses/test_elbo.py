"""Every term of the bound against torch.distributions and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch.distributions import Categorical, Normal, kl_divergence

from hq_tokenizers.losses.elbo import (
    categorical_kl,
    gaussian_kl,
    gaussian_nll,
    learned_prior_kl,
    mahalanobis,
    squared_error,
    vmf_distance,
)

X = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
RECONSTRUCTION = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(2))


def reference(log_variance: float) -> float:
    """−log N(x; x̂, σ² I) of scipy, averaged over the three images."""
    densities = stats.norm.logpdf(X.double().numpy(), RECONSTRUCTION.double().numpy(), np.exp(log_variance / 2))
    return float(-densities.sum() / 3)


def test_squared_error_sums_pixels_and_averages_images() -> None:
    images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    # Errors 4 · 0.5² = 1 and 4 · 1.5² = 9.
    assert float(squared_error(torch.tensor(-0.5).expand(2, 1, 2, 2), images)) == pytest.approx(5.0)


@pytest.mark.parametrize("log_variance", [-6.0, -2.3, 0.0, 1.0])
def test_given_variance(log_variance: float) -> None:
    actual = gaussian_nll(RECONSTRUCTION, X, torch.tensor(log_variance))
    assert float(actual) == pytest.approx(reference(log_variance), rel=1e-5)


def test_batch_optimum_is_the_smallest_of_all_variances() -> None:
    best = optimize.minimize_scalar(reference, bounds=(-10, 5), method="bounded", options={"xatol": 1e-8})
    assert float(gaussian_nll(RECONSTRUCTION, X)) == pytest.approx(best.fun, rel=1e-5)


def test_batch_optimum_has_the_gradient_of_the_log_of_the_batch_mean() -> None:
    reconstruction = RECONSTRUCTION.clone().requires_grad_()
    (actual,) = torch.autograd.grad(gaussian_nll(reconstruction, X), reconstruction)
    double = RECONSTRUCTION.double().requires_grad_()
    released = 40 / 2 * ((double - X.double()).square().sum(dim=(1, 2, 3)).mean()).log()
    (expected,) = torch.autograd.grad(released, double)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.99, 1.01, 30.0])
def test_the_smallest_of_all_variances_above_a_bound(share: float) -> None:
    bound = share * float(squared_error(RECONSTRUCTION, X)) / X[0].numel()
    lowest = math.log(bound)
    best = optimize.minimize_scalar(reference, bounds=(lowest, lowest + 15), method="bounded", options={"xatol": 1e-8})
    assert float(gaussian_nll(RECONSTRUCTION, X, min_variance=bound)) == pytest.approx(best.fun, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 30.0])
def test_below_the_bound_the_gradient_is_that_of_a_constant_variance(share: float) -> None:
    error = float(squared_error(RECONSTRUCTION, X)) / X[0].numel()
    reconstruction = RECONSTRUCTION.clone().requires_grad_()
    (actual,) = torch.autograd.grad(gaussian_nll(reconstruction, X, min_variance=share * error), reconstruction)
    constant = torch.tensor(max(share, 1) * error).log()
    (expected,) = torch.autograd.grad(gaussian_nll(reconstruction, X, constant), reconstruction)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_the_gradient_where_the_error_is_the_bound() -> None:
    reconstruction = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    (actual,) = torch.autograd.grad(
        gaussian_nll(reconstruction, torch.zeros(1, 1, 2, 2), min_variance=0.25), reconstruction
    )
    assert actual.flatten().tolist() == pytest.approx([2.0] * 4)


def test_learned_variance_gradient() -> None:
    log_variance = torch.tensor(-1.3, requires_grad=True)
    (actual,) = torch.autograd.grad(gaussian_nll(RECONSTRUCTION, X, log_variance), log_variance)
    step = 1e-4
    expected = (reference(-1.3 + step) - reference(-1.3 - step)) / (2 * step)
    assert float(actual) == pytest.approx(expected, rel=1e-3)


def test_perfect_reconstruction_is_finite() -> None:
    reconstruction = X.clone().requires_grad_()
    loss = gaussian_nll(reconstruction, X)
    (gradient,) = torch.autograd.grad(loss, reconstruction)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_values_outside_the_range_are_not_clamped() -> None:
    outside = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(gaussian_nll(outside, torch.ones(1, 1, 1, 1), torch.tensor(0.0)), outside)
    assert float(gradient) == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computed_in_float32(dtype: torch.dtype) -> None:
    rounded, log_variance = RECONSTRUCTION.to(dtype), torch.tensor(-1.3).to(dtype)
    for arguments in ((), (log_variance,)):
        loss = gaussian_nll(rounded, X, *arguments)
        assert loss.dtype == torch.float32
        expected = gaussian_nll(rounded.float(), X, *(argument.float() for argument in arguments))
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mahalanobis() -> None:
    difference, variance = normal(6, 4), normal(6, 4, seed=1).exp()
    total = sum(float(d @ torch.diag(1 / v) @ d) / 2 for d, v in zip(difference, variance, strict=True))
    assert float(mahalanobis(difference, 1 / variance)) == pytest.approx(total / 6, rel=1e-12)


def test_vmf_distance_is_the_log_ratio_of_the_densities() -> None:
    """κ (1 − z_qᵀ z) is how much less likely z is at z_q than at the mode."""
    z, z_q = (torch.nn.functional.normalize(normal(2, 3, 1, 5, seed=seed), dim=-1) for seed in (1, 2))
    expected = 0.0
    for latent, code in zip(z.reshape(-1, 5).numpy(), z_q.reshape(-1, 5).numpy(), strict=True):
        density = stats.vonmises_fisher(code, 7.5)
        expected += float(np.squeeze(density.logpdf(code) - density.logpdf(latent))) / 2
    actual = vmf_distance(z, z_q, torch.full((1, 1, 1, 1), 7.5, dtype=torch.float64))
    assert float(actual) == pytest.approx(expected, rel=1e-9)


def test_categorical_kl_is_that_of_torch() -> None:
    p = Categorical(logits=normal(3, 2, 2, 7))
    expected = kl_divergence(p, Categorical(logits=torch.zeros(7, dtype=torch.float64))).sum() / 3
    assert float(categorical_kl(p.entropy(), 7)) == pytest.approx(float(expected), rel=1e-12)


def test_categorical_kl_of_certain_codes_is_their_bits() -> None:
    assert float(categorical_kl(torch.zeros(4, 5, 6), 8)) == pytest.approx(30 * 3 * math.log(2), rel=1e-6)


def test_kl_to_a_learned_prior_is_that_of_torch() -> None:
    p, prior = Categorical(logits=normal(3, 2, 2, 7)), Categorical(logits=normal(3, 2, 2, 7, seed=1))
    cross_entropy = -(p.probs * prior.logits).sum(-1)
    expected = kl_divergence(p, prior).sum() / 3
    assert float(learned_prior_kl(cross_entropy, p.entropy())) == pytest.approx(float(expected), rel=1e-12)


def test_kl_of_continuous_latents_is_that_of_torch() -> None:
    mean, log_variance = normal(3, 4, 2), normal(3, 4, 2, seed=1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum() / 3
    assert float(gaussian_kl(mean, log_variance)) == pytest.approx(float(expected), rel=1e-12)
