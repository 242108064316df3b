from __future__ import annotations

import pytest
import torch

from hq_tokenizers.quantization.functional import gaussian_factors
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.seeded_relaxation import quantize_grid
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook
from hq_tokenizers.randomness import sample_generators

PRECISIONS = {"I": (1, 1, 1, 1), "II": (6, 1, 1, 1), "IV": (6, 2, 3, 4)}


def _codebook(max_elements=2**20):
    torch.manual_seed(0)
    codebook = StochasticCodebook(5, 4, gaussian_factors, max_elements, MovingAverages(5, 4, 0.9, 0.5))
    codebook.weight.normal_()
    codebook.averages.start(codebook.weight)
    return codebook


@pytest.mark.parametrize("variance_type", PRECISIONS)
def test_relaxed_samples_in_float64(variance_type):
    codebook, latents = _codebook(), torch.randn(6, 2, 3, 4)
    precision, temperature = torch.rand(PRECISIONS[variance_type]) + 0.5, torch.tensor(0.6)
    relaxed, indices, entropy = quantize_grid(codebook, latents, precision, temperature, sample_generators(3, 6))
    z, w, b = latents.double(), precision.double(), codebook.codes.double()
    logits = -0.5 * ((z.unsqueeze(-2) - b) ** 2 * w.unsqueeze(-2)).sum(-1)
    p = logits.softmax(-1)
    uniform = torch.stack([torch.rand(6, 5, generator=g) for g in sample_generators(3, 6)]).reshape(6, 2, 3, 5)
    expected = ((p.log() - (-uniform.double().log()).log()) / 0.6).softmax(-1) @ b
    torch.testing.assert_close(relaxed.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(indices, p.argmax(-1))
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance_type", PRECISIONS)
def test_the_memory_bound_and_the_batch_change_nothing(variance_type):
    latents, precision = torch.randn(6, 2, 3, 4), torch.rand(PRECISIONS[variance_type]) + 0.5
    arguments = latents, precision, torch.tensor(0.6)
    whole = quantize_grid(_codebook(), *arguments, sample_generators(3, 6))
    for max_elements in (1, 70):
        parts = quantize_grid(_codebook(max_elements), *arguments, sample_generators(3, 6))
        for first, second in zip(whole, parts, strict=True):
            torch.testing.assert_close(first, second)


def test_nothing_is_learned_and_no_global_noise_is_drawn():
    codebook, latents = _codebook(), torch.randn(6, 2, 3, 4)
    state = {name: value.clone() for name, value in codebook.state_dict().items()}
    before = torch.get_rng_state()
    quantize_grid(codebook, latents, torch.ones(1, 1, 1, 1), torch.tensor(1.0), sample_generators(3, 6))
    assert torch.equal(torch.get_rng_state(), before)
    codebook.end_of_part()
    assert all(torch.equal(value, state[name]) for name, value in codebook.state_dict().items())


def test_at_a_temperature_near_zero_it_is_the_gumbel_max_sample():
    codebook, latents = _codebook(), torch.randn(400, 1, 1, 4)[:1].expand(400, 1, 1, 4)
    arguments = codebook, latents, torch.ones(1, 1, 1, 1)
    relaxed, _, _ = quantize_grid(*arguments, torch.tensor(1e-4), sample_generators(0, 400))
    found = torch.cdist(relaxed.flatten(0, 2), codebook.codes).argmin(-1)
    frequency = torch.bincount(found, minlength=5) / 400
    probabilities = codebook.log_probabilities(latents[:1], arguments[2]).exp().flatten()
    assert (frequency - probabilities).abs().max() < 4 * 0.5 / 400**0.5
