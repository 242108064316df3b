"""Nearest-neighbour look-up and moving averages against a reference with one loop per vector."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.quantization.vector_codebook import VectorCodebook

K, D, M = 6, 3, 40
DECAY, EPSILON = 0.9, 1e-5


def codebook(update: str = "ema", restart_threshold: float = 0.0, num_codes: int = K) -> VectorCodebook:
    module = VectorCodebook(
        num_codes, D, update=update, decay=DECAY, restart_threshold=restart_threshold, max_elements=10**6
    )
    module.assign(torch.randn(num_codes, D, generator=torch.Generator().manual_seed(1)))
    return module


class MovingAverages:
    """van den Oord et al., 2017, appendix A, one vector after the other in float64."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight.double()
        self.count = torch.ones(len(weight), dtype=torch.float64)
        self.sum = weight.double()

    def step(self, vectors: torch.Tensor) -> list[int]:
        count, total = torch.zeros_like(self.count), torch.zeros_like(self.sum)
        indices = []
        for vector in vectors.double():
            index = int((self.weight - vector).square().sum(-1).argmin())
            indices.append(index)
            count[index] += 1
            total[index] += vector
        self.count = DECAY * self.count + (1 - DECAY) * count
        self.sum = DECAY * self.sum + (1 - DECAY) * total
        n = self.count.sum()
        smoothed = (self.count + EPSILON) / (n + len(self.count) * EPSILON) * n
        self.weight = self.sum / smoothed[:, None]
        return indices


def test_nearest_and_its_slices() -> None:
    vectors = torch.randn(M, D)
    expected = torch.cdist(vectors.double(), codebook().weight.double()).argmin(-1)
    assert torch.equal(codebook().nearest(vectors), expected)
    sliced = codebook()
    sliced.max_elements = 3 * K
    assert torch.equal(sliced.nearest(vectors), expected)


def test_moving_averages_over_several_steps() -> None:
    module = codebook()
    reference = MovingAverages(module.weight)
    for _ in range(6):
        vectors = torch.randn(M, D) + 1
        indices = module.nearest(vectors)
        assert indices.tolist() == reference.step(vectors)
        module.move_averages(vectors, indices)
        torch.testing.assert_close(module.ema_count.double(), reference.count, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.ema_sum.double(), reference.sum, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.weight.double(), reference.weight, rtol=1e-5, atol=1e-6)


def test_a_steady_stream_draws_codes_to_its_means() -> None:
    module = codebook(num_codes=2)
    module.assign(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    vectors = torch.tensor([[2.0, 1, 0], [4.0, 1, 0], [-3.0, 0, 0]])
    for _ in range(150):
        module.move_averages(vectors, module.nearest(vectors))
    torch.testing.assert_close(module.weight, torch.tensor([[3.0, 1, 0], [-3.0, 0, 0]]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threshold", [0.95, 0.0])
def test_restart_resets_count_and_sum_of_unused_codes_only(threshold: float) -> None:
    module = codebook(restart_threshold=threshold)
    module.ema_count.fill_(1.0)
    module.ema_sum.copy_(module.weight)
    vectors = module.weight[:2].repeat_interleave(10, dim=0) + 0.01 * torch.randn(20, D)
    without = codebook()
    module.move_averages(vectors, module.nearest(vectors))
    without.move_averages(vectors, without.nearest(vectors))
    used, unused = slice(0, 2), slice(2, K)
    assert torch.equal(module.ema_count[used], without.ema_count[used])
    assert torch.equal(module.ema_sum[used], without.ema_sum[used])
    if threshold == 0:
        torch.testing.assert_close(module.ema_count[unused], torch.full((K - 2,), DECAY))
        assert torch.equal(module.weight, without.weight)
        return
    assert torch.equal(module.ema_count[unused], torch.ones(K - 2))
    for row, weight in zip(module.ema_sum[unused], module.weight[unused], strict=True):
        assert (vectors == row).all(-1).any(), "a restarted code is a vector of the batch"
        torch.testing.assert_close(weight, row, rtol=1e-3, atol=1e-4)


def test_restart_draws_from_the_whole_batch() -> None:
    module = codebook(restart_threshold=1.5, num_codes=500)
    module.ema_count.fill_(1.0)
    vectors = torch.randn(10, D)
    module.move_averages(vectors, module.nearest(vectors))
    chosen = torch.cdist(module.ema_sum.double(), vectors.double()).argmin(-1)
    assert torch.bincount(chosen, minlength=10).min() > 20


def test_assigned_codes_take_over_the_averages() -> None:
    module = codebook()
    for _ in range(300):
        vectors = torch.randn(M, D)
        module.move_averages(vectors, module.nearest(vectors))
    new, counts = torch.randn(K, D), torch.arange(1.0, K + 1)
    module.assign(new, counts)
    assert torch.equal(module.weight, new)
    # In sum as many per batch as before, in the given shares; and the averages stand for the new codes.
    torch.testing.assert_close(module.ema_count, counts / counts.sum() * M, rtol=1e-2, atol=0)
    torch.testing.assert_close(module.ema_sum / module.ema_count[:, None], new)
    module.assign(new)
    torch.testing.assert_close(module.ema_count, torch.full((K,), M / K), rtol=1e-2, atol=0)


def test_assigned_codes_are_not_restarted_by_the_first_batch_that_misses_them() -> None:
    module = codebook(restart_threshold=1.0)
    module.assign(10 * torch.randn(K, D), torch.ones(K))
    before = module.weight.clone()
    vectors = before[:1].expand(M, D)
    module.move_averages(vectors, module.nearest(vectors))
    torch.testing.assert_close(module.weight, before, rtol=1e-3, atol=1e-3)


def test_assigned_codes_without_vectors_stay_where_they_are() -> None:
    module = codebook(num_codes=4)
    codes = torch.randn(4, D)
    module.assign(codes, torch.tensor([10.0, 10, 10, 0]))
    module.move_averages(codes[:3], module.nearest(codes[:3]))
    torch.testing.assert_close(module.weight, codes, rtol=1e-3, atol=1e-3)
