"""Sampling, bounds on memory and the divergences of a stochastic codebook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats

from hq_tokenizers.quantization import stochastic_codebook
from hq_tokenizers.quantization.functional import gaussian_factors
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook, UnitCodebook
from hq_tokenizers.randomness import sample_exponential

D, K = 3, 5


def codebook(max_elements: int = 10**6) -> StochasticCodebook:
    module = StochasticCodebook(K, D, gaussian_factors, max_elements)
    torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(3))
    return module


def generators(number: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + index) for index in range(number)]


PRECISION = torch.tensor(0.7).reshape(1, 1, 1, 1)


def test_sampled_codes_follow_the_posterior() -> None:
    latents = torch.randn(1, 1, 1, D).expand(300, 100, 1, D)
    module = codebook()
    _, indices, _ = module(latents, PRECISION, None, generators(300))
    probabilities = module.log_probabilities(latents[:1, :1], PRECISION).detach().exp().double().flatten()
    counts = torch.bincount(indices.flatten(), minlength=K)
    assert stats.chisquare(counts.numpy(), (30_000 * probabilities / probabilities.sum()).numpy()).pvalue > 1e-3


def test_sampled_codes_do_not_depend_on_the_batch() -> None:
    latents, module = torch.randn(4, 2, 3, D), codebook()
    together = module(latents, PRECISION, None, generators(4))[1]
    apart = [module(latents[i : i + 1], PRECISION, None, generators(1, i))[1] for i in range(4)]
    assert torch.equal(together, torch.cat(apart))


def test_sampled_vectors_are_those_of_the_sampled_codes() -> None:
    module = codebook()
    quantized, indices, _ = module(torch.randn(4, 2, 3, D), PRECISION, None, generators(4))
    assert torch.equal(quantized, module.weight[indices])


@pytest.mark.parametrize("shared_precision", [True, False])
def test_slices_do_not_change_samples_and_bound_their_noise(
    shared_precision: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(5, 2, 2, D)
    precision = PRECISION if shared_precision else torch.rand(5, 2, 2, 1) + 0.5
    whole = codebook()(latents, precision, None, generators(5))
    drawn = []

    def record(shape: tuple[int, ...], *others: Any) -> torch.Tensor:
        noise = sample_exponential(shape, *others)
        drawn.append(noise.numel())
        return noise

    monkeypatch.setattr(stochastic_codebook, "sample_exponential", record)
    sliced = codebook(max_elements=2 * 4 * K + 1)(latents, precision, None, generators(5))
    assert drawn == [2 * 4 * K, 2 * 4 * K, 4 * K]
    for one, other in zip(whole, sliced, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("max_elements", [10**6, 4 * K])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (4, 2, 3, 1), (4, 2, 3, D)])
def test_cross_entropy(shape: tuple[int, ...], max_elements: int) -> None:
    module = codebook(max_elements)
    latents, prior = torch.randn(4, 2, 3, D), torch.randn(4, 2, 3, D)
    precision, prior_precision = torch.rand(shape) + 0.3, torch.rand(shape) + 0.3
    actual = module.cross_entropy(latents, precision, prior, prior_precision)
    distance, prior_distance = (
        ((z.double().unsqueeze(3) - module.weight.double()).square() * w.double().unsqueeze(3)).sum(dim=-1)
        for z, w in ((latents, precision.expand(4, 2, 3, -1)), (prior, prior_precision.expand(4, 2, 3, -1)))
    )
    p, log_q = torch.softmax(-distance / 2, dim=-1), torch.log_softmax(-prior_distance / 2, dim=-1)
    torch.testing.assert_close(actual.double(), -(p * log_q).sum(dim=-1), rtol=1e-4, atol=1e-4)


def test_gradients_of_the_cross_entropy_are_those_of_the_codes_of_its_forward_pass() -> None:
    latents, prior = torch.randn(2, 4, 4, D), torch.randn(2, 4, 4, D)
    gradients = []
    for max_elements in (10**6, 3 * K):
        averages = MovingAverages(K, D, decay=0.99, restart_threshold=0.0)
        module = StochasticCodebook(K, D, gaussian_factors, max_elements, averages)
        torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(3))
        leaf = latents.clone().requires_grad_()
        entropy = module.cross_entropy(leaf, PRECISION, prior, PRECISION).sum()
        module.weight.mul_(10)  # As the moving averages do before the backward pass, only further.
        entropy.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_unit_codebook_has_unit_vectors() -> None:
    module = UnitCodebook(K, D, gaussian_factors, 10**6)
    torch.nn.init.normal_(module.weight, std=5)
    torch.testing.assert_close(module.codes.norm(dim=-1), torch.ones(K))
    cosine = torch.nn.functional.cosine_similarity(module.codes, module.weight)
    torch.testing.assert_close(cosine, torch.ones(K))
