"""What both kinds of codebooks share: the nearest code, vectors that follow or learn, and their replacement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hq_tokenizers.quantization.codebook import Codebook, codebook_tensors
from hq_tokenizers.quantization.functional import gaussian_factors
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.stochastic_codebook import StochasticCodebook
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

K, D, M = 6, 3, 40
KINDS = ["vector", "stochastic"]


def codebook(kind: str, follows: bool = True) -> Codebook:
    averages = MovingAverages(K, D, 0.9, 0.0) if follows else None
    module = {
        "vector": lambda: VectorCodebook(K, D, averages, max_elements=10**6),
        "stochastic": lambda: StochasticCodebook(K, D, gaussian_factors, 10**6, averages),
    }[kind]()
    module.assign(torch.randn(K, D, generator=torch.Generator().manual_seed(1)))
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_and_its_slices(kind: str) -> None:
    vectors = torch.randn(M, D)
    expected = torch.cdist(vectors.double(), codebook(kind).weight.double()).argmin(-1)
    assert torch.equal(codebook(kind).nearest(vectors), expected)
    sliced = codebook(kind)
    sliced.max_elements = 3 * K
    assert torch.equal(sliced.nearest(vectors), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_code_vectors_are_a_parameter_or_follow(kind: str) -> None:
    learned, follower = codebook(kind, follows=False), codebook(kind)
    assert isinstance(learned.weight, nn.Parameter)
    assert list(follower.parameters()) == []
    assert codebook_tensors(nn.Sequential(learned, nn.Linear(2, 2))) == [learned.weight]
    assert {id(tensor) for tensor in codebook_tensors(follower)} == {id(tensor) for tensor in follower.buffers()}


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_vectors_are_what_the_averages_give(kind: str) -> None:
    """A step in which every code is given itself moves nothing, however many vectors each stands for."""
    module = codebook(kind)
    codes = torch.randn(K, D)
    module.assign(codes, torch.arange(K, dtype=torch.float32) + 1)
    assert module.averages is not None
    assert module.averages.count.sum() == pytest.approx(K)
    module.averages.observe(codes, torch.arange(K))
    module.end_of_part()
    torch.testing.assert_close(module.weight, codes, rtol=1e-4, atol=1e-5)
