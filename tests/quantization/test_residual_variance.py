"""Variances that follow what the levels leave over, against the recursion in float64."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.quantization.moving_averages import set_accumulation
from hq_tokenizers.quantization.residual_variance import ResidualVariance


def energies(number: int) -> torch.Tensor:
    return torch.rand(number, 3, generator=torch.Generator().manual_seed(1)) + 0.1


def test_several_steps() -> None:
    module = ResidualVariance(3, factor=2.5)
    expected = torch.ones(3, dtype=torch.float64)
    for step, observed in enumerate(energies(1_000)):
        module.observe(observed)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * observed.double()
        if step in (0, 1, 10, 999):
            torch.testing.assert_close(module().double(), 2.5 * expected, rtol=1e-5, atol=0)


def test_the_start_is_soon_forgotten() -> None:
    module = ResidualVariance(2, factor=1.0)
    for _ in range(20):
        module.observe(torch.tensor([1e-3, 4.0]))
    torch.testing.assert_close(module(), torch.tensor([1e-3, 4.0]), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_move_once_like_the_whole(parts: int) -> None:
    whole, divided = ResidualVariance(3, 1.0), ResidualVariance(3, 1.0)
    set_accumulation(torch.nn.ModuleList([divided]), parts)
    for batch in energies(4 * parts).split(parts):
        whole.observe(batch.mean(0))
        for part in batch:
            divided.observe(part)
    torch.testing.assert_close(divided(), whole())
    assert int(divided.step) == 4


def test_state_is_saved_and_no_gradient_flows() -> None:
    module, other = ResidualVariance(3, 3.0), ResidualVariance(3, 3.0)
    module.observe(energies(1)[0].requires_grad_())
    other.load_state_dict(module.state_dict())
    for observed in energies(3):
        module.observe(observed)
        other.observe(observed)
    assert torch.equal(module(), other())
    assert not module().requires_grad
