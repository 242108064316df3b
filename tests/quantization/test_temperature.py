"""The schedule of the Gumbel temperature against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from hq_tokenizers.quantization.temperature import SMALLEST_TEMPERATURE, GumbelTemperature


@pytest.mark.parametrize(("minimum", "steps"), [(0.0, 0), (0.0, 3000), (0.5, 3000), (0.0, 10**9)])
def test_schedule(minimum: float, steps: int) -> None:
    temperature = GumbelTemperature(initial=2.0, decay=1e-3, minimum=minimum)
    for _ in range(3):
        temperature.advance(steps // 3)
    expected = max(2.0 * math.exp(-1e-3 * (steps // 3 * 3)), minimum, SMALLEST_TEMPERATURE)
    assert float(temperature()) == pytest.approx(expected, rel=1e-5)


def test_the_steps_are_saved() -> None:
    temperature, other = (GumbelTemperature(initial=1.0, decay=0.1, minimum=0.0) for _ in range(2))
    temperature.advance(7)
    other.load_state_dict(temperature.state_dict())
    assert torch.equal(other(), temperature())
