"""Variances that follow what the levels leave over, against the recursion in float64."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.quantization.moving_averages import set_accumulation
from hq_tokenizers.quantization.residual_variance import ResidualVariance, level_moments

D = 4


def energies(number: int) -> torch.Tensor:
    return torch.rand(number, 3, generator=torch.Generator().manual_seed(1)) + 0.1


def moments(left: torch.Tensor, spread: float = 0.0) -> torch.Tensor:
    """What `observe` takes, of levels that left energies (L,) of latents of a variance around (1, …, 1)."""
    means = torch.ones(len(left), D)
    return torch.cat([left[:, None], torch.full((len(left), 1), 1 + spread), means], dim=1)


def test_several_steps() -> None:
    module = ResidualVariance(3, factor=2.5)
    expected = torch.ones(3, dtype=torch.float64)
    for step, observed in enumerate(energies(1_000)):
        module.observe(moments(observed))
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * observed.double()
        if step in (0, 1, 10, 999):
            torch.testing.assert_close(module().double(), 2.5 * expected, rtol=1e-5, atol=0)


def test_the_start_is_soon_forgotten() -> None:
    module = ResidualVariance(2, factor=1.0)
    for _ in range(20):
        module.observe(moments(torch.tensor([1e-3, 4.0])))
    torch.testing.assert_close(module(), torch.tensor([1e-3, 4.0]), rtol=0.05, atol=1e-4)


def test_a_share_of_what_is_quantised_is_the_least() -> None:
    module = ResidualVariance(2, factor=2.0, share=0.25)
    for _ in range(500):
        module.observe(moments(torch.tensor([1e-3, 4.0]), spread=6.0))
    torch.testing.assert_close(module(), torch.tensor([0.25 * 6, 2.0 * 4]), rtol=1e-3, atol=0)


def test_moments_of_a_level() -> None:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 3, 5, D, generator=generator) * 2 + torch.tensor([3.0, 0.0, -1.0, 9.0])
    module = ResidualVariance(1, factor=1e-9, share=1.0)
    for _ in range(2_000):
        module.observe(level_moments(latents, latents - 1)[None])
    expected = latents.double().flatten(0, 2).var(dim=0, correction=0).mean()
    torch.testing.assert_close(module().double(), expected[None], rtol=1e-4, atol=0)
    assert float(level_moments(latents, latents - 1)[0]) == pytest.approx(float((latents - 1).square().mean()))


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_move_once_like_the_whole(parts: int) -> None:
    whole, divided = ResidualVariance(3, 1.0), ResidualVariance(3, 1.0)
    set_accumulation(torch.nn.ModuleList([divided]), parts)
    for batch in energies(4 * parts).split(parts):
        whole.observe(moments(batch.mean(0)))
        for part in batch:
            divided.observe(moments(part))
    torch.testing.assert_close(divided(), whole())
    assert int(divided.step) == 4


def test_state_is_saved_and_no_gradient_flows() -> None:
    module, other = ResidualVariance(3, 3.0), ResidualVariance(3, 3.0)
    module.observe(moments(energies(1)[0]).requires_grad_())
    other.load_state_dict(module.state_dict())
    for observed in energies(3):
        module.observe(moments(observed))
        other.observe(moments(observed))
    assert torch.equal(module(), other())
    assert not module().requires_grad
