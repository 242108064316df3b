"""Moving averages against a reference with one loop per vector; restarts; batches in parts."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.quantization.moving_averages import FRESH, MovingAverages, set_accumulation

K, D, M = 6, 3, 40
DECAY, EPSILON = 0.9, 1e-5


def initial_codes(num_codes: int = K) -> torch.Tensor:
    return torch.randn(num_codes, D, generator=torch.Generator().manual_seed(1))


def averages(threshold: float = 0.0, num_codes: int = K, parts: int = 1, warmup: bool = False) -> MovingAverages:
    module = MovingAverages(num_codes, D, DECAY, threshold, warmup)
    module.start(initial_codes(num_codes))
    set_accumulation(module, parts)
    return module


@pytest.mark.parametrize("parts", [0, -1, 1.5, True, "4"])
def test_parts_are_counted(parts):
    with pytest.raises(ValueError, match="parts must be an integer"):
        set_accumulation(averages(), parts)


def nearest(codes: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return torch.cdist(vectors.double(), codes.double()).argmin(-1)


def step(module: MovingAverages, codes: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The code vectors after an optimiser step in one part."""
    module.observe(vectors, nearest(codes, vectors))
    moved = module.end_of_part()
    assert moved is not None
    return moved


class Reference:
    """van den Oord et al., 2017, appendix A, one vector after the other in float64."""

    def __init__(self, weight: torch.Tensor, warmup: bool = False):
        self.steps, self.warmup = 0, warmup
        self.weight = weight.double()
        self.count = torch.ones(len(weight), dtype=torch.float64)
        self.sum = weight.double()

    def step(self, vectors: torch.Tensor) -> None:
        count, total = torch.zeros_like(self.count), torch.zeros_like(self.sum)
        for vector in vectors.double():
            index = int((self.weight - vector).square().sum(-1).argmin())
            count[index] += 1
            total[index] += vector
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps)) if self.warmup else DECAY
        self.steps += 1
        self.count = decay * self.count + (1 - decay) * count
        self.sum = decay * self.sum + (1 - decay) * total
        n = self.count.sum()
        smoothed = (self.count + EPSILON) / (n + len(self.count) * EPSILON) * n
        self.weight = self.sum / smoothed[:, None]


