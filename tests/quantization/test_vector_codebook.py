"""Code vectors that follow moving averages of what they are shown, and not before a step is complete."""

from __future__ import annotations

import torch

from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

K, D, M = 6, 3, 40


def test_code_vectors_move_when_the_averages_are_complete() -> None:
    learned = VectorCodebook(K, D, None, max_elements=10**6)
    follower = VectorCodebook(K, D, MovingAverages(K, D, 0.9, 0.0), max_elements=10**6)
    vectors = torch.randn(M, D)
    for module in (learned, follower):
        module.assign(torch.randn(K, D, generator=torch.Generator().manual_seed(1)))
        before = module.weight.detach().clone()
        module.observe(vectors, module.nearest(vectors))
        assert torch.equal(module.weight, before)
        module.end_of_part()
        assert torch.equal(module.weight, before) == (module is learned)
