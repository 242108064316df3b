"""Reservoir sampling against the sequential algorithm, k-means on planted clusters, the schedule, and who keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from hq_tokenizers.quantization.gaussian import GaussianQuantizer
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.reestimation import (
    CodebookReestimation,
    ReestimatedQuantizer,
    Reservoir,
    forget_past,
    kmeans,
)
from hq_tokenizers.quantization.residual_gaussian import ResidualGaussianQuantizer
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.quantization.residual_vector import ResidualVectorQuantizer
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


@pytest.mark.parametrize("forgets", [False, True])
def test_what_had_no_gradients_moves_by_the_learning_rate_once_it_is_forgotten(forgets: bool) -> None:
    idle, used, unseen, replaced = parameters = [nn.Parameter(torch.ones(2)) for _ in range(4)]
    optimizer = torch.optim.Adam(parameters, 0.1)

    def step(weight: float) -> None:
        optimizer.zero_grad()
        (weight * idle.sum() + used.sum() + replaced.sum()).backward()
        optimizer.step()

    for _ in range(80):
        step(0.0)
    if forgets:
        forget_past(optimizer, [replaced])
        assert [parameter is used for parameter in optimizer.state] == [True]
    start = idle.detach().clone()
    for _ in range(20):
        step(1.0)
    per_step = (start - idle.detach()).mean().item() / (20 * 0.1)
    assert per_step == pytest.approx(1.0, abs=0.01) if forgets else per_step > 1.5
    assert unseen not in optimizer.state


B, H, W, D, K = 2, 3, 2, 4, 8
TRAINING = torch.tensor(1.0)


def averages(num_codes: int) -> MovingAverages:
    return MovingAverages(num_codes, D, 0.9, 0.0)


def vector_quantizer(update: str, schedule: CodebookReestimation) -> ReestimatedQuantizer:
    return ResidualVectorQuantizer(
        (K, K),
        D,
        shared_codebook=False,
        commitment_weight=0.4,
        averages_for=averages if update == "ema" else lambda size: None,
        linear=False,
        reestimation=schedule,
        max_elements=10**6,
    )


def gaussian_quantizer(update: str, schedule: CodebookReestimation) -> ReestimatedQuantizer:
    return GaussianQuantizer(
        K,
        D,
        ResidualVariance(1, 0.3, 0.1),
        dequantization_noise=update == "noise",
        max_elements=10**6,
        averages=averages(K) if update == "ema" else None,
        straight_through=update == "ema",
        reestimation=schedule,
    )


def residual_gaussian_quantizer(update: str, schedule: CodebookReestimation) -> ReestimatedQuantizer:
    module = ResidualGaussianQuantizer(
        (K, K),
        D,
        shared_codebook=False,
        log_variance_range=(-10.0, 5.0),
        train_variance=True,
        learned_prior=False,
        max_elements=10**6,
        averages_for=averages if update == "ema" else lambda size: None,
        residual_variance=ResidualVariance(2, 0.3, 0.1) if update == "ema" else None,
        straight_through=update == "ema",
        reestimation=schedule,
    )
    if module.log_variances is not None:
        torch.nn.init.zeros_(module.log_variances)
    return module


QUANTIZERS = {
    "vq, gradient": (vector_quantizer, "gradient"),
    "vq, averages": (vector_quantizer, "ema"),
    "gaussian, gradient": (gaussian_quantizer, "gradient"),
    "gaussian, noise": (gaussian_quantizer, "noise"),
    "gaussian, averages": (gaussian_quantizer, "ema"),
    "residual gaussian, gradient": (residual_gaussian_quantizer, "gradient"),
    "residual gaussian, averages": (residual_gaussian_quantizer, "ema"),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> ReestimatedQuantizer:
    build, update = QUANTIZERS[request.param]
    module = build(update, CodebookReestimation(1, 1, 1000, D))
    for number, book in enumerate(module.level_codebooks()):
        book.assign(torch.randn(K, D, generator=torch.Generator().manual_seed(number)))
    return module


class TestReestimatedQuantizer:
    def latents(self, batch: int = B) -> torch.Tensor:
        return 1.5 * torch.randn(batch, H, W, D, generator=torch.Generator().manual_seed(2))

    def test_warm_up_is_the_identity_without_terms(self, quantizer: ReestimatedQuantizer) -> None:
        z = self.latents().requires_grad_()
        output = quantizer(z, TRAINING)
        assert all(torch.equal(total, z) for total in output.partial_sums)
        assert all(float(term.detach()) == 0 for term in output.terms.values())
        loss = torch.stack(list(output.terms.values())).sum() + output.quantized.sum()
        gradients = torch.autograd.grad(loss, [z, *quantizer.parameters()], materialize_grads=True)
        assert torch.equal(gradients[0], torch.ones_like(z))
        assert all(not gradient.any() for gradient in gradients[1:])
        # What is reported is what quantisation would do.
        assert output.residual_energy[-1] > 0

    def test_only_training_collects_and_only_the_latents(self, quantizer: ReestimatedQuantizer) -> None:
        assert quantizer.reestimation is not None
        z = self.latents()
        assert not torch.equal(quantizer(z, None).quantized, z)
        assert len(quantizer.reestimation.reservoir.contents()) == 0
        quantizer(z, TRAINING)
        assert torch.equal(quantizer.reestimation.reservoir.contents(), z.flatten(0, 2))

    @pytest.mark.parametrize("quantizer", [name for name in QUANTIZERS if "gaussian" in name], indirect=True)
    def test_relaxed_samples_can_be_measured_meanwhile(self, quantizer: ReestimatedQuantizer) -> None:
        assert quantizer.reestimation is not None
        relaxed = quantizer(self.latents(), TRAINING, generators=[torch.Generator().manual_seed(i) for i in range(B)])
        assert not torch.equal(relaxed.quantized, self.latents())
        assert len(quantizer.reestimation.reservoir.contents()) == 0

    def test_averages_follow_in_the_warm_up(self, quantizer: ReestimatedQuantizer) -> None:
        before = [book.weight.detach().clone() for book in quantizer.level_codebooks()]
        quantizer(self.latents(), TRAINING)
        for book, old in zip(quantizer.level_codebooks(), before, strict=True):
            assert torch.equal(book.weight, old) == (book.averages is None)

    def test_then_codes_are_those_of_k_means_and_training_quantises(self, quantizer: ReestimatedQuantizer) -> None:
        z = self.latents(40)
        assert quantizer.warming_up
        quantizer(z, TRAINING)
        left_before = quantizer(z, None).residual_energy[-1]
        variances = [module for module in quantizer.modules() if isinstance(module, ResidualVariance)]
        for variance in variances:
            variance.step.fill_(5000)  # a long warm-up
        assert quantizer.start_epoch(1, seed=3)
        assert not quantizer.warming_up
        vectors = z.flatten(0, 2)
        for book in quantizer.level_codebooks():
            codes = book.codes.detach()
            assert torch.equal(codes, kmeans(vectors, K, seed=3)[0])
            vectors = vectors - codes[torch.cdist(vectors, codes).argmin(-1)]
        torch.testing.assert_close(quantizer(z, None).residual_energy[-1], vectors.square().mean(), rtol=1e-3, atol=0)
        assert vectors.square().mean() < left_before
        after = quantizer(z, TRAINING)
        assert not torch.equal(after.quantized, z)
        for variance in variances:
            # The first batch decides, whatever was left over by the codes that are gone.
            torch.testing.assert_close(variance.energy, after.residual_energy, rtol=0.15, atol=0)
        assert any(float(term.detach()) != 0 for term in after.terms.values())
