"""Averages stay what they are when a batch has an infinite or undefined value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hq_tokenizers import ResidualStochasticQuantize, ResidualVectorQuantize, StochasticQuantize, VectorQuantize
from hq_tokenizers.quantization import moving_averages, residual_variance
from hq_tokenizers.quantization.finite_batches import FiniteBatchNorm1d, all_finite, follow
from hq_tokenizers.quantization.moving_averages import set_accumulation
from hq_tokenizers.quantization.reestimation import CodebookReestimation

DIM, K = 4, 8
FIELDS = {"ema_warmup": True, "restart_threshold": 0.0}
LAYERS = {
    "sq": lambda **fields: StochasticQuantize(DIM, K, **fields),
    "rsq": lambda **fields: ResidualStochasticQuantize(DIM, K, 2, **fields),
    "vq": lambda **fields: VectorQuantize(DIM, K, **fields),
    "rq": lambda **fields: ResidualVectorQuantize(DIM, K, 2, **fields),
}
UNDEFINED = [math.nan, math.inf, -math.inf]
OVERFLOWING = 1e25
"""Its square is infinite."""


def vectors(seed: int) -> torch.Tensor:
    return torch.randn(6, 5, DIM, generator=torch.Generator().manual_seed(seed))


def spoilt(seed: int, value: float) -> torch.Tensor:
    latents = vectors(seed)
    latents[2, 3, 1] = value
    return latents


def state(layer: nn.Module) -> dict[str, torch.Tensor]:
    """All that the layer saves, but for the Gumbel temperature, which is told of every batch."""
    return {name: tensor.clone() for name, tensor in layer.state_dict().items() if not name.startswith("temperature")}


def train(layer: nn.Module, *batches: torch.Tensor) -> dict[str, torch.Tensor]:
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        layer(batch)
    return state(layer)


@pytest.mark.parametrize("value", [0.0, 1.5, *UNDEFINED])
def test_whether_all_is_finite(value: float) -> None:
    assert bool(all_finite(torch.ones(3), torch.tensor([[1.0, value]]))) == math.isfinite(value)


def test_following_is_a_step_towards_the_value_or_none() -> None:
    average, value = torch.tensor([1.0, -2.0]), torch.tensor([3.0, math.nan])
    follow(average, value, torch.tensor(0.25), torch.tensor(False))
    assert average.tolist() == [1.0, -2.0]
    follow(average, torch.tensor([3.0, 6.0]), torch.tensor(0.25), torch.tensor(True))
    assert average.tolist() == [1.5, 0.0]


@pytest.mark.parametrize("value", UNDEFINED)
@pytest.mark.parametrize("restart_threshold", [0.0, 2.0])
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_with_an_undefined_value_changes_nothing(name: str, restart_threshold: float, value: float) -> None:
    layer = LAYERS[name](normalize=True, ema_warmup=True, restart_threshold=restart_threshold).train()
    before = train(layer, vectors(0), vectors(1))
    after = train(layer, spoilt(2, value))
    assert {key for key in before if not torch.equal(before[key], after[key])} == set()


@pytest.mark.parametrize("name", LAYERS)
def test_a_first_batch_with_an_undefined_value_is_as_none(name: str) -> None:
    layer, other = (LAYERS[name](normalize=True, **FIELDS).train() for _ in range(2))
    other.load_state_dict(layer.state_dict())
    train(layer, spoilt(9, math.nan))
    found, expected = train(layer, vectors(0), vectors(1)), train(other, vectors(0), vectors(1))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_a_value_whose_square_is_infinite_changes_nothing_either(name: str) -> None:
    layer = LAYERS[name](normalize=False, ema_warmup=True, restart_threshold=2.0).train()
    before = train(layer, vectors(0), vectors(1))
    after = train(layer, spoilt(2, OVERFLOWING))
    assert {key for key in before if not torch.equal(before[key], after[key])} == set()


@pytest.mark.parametrize("name", LAYERS)
def test_one_such_part_of_a_step_spoils_the_step_and_no_other(name: str) -> None:
    layer = LAYERS[name](normalize=False, **FIELDS).train()
    set_accumulation(layer, 2)
    before = train(layer, vectors(0), vectors(1))
    after = train(layer, spoilt(2, math.nan), vectors(3))
    assert all(torch.equal(before[key], after[key]) for key in before)
    moved = train(layer, vectors(4), vectors(5))
    assert all(bool(tensor.isfinite().all()) for tensor in moved.values())
    assert not all(torch.equal(before[key], moved[key]) for key in before)


@pytest.mark.parametrize("name", LAYERS)
def test_such_a_batch_of_another_process_counts_as_ones_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name](normalize=False, **FIELDS).train()
    before = train(layer, vectors(0), vectors(1))
    for module in (moving_averages, residual_variance):
        monkeypatch.setattr(module, "all_reduce", lambda tensor: tensor.mul_(math.nan))
    after = train(layer, vectors(2))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_batch_norm_is_pytorchs_on_finite_batches() -> None:
    ours, theirs = FiniteBatchNorm1d(DIM), nn.BatchNorm1d(DIM, affine=False)
    for seed in range(4):
        x, y = (vectors(seed).flatten(0, 1).mul(3).add(1).requires_grad_() for _ in range(2))
        found, expected = ours(x), theirs(y)
        assert torch.equal(found, expected)
        found.square().sin().sum().backward()
        expected.square().sin().sum().backward()
        assert torch.equal(x.grad, y.grad)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_reservoir_takes_no_vectors_of_such_a_batch() -> None:
    reestimation = CodebookReestimation(2, 1, 64, DIM)
    reestimation.collect(spoilt(0, math.nan)[None])
    assert int(reestimation.reservoir.num_seen) == 0
    reestimation.collect(vectors(0)[None])
    assert int(reestimation.reservoir.num_seen) == 30
