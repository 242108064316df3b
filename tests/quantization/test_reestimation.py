"""Reservoir sampling against the sequential algorithm, k-means on planted clusters, and the schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.reestimation import CodebookReestimation, Reservoir, kmeans
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

ON, OFF = torch.tensor(True), torch.tensor(False)


def numbered(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop, dtype=torch.float32).unsqueeze(1)


def algorithm_r(size: int, stream: list[float], draws: list[float]) -> list[float]:
    """Vitter's Algorithm R, one item after the other; draws are uniform on [0, 1)."""
    kept: list[float] = []
    for number, (item, draw) in enumerate(zip(stream, draws, strict=True)):
        if number < size:
            kept.append(item)
            continue
        slot = int(draw * (number + 1))
        if slot < size:
            kept[slot] = item
    return kept


class TestReservoir:
    @pytest.mark.parametrize("batches", [[30], [1] * 30, [3, 20, 7], [10, 20], [12, 1, 17]])
    def test_is_algorithm_r(self, batches: list[int]) -> None:
        for seed in range(20):
            reservoir = Reservoir(10, 1)
            torch.manual_seed(seed)
            first = 0
            for length in batches:
                reservoir.add(numbered(first, first + length), ON)
                first += length
            torch.manual_seed(seed)
            draws = [draw for length in batches for draw in torch.rand(length, dtype=torch.float64).tolist()]
            assert reservoir.contents().flatten().tolist() == algorithm_r(10, list(map(float, range(first))), draws)

    def test_every_vector_is_kept_equally_often(self) -> None:
        kept = np.zeros(40)
        for _ in range(1500):
            reservoir = Reservoir(8, 1)
            for first in range(0, 40, 10):
                reservoir.add(numbered(first, first + 10), ON)
            kept[reservoir.contents().flatten().long().numpy()] += 1
        assert kept.sum() == 1500 * 8
        # Each count is binomial with p = 1/5; those of one draw add up to 8, which only lowers the statistic.
        assert ((kept - 300) ** 2 / (300 * 0.8)).sum() < stats.chi2.ppf(0.999, 39)

    def test_contents_while_filling(self) -> None:
        reservoir = Reservoir(10, 1)
        reservoir.add(numbered(0, 4), ON)
        assert reservoir.contents().flatten().tolist() == [0, 1, 2, 3]
        reservoir.add(numbered(4, 6), OFF)
        assert reservoir.contents().flatten().tolist() == [0, 1, 2, 3]
        reservoir.clear()
        assert len(reservoir.contents()) == 0


class TestKMeans:
    def test_recovers_planted_clusters(self) -> None:
        centres = 10 * torch.randn(12, 5)
        data = (centres.repeat_interleave(40, dim=0) + 0.05 * torch.randn(480, 5))[torch.randperm(480)]
        found, counts = kmeans(data, 12, seed=0)
        distance = torch.cdist(centres.double(), found.double())
        assert distance.argmin(1).unique().numel() == 12
        assert distance.amin(1).max() < 0.1
        assert torch.equal(counts, torch.full((12,), 40.0))

    def test_seed(self) -> None:
        data = torch.randn(200, 3)
        assert torch.equal(kmeans(data, 20, seed=1)[0], kmeans(data, 20, seed=1)[0])
        assert not torch.equal(kmeans(data, 20, seed=1)[0], kmeans(data, 20, seed=2)[0])


def codebooks(number: int, num_codes: int, update: str = "gradient") -> list[VectorCodebook]:
    books = [
        VectorCodebook(num_codes, 2, MovingAverages(num_codes, 2, 0.99, 0.0) if update == "ema" else None, 10**6)
        for _ in range(number)
    ]
    for book in books:
        book.assign(torch.randn(num_codes, 2))
    return books