@pytest.mark.parametrize("warmup", [False, True])
def test_several_steps(warmup: bool) -> None:
    module, codes = averages(warmup=warmup), initial_codes()
    reference = Reference(codes, warmup)
    for _ in range(100 if warmup else 6):
        vectors = torch.randn(M, D) + 1
        reference.step(vectors)
        codes = step(module, codes, vectors)
        torch.testing.assert_close(module.count.double(), reference.count, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.total.double(), reference.sum, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(codes.double(), reference.weight, rtol=1e-5, atol=1e-6)


def test_a_steady_stream_draws_codes_to_its_means() -> None:
    module, codes = averages(num_codes=2), torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    module.start(codes)
    vectors = torch.tensor([[2.0, 1, 0], [4.0, 1, 0], [-3.0, 0, 0]])
    for _ in range(150):
        codes = step(module, codes, vectors)
    torch.testing.assert_close(codes, torch.tensor([[3.0, 1, 0], [-3.0, 0, 0]]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_a_batch_in_parts_moves_once_like_the_whole(parts: int, threshold: float) -> None:
    vectors, codes = torch.randn(M, D), initial_codes()
    whole, split = averages(threshold), averages(threshold, parts=parts)
    expected = step(whole, codes, vectors)
    moved = []
    for part in vectors.chunk(parts):
        split.observe(part, nearest(codes, part))
        moved.append(split.end_of_part())
    assert all(item is None for item in moved[:-1])
    torch.testing.assert_close(split.count, whole.count)
    alive = whole.count != FRESH * min(threshold, M / (4 * K))
    torch.testing.assert_close(moved[-1][alive], expected[alive])


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0, 5.0])
def test_dead_codes_become_distinct_vectors_of_the_batch_with_a_count_above_the_threshold(threshold: float) -> None:
    module, codes = averages(threshold), initial_codes()
    module.count.fill_(0.5 * threshold)
    used = codes[:2].repeat_interleave(120, dim=0) + 0.01 * torch.randn(240, D)
    moved = step(module, codes, used)
    assert torch.equal(module.count[2:], torch.full((K - 2,), FRESH * threshold))
    matches = torch.cdist(moved[2:].double(), used.double())
    assert matches.amin(-1).max() < 1e-3
    assert len(set(matches.argmin(-1).tolist())) == K - 2
    # A step later they are still there, although nothing was near them.
    step(module, moved, used)
    assert (module.count[2:] > threshold).all()


def test_a_code_in_use_is_not_restarted_however_low_its_average() -> None:
    module, codes = averages(5.0), initial_codes()
    module.count.fill_(0.1)
    module.total.copy_(0.1 * codes)
    vectors = codes[:1].expand(M, D)
    moved = step(module, codes, vectors)
    torch.testing.assert_close(moved[0], codes[0], rtol=1e-3, atol=1e-3)
    assert module.count[0] < 5.0


def test_no_code_in_use_restarts_at_thresholds_of_audio_codecs() -> None:
    """64 codes with at least 18 hits a batch each: none is dead at 2 or at 5."""
    centres = 100 * torch.eye(64)[:, :D] + torch.randn(64, D) * 30
    for threshold in (2.0, 5.0):
        module = MovingAverages(64, D, 0.99, threshold)
        module.start(centres)
        codes, vectors = centres, centres.repeat_interleave(18, 0)
        for _ in range(5):
            module.observe(vectors, torch.arange(64).repeat_interleave(18))
            codes = module.end_of_part()
        torch.testing.assert_close(codes, centres, rtol=1e-3, atol=1e-2)


def test_codes_with_their_share_of_few_vectors_are_not_restarted() -> None:
    """Eight times as many codes as vectors: most codes have no vector in most batches, and a mean count of 1/8."""
    codes = torch.randn(64, D)
    module = MovingAverages(64, D, 0.99, restart_threshold=0.5)
    module.start(codes)
    moved = codes
    for number in range(400):
        batch = torch.arange(8) + 8 * number % 64
        module.observe(codes[batch], batch)
        moved = module.end_of_part()
    torch.testing.assert_close(moved, codes, rtol=1e-2, atol=1e-2)
    assert module.count.max() < 0.2
    # One that is never found is dead all the same: below 1/32.
    module.count[3], module.total[3] = 0.01, 0.01 * codes[3]
    module.observe(codes[8:16], torch.arange(8, 16))
    assert torch.cdist(module.end_of_part()[3:4], codes[8:16]).min() < 0.1


def test_restarts_draw_from_every_part_alike() -> None:
    module = averages(1.5, num_codes=3000, parts=3)
    parts = [torch.full((size, D), float(value)) for value, size in ((1, 10), (2, 30), (3, 60))]
    module.count.fill_(0.0)
    for part in parts:
        module.observe(part + 1e-3 * torch.randn_like(part), torch.zeros(len(part), dtype=torch.long))
        moved = module.end_of_part()
    origins = moved[1:, 0].round().long().bincount(minlength=4)[1:] / 2999
    torch.testing.assert_close(origins, torch.tensor([0.1, 0.3, 0.6]), rtol=0, atol=0.04)


def test_fewer_vectors_than_codes_are_told_apart_by_noise() -> None:
    module = averages(1.0, num_codes=50)
    module.count.fill_(0.0)
    vectors = torch.randn(10, D)
    module.observe(vectors, torch.zeros(10, dtype=torch.long))
    moved = module.end_of_part()[1:]
    assert len(torch.unique(moved, dim=0)) == 49
    distances = torch.cdist(moved.double(), vectors.double())
    assert distances.amin(-1).max() < 0.1
    assert distances.argmin(-1).bincount(minlength=10).min() >= 4


def test_a_new_start_keeps_the_number_of_vectors_and_restarts_nothing() -> None:
    module, codes = averages(), initial_codes()
    for _ in range(300):
        codes = step(module, codes, torch.randn(M, D))
    new, counts = torch.randn(K, D), torch.arange(1.0, K + 1)
    module.start(new, counts)
    torch.testing.assert_close(module.count, counts / counts.sum() * M, rtol=1e-2, atol=0)
    torch.testing.assert_close(module.total / module.count[:, None], new)
    module.start(new)
    torch.testing.assert_close(module.count, torch.full((K,), M / K), rtol=1e-2, atol=0)
    strict = averages(1.0)
    strict.start(10 * new, torch.ones(K))
    far = (10 * new)[:1].expand(M, D)
    torch.testing.assert_close(step(strict, 10 * new, far), 10 * new, rtol=1e-3, atol=1e-3)


def test_codes_without_vectors_stay_where_they_are() -> None:
    module, codes = averages(num_codes=4), torch.randn(4, D)
    module.start(codes, torch.tensor([10.0, 10, 10, 0]))
    torch.testing.assert_close(step(module, codes, codes[:3]), codes, rtol=1e-3, atol=1e-3)
