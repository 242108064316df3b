"""Noise of one sample is its own: independent of the batch, and exponentially distributed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hq_tokenizers import randomness
from hq_tokenizers.randomness import (
    fixed_normal,
    keep_noise,
    sample_exponential,
    sample_generators,
    sample_gumbel,
    sample_uniform,
)

# KS and chi-square tests run on fixed seeds: they either pass always or never.
SIGNIFICANCE = 1e-3


def states(generators: list[torch.Generator]) -> list[list[int]]:
    return [generator.get_state().tolist() for generator in generators]


class TestSampleGenerators:
    def test_integer_seed_counts_up(self) -> None:
        expected = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
        assert states(sample_generators(7, 3)) == states(expected)

    @given(st.integers(0, 2**40), st.lists(st.integers(0, 5), min_size=1, max_size=4))
    def test_integer_seed_is_independent_of_the_batching(self, seed: int, sizes: list[int]) -> None:
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        parts = [g for start, size in zip(starts, sizes, strict=True) for g in sample_generators(seed + start, size)]
        assert states(parts) == states(sample_generators(seed, sum(sizes)))

    @given(st.integers(0, 2**40), st.lists(st.integers(0, 40), min_size=1, max_size=4))
    def test_single_generator_is_independent_of_the_batching(self, seed: int, sizes: list[int]) -> None:
        one, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        parts = [g.initial_seed() for size in sizes for g in sample_generators(one, size)]
        assert parts == [g.initial_seed() for g in sample_generators(other, sum(sizes))]
        assert len(set(parts)) == len(parts)

    def test_none_follows_the_global_seed(self) -> None:
        torch.manual_seed(3)
        first = states(sample_generators(None, 2))
        assert states(sample_generators(None, 2)) != first
        torch.manual_seed(3)
        assert states(sample_generators(None, 2)) == first

    def test_list_is_used_as_it_is(self) -> None:
        generators = [torch.Generator() for _ in range(3)]
        assert all(a is b for a, b in zip(sample_generators(generators, 3), generators, strict=True))

    def test_no_samples(self) -> None:
        for generator in (None, 0, [], torch.Generator()):
            assert sample_generators(generator, 0) == []

    def test_length_must_agree(self) -> None:
        with pytest.raises(ValueError, match="Got 2 generators for 3 samples"):
            sample_generators([torch.Generator(), torch.Generator()], 3)

    @pytest.mark.parametrize("generator", [1.5, True, "ab", [0, 1], [torch.Generator(), None]])
    def test_other_types_are_refused(self, generator: object) -> None:
        with pytest.raises(TypeError, match=f"a list of them, an integer seed or None, got {type(generator).__name__}"):
            sample_generators(generator, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("sample", [sample_exponential, sample_uniform])
class TestRows:
    @given(st.integers(0, 2**40), st.integers(1, 6), st.lists(st.integers(1, 5), max_size=3))
    def test_rows_do_not_depend_on_their_batch(
        self, sample: Callable[..., torch.Tensor], seed: int, batch_size: int, shape: list[int]
    ) -> None:
        together = sample(shape, sample_generators(seed, batch_size))
        assert together.shape == (batch_size, *shape)
        assert together.dtype == torch.float32
        for index in range(batch_size):
            assert torch.equal(together[index], sample(shape, sample_generators(seed + index, 1))[0])

    def test_rows_go_on_where_they_stopped(self, sample: Callable[..., torch.Tensor]) -> None:
        generators = sample_generators(0, 2)
        draws = [sample((4,), generators) for _ in range(2)]
        assert not torch.equal(*draws)

    def test_empty_batch(self, sample: Callable[..., torch.Tensor]) -> None:
        assert sample((2, 3), []).shape == (0, 2, 3)

    def test_neighbouring_seeds_are_uncorrelated(self, sample: Callable[..., torch.Tensor]) -> None:
        first, second = sample((50_000,), sample_generators(0, 2)).double().numpy()
        assert stats.spearmanr(first, second).pvalue > SIGNIFICANCE


class TestSampleExponential:
    @pytest.mark.parametrize("batch_size", [1, 50])
    def test_distribution_is_exponential(self, batch_size: int) -> None:
        noise = sample_exponential((50_000 // batch_size,), sample_generators(11, batch_size)).double()
        assert noise.min() > 0
        assert stats.kstest(noise.flatten().numpy(), stats.expon.cdf).pvalue > SIGNIFICANCE

    def test_negative_logarithm_is_gumbel(self) -> None:
        noise = -sample_exponential((50_000,), sample_generators(5, 1)).double().log()
        assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > SIGNIFICANCE

    def test_exponential_race_samples_the_categorical(self) -> None:
        probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
        noise = sample_exponential((20_000, 4), sample_generators(2, 2)).flatten(0, 1)
        winners = (probabilities.log() - noise.log()).argmax(-1)
        counts = winners.bincount(minlength=4).numpy()
        assert stats.chisquare(counts, probabilities.numpy() * counts.sum()).pvalue > SIGNIFICANCE


def test_uniform_noise_is_uniform() -> None:
    noise = sample_uniform((25_000,), sample_generators(11, 2)).double()
    assert stats.kstest(noise.flatten().numpy(), stats.uniform.cdf).pvalue > SIGNIFICANCE


def test_fixed_normal_noise_is_normal_independent_and_always_the_same() -> None:
    noise = fixed_normal((7, 7, 1000)).double()
    assert stats.kstest(noise.flatten().numpy(), stats.norm.cdf).pvalue > SIGNIFICANCE
    for step in (1, 1000, 7000):
        flat = noise.flatten()
        assert stats.pearsonr(flat[:-step], flat[step:]).pvalue > SIGNIFICANCE
    torch.rand(3)
    assert torch.equal(fixed_normal((7, 7, 1000)).double(), noise)


def test_what_is_drawn_inside_leaves_no_trace_even_after_an_error():
    state = torch.get_rng_state()
    expected = torch.rand(3).tolist()
    torch.set_rng_state(state)
    with keep_noise():
        assert torch.rand(3).tolist() == expected
    with pytest.raises(ZeroDivisionError), keep_noise():
        torch.rand(3).sum().item() / 0
    assert torch.rand(3).tolist() == expected


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_gumbel_noise_is_finite_at_the_ends_of_the_interval(monkeypatch: pytest.MonkeyPatch, extreme: float) -> None:
    monkeypatch.setattr(randomness, "sample_uniform", lambda shape, generators, device: torch.full(shape, extreme))
    assert sample_gumbel((3,), []).isfinite().all()


def test_gumbel_noise_has_its_distribution() -> None:
    noise = sample_gumbel((50_000,), [torch.Generator().manual_seed(3)]).double().flatten()
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > SIGNIFICANCE