class TestSchedule:
    @pytest.mark.parametrize(("warmup", "epochs"), [(2, 2), (1, 1), (0, 3), (2, 1)])
    def test_warm_up_then_replacement_then_rest(self, warmup: int, epochs: int) -> None:
        schedule, books = CodebookReestimation(warmup, epochs, 50, 2), codebooks(1, 4)
        for epoch in range(warmup + epochs + 3):
            before = books[0].weight.clone()
            collected = len(schedule.reservoir.contents())
            replaced = schedule.start_epoch(epoch, books, len(books), seed=0)
            due = warmup <= epoch < warmup + epochs and collected > 0
            assert replaced == due
            assert torch.equal(before, books[0].weight) == (not due)
            assert bool(schedule.warming_up) == (epoch < warmup)
            if due:
                assert len(schedule.reservoir.contents()) == 0
            schedule.collect(torch.randn(3, 2, 2, 2))
            still_needed = epoch < warmup + epochs - 1
            assert (len(schedule.reservoir.contents()) > 0) == still_needed

    @pytest.mark.parametrize("update", ["gradient", "ema"])
    def test_codebook_becomes_the_clusters(self, update: str) -> None:
        centres = torch.tensor([[5.0, 5.0], [-5.0, 5.0], [5.0, -5.0], [-5.0, -5.0]])
        schedule, books = CodebookReestimation(1, 1, 400, 2), codebooks(1, 4, update)
        schedule.collect((centres.repeat_interleave(100, 0) + 0.01 * torch.randn(400, 2)).reshape(4, 10, 10, 2))
        assert schedule.start_epoch(1, books, len(books), seed=0)
        assert torch.cdist(centres.double(), books[0].weight.detach().double()).amin(1).max() < 0.01
        if update == "ema":
            torch.testing.assert_close(books[0].averages.total, books[0].weight)
            torch.testing.assert_close(books[0].averages.count, torch.ones(4))

    def test_second_level_becomes_the_clusters_of_what_the_first_leaves(self) -> None:
        coarse, fine = torch.tensor([[50.0, 0.0], [-50.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, -3.0]])
        schedule, books = CodebookReestimation(1, 1, 400, 2), codebooks(2, 2)
        schedule.collect((coarse[:, None] + fine[None]).reshape(4, 2).repeat(100, 1).reshape(4, 10, 10, 2))
        schedule.start_epoch(1, books, len(books), seed=0)
        for expected, book in zip((coarse, fine), books, strict=True):
            assert torch.cdist(expected.double(), book.weight.detach().double()).amin(1).max() < 1e-4

    def test_a_shared_codebook_serves_every_level(self) -> None:
        """Estimated on the first level's vectors alone, it has nothing for the small residuals of the others."""
        vectors = torch.randn(2000, 2)

        def error(book: VectorCodebook) -> float:
            residual = vectors
            for _ in range(3):
                residual = residual - book.codes[book.nearest(residual)]
            return residual.square().mean().item()

        first_only, schedule, books = codebooks(1, 24)[0], CodebookReestimation(1, 1, 2000, 2), codebooks(1, 24)
        first_only.assign(kmeans(vectors, 24, seed=0)[0])
        schedule.collect(vectors.reshape(2, 20, 50, 2))
        assert schedule.start_epoch(1, books, 3, seed=0)
        assert error(books[0]) < 0.5 * error(first_only)

    def test_too_few_vectors_replace_nothing(self) -> None:
        schedule, books = CodebookReestimation(1, 1, 50, 2), codebooks(1, 16)
        before = books[0].weight.clone()
        schedule.collect(torch.randn(1, 3, 5, 2))
        assert not schedule.start_epoch(1, books, len(books), seed=0)
        assert torch.equal(books[0].weight, before)

    def test_state_is_saved(self) -> None:
        schedule = CodebookReestimation(2, 2, 50, 2)
        schedule.start_epoch(1, codebooks(1, 4), 1, seed=0)
        schedule.collect(torch.randn(3, 2, 2, 2))
        again = CodebookReestimation(2, 2, 50, 2)
        again.load_state_dict(schedule.state_dict())
        assert int(again.epoch) == 1
        assert bool(again.warming_up)
        assert torch.equal(again.reservoir.contents(), schedule.reservoir.contents())
        books, more_books = codebooks(1, 4), codebooks(1, 4)
        assert schedule.start_epoch(2, books, 1, seed=3)
        assert again.start_epoch(2, more_books, 1, seed=3)
        assert torch.equal(books[0].weight, more_books[0].weight)
