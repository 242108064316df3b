"""Averages stay what they are when a batch has an undefined value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hq_tokenizers import ResidualStochasticQuantize, ResidualVectorQuantize, StochasticQuantize, VectorQuantize
from hq_tokenizers.quantization.finite_batches import all_finite, follow
from hq_tokenizers.quantization.reestimation import CodebookReestimation

DIM, K = 4, 8
LAYERS = {
    "sq": lambda: StochasticQuantize(DIM, K),
    "rsq": lambda: ResidualStochasticQuantize(DIM, K, 2),
    "vq": lambda: VectorQuantize(DIM, K, restart_threshold=1.0),
    "rq": lambda: ResidualVectorQuantize(DIM, K, 2),
}
UNDEFINED = [math.nan, math.inf, -math.inf]


def vectors(seed: int) -> torch.Tensor:
    return torch.randn(6, 5, DIM, generator=torch.Generator().manual_seed(seed))


def spoilt(seed: int, value: float) -> torch.Tensor:
    latents = vectors(seed)
    latents[2, 3, 1] = value
    return latents


def state(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items() if tensor.is_floating_point()}


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
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_with_an_undefined_value_changes_nothing_in_a_layer(name: str, value: float) -> None:
    layer = LAYERS[name]().train()
    for seed in range(3):
        layer(vectors(seed))
    before = state(layer)
    layer(spoilt(3, value))
    after = state(layer)
    assert {key for key in before if not torch.equal(before[key], after[key])} == set()
    layer(vectors(4))
    assert all(bool(tensor.isfinite().all()) for tensor in state(layer).values())
    assert not all(torch.equal(before[key], tensor) for key, tensor in state(layer).items())


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_whose_first_batch_has_an_undefined_value_learns_as_one_without_it(name: str) -> None:
    errors = {}
    for first in (spoilt(0, math.nan), vectors(0)):
        torch.manual_seed(0)
        layer = LAYERS[name]().train()
        layer(first)
        for seed in range(1, 60):
            layer(vectors(seed))
        z = vectors(99)
        errors[bool(first.isnan().any())] = float((layer.eval()(z)[0] - z).square().mean())
    assert errors[True] == pytest.approx(errors[False], rel=0.2)


def test_a_reservoir_takes_no_vectors_of_such_a_batch() -> None:
    reestimation = CodebookReestimation(2, 1, 64, DIM)
    reestimation.collect(spoilt(0, math.nan)[None])
    assert int(reestimation.reservoir.num_seen) == 0
    reestimation.collect(vectors(0)[None])
    assert int(reestimation.reservoir.num_seen) == 30
