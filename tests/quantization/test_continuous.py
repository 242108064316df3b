"""The VAE's bottleneck against torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from hq_tokenizers.quantization.continuous import GaussianBottleneck
from hq_tokenizers.randomness import fixed_normal

MEAN = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(1))
LOG_VARIANCE = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(2))


def test_kl_and_its_gradients() -> None:
    mean, log_variance = MEAN.clone().requires_grad_(), LOG_VARIANCE.clone().requires_grad_()
    mean64, log_variance64 = MEAN.double().requires_grad_(), LOG_VARIANCE.double().requires_grad_()
    actual = GaussianBottleneck()(mean, None, log_variance).terms["kl"]
    posterior = Normal(mean64, (log_variance64 / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum() / 2
    assert float(actual.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    pairs = zip(
        torch.autograd.grad(actual, (mean, log_variance)),
        torch.autograd.grad(expected, (mean64, log_variance64)),
        strict=True,
    )
    for a, e in pairs:
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-6)


def test_samples_have_the_posterior_mean_and_variance() -> None:
    number = 20_000
    many = [tensor[:1].expand(number, -1, -1, -1) for tensor in (MEAN, LOG_VARIANCE)]
    sample = GaussianBottleneck()(many[0], torch.tensor(1.0), many[1]).quantized.double()
    deviation = (LOG_VARIANCE[0].double() / 2).exp()
    assert ((sample.mean(0) - MEAN[0]).abs() < 5 * deviation / number**0.5).all()
    torch.testing.assert_close(sample.std(0), deviation, rtol=0.04, atol=0)


def test_gradient_passes_the_sample() -> None:
    mean, log_variance = MEAN.clone().requires_grad_(), LOG_VARIANCE.clone().requires_grad_()
    sample = GaussianBottleneck()(mean, torch.tensor(1.0), log_variance).quantized
    by_mean, by_log_variance = torch.autograd.grad(sample.sum(), (mean, log_variance))
    torch.testing.assert_close(by_mean, torch.ones_like(by_mean))
    # ∂(μ + ε σ)/∂ log σ² = ε σ / 2
    torch.testing.assert_close(by_log_variance, (sample - mean).detach() / 2, rtol=1e-4, atol=1e-5)


def test_evaluation_has_the_same_noise_for_every_image_and_no_codes() -> None:
    output = GaussianBottleneck()(MEAN, None, LOG_VARIANCE)
    noise = (output.quantized - MEAN) / (LOG_VARIANCE / 2).exp()
    torch.testing.assert_close(noise, fixed_normal(MEAN.shape[1:]).expand_as(MEAN), rtol=1e-4, atol=1e-5)
    assert torch.equal(GaussianBottleneck()(MEAN[:1], None, LOG_VARIANCE[:1]).quantized, output.quantized[:1])
    assert output.indices is None
    assert output.entropy.numel() == output.variance.numel() == 0
