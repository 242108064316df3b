"""The von Mises–Fisher quantiser against scipy and hand-written float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.quantization.von_mises_fisher import VonMisesFisherQuantizer
from hq_tokenizers.randomness import draw_gumbel_

B, H, W, D, K = 2, 3, 2, 3, 6
S = 1.2


def quantizer(s: float = S) -> VonMisesFisherQuantizer:
    module = VonMisesFisherQuantizer(K, D, 10**6)
    torch.nn.init.normal_(module.codebook.weight, std=3.0, generator=torch.Generator().manual_seed(1))
    torch.nn.init.constant_(module.log_concentration, s)
    return module


def latents() -> torch.Tensor:
    return 4 * torch.randn(B, H, W, D, generator=torch.Generator().manual_seed(2))


def test_posterior_is_that_of_the_densities() -> None:
    module = quantizer()
    codes = F.normalize(module.codebook.weight.detach().double(), dim=-1)
    for z, actual in zip(latents().flatten(0, 2), module.log_probabilities(latents()).flatten(0, 2), strict=True):
        direction = F.normalize(z.double(), dim=0).numpy()
        densities = [stats.vonmises_fisher(b.numpy(), 1 + math.exp(S)).logpdf(direction) for b in codes]
        expected = torch.tensor(densities).flatten().log_softmax(0)
        torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_values_and_gradients_are_those_of_the_textbook() -> None:
    module, z = quantizer(), latents().requires_grad_()
    torch.manual_seed(3)
    output = module(z, torch.tensor(0.7))
    torch.manual_seed(3)
    gumbel = draw_gumbel_(torch.empty(B * H * W, K)).double()

    inputs = [z, module.codebook.weight, module.log_concentration]
    z64, weight, s = (tensor.detach().double().requires_grad_() for tensor in inputs)
    unit = z64.flatten(0, 2) / z64.flatten(0, 2).norm(dim=-1, keepdim=True)
    codes = weight / weight.norm(dim=-1, keepdim=True)
    kappa = 1 + s.exp()
    logits = kappa * unit @ codes.T
    p = logits.softmax(-1)
    sample = ((logits + gumbel) / 0.7).softmax(-1) @ codes
    continuous = (kappa * (1 - (sample * unit).sum(-1))).sum() / B
    discrete = H * W * math.log(K) + (p * p.log()).sum() / B

    torch.testing.assert_close(output.quantized.double().flatten(0, 2), sample, rtol=1e-4, atol=1e-5)
    assert float(output.terms["continuous"].detach()) == pytest.approx(float(continuous.detach()), rel=1e-4)
    assert float(output.terms["discrete"].detach()) == pytest.approx(float(discrete.detach()), rel=1e-4)
    loss = output.quantized.sin().sum() + 2 * output.terms["continuous"] + 3 * output.terms["discrete"]
    reference = sample.sin().sum() + 2 * continuous + 3 * discrete
    actual = torch.autograd.grad(loss, inputs)
    expected = torch.autograd.grad(reference, (z64, weight, s))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-3, atol=1e-4)


def test_length_of_latents_and_codes_does_not_matter() -> None:
    module = quantizer()
    before = module(latents(), None)
    with torch.no_grad():
        module.codebook.weight.mul_(torch.rand(K, 1) + 0.5)
    after = module(7 * latents(), None)
    assert torch.equal(before.indices, after.indices)
    for name, value in before.terms.items():
        torch.testing.assert_close(after.terms[name], value, rtol=1e-4, atol=1e-4)


def test_evaluation_takes_the_code_of_largest_cosine() -> None:
    module = quantizer()
    output = module(latents(), None)
    cosine = F.cosine_similarity(latents().double().unsqueeze(3), module.codebook.weight.detach().double(), dim=-1)
    assert torch.equal(output.indices[..., 0], cosine.argmax(-1))
    assert torch.equal(output.quantized, module.embed(output.indices)[0])
    torch.testing.assert_close(output.quantized.norm(dim=-1), torch.ones(B, H, W))


def test_high_concentration_has_no_entropy_and_low_one_the_largest_there_is() -> None:
    assert float(quantizer(15.0)(latents(), None).entropy.detach()) == pytest.approx(0, abs=1e-6)
    # κ never falls below 1, so P̂ is never quite uniform.
    cold = quantizer(-50.0)(latents(), None)
    assert 0 < float(cold.terms["discrete"].detach()) < H * W * 0.5
    torch.testing.assert_close(cold.variance.detach(), torch.ones(1))


def test_autocast_does_not_reach_the_quantiser() -> None:
    module = quantizer()
    outside = module(latents(), None)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(latents(), None)
    assert torch.equal(inside.indices, outside.indices)
    for name, value in outside.terms.items():
        assert torch.equal(inside.terms[name], value)


def test_concentration_and_directions_that_follow_the_batches() -> None:
    averages = MovingAverages(K, D, decay=0.8, restart_threshold=0.0)
    module = VonMisesFisherQuantizer(K, D, 10**6, averages, ResidualVariance(1, 1.0), straight_through=True)
    codes = torch.randn(K, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module.codebook.weight.copy_(codes)
    averages.start(codes)
    z = latents().requires_grad_()
    output = module(z, torch.tensor(0.7))
    torch.testing.assert_close(output.variance, torch.full((1,), D / (D - 1)))

    unit, directions = (F.normalize(x.detach().double().reshape(-1, D), dim=-1) for x in (z, codes))
    members = F.one_hot((unit @ directions.T).argmax(-1), K).double()
    sums = 0.8 * codes.double() + 0.2 * members.T @ unit
    moved = F.normalize(module.codebook.weight.double(), dim=-1)
    torch.testing.assert_close(moved, F.normalize(sums, dim=-1), rtol=1e-4, atol=1e-4)
    left = (unit - output.quantized.detach().double().flatten(0, 2)).square().sum(-1).mean() / (D - 1)
    torch.testing.assert_close(
        module.concentration().double().flatten(), (0.1 * D / (D - 1) + 0.9 * left).reciprocal()[None]
    )
    # A sphere's direction, then the identity: the gradient of the decoder through the normalisation only.
    (gradient,) = torch.autograd.grad(output.quantized.sin().sum(), z)
    other = z.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((F.normalize(other, dim=-1) * output.quantized.detach().cos()).sum(), other)
    torch.testing.assert_close(gradient, expected)
