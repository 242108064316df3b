"""Nearest-neighbour look-up, and code vectors that are a parameter or follow moving averages."""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

K, D, M = 6, 3, 40


def codebook(follows: bool = True) -> VectorCodebook:
    module = VectorCodebook(K, D, MovingAverages(K, D, 0.9, 0.0) if follows else None, max_elements=10**6)
    module.assign(torch.randn(K, D, generator=torch.Generator().manual_seed(1)))
    return module


def test_nearest_and_its_slices() -> None:
    vectors = torch.randn(M, D)
    expected = torch.cdist(vectors.double(), codebook().weight.double()).argmin(-1)
    assert torch.equal(codebook().nearest(vectors), expected)
    sliced = codebook()
    sliced.max_elements = 3 * K
    assert torch.equal(sliced.nearest(vectors), expected)


def test_code_vectors_are_a_parameter_or_follow_the_averages() -> None:
    learned, follower = codebook(follows=False), codebook()
    assert isinstance(learned.weight, nn.Parameter)
    assert list(follower.parameters()) == []
    vectors = torch.randn(M, D)
    for module in (learned, follower):
        before = module.weight.detach().clone()
        module.observe(vectors, module.nearest(vectors))
        assert torch.equal(module.weight, before)
        module.end_of_part()
        assert torch.equal(module.weight, before) == (module is learned)
