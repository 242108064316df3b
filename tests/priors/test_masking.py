from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hq_tokenizers.priors.masking import MASKING_SCHEDULES, check_decoding, mask_ratio, num_hidden, ranks


@pytest.mark.parametrize(
    ("schedule", "quarter", "half"),
    [
        ("cosine", math.cos(math.pi / 8), math.sqrt(0.5)),
        ("linear", 0.75, 0.5),
        ("square", 15 / 16, 0.75),
        ("cubic", 63 / 64, 0.875),
        ("square-root", 0.5, 1 - math.sqrt(0.5)),
    ],
)
def test_mask_ratios(schedule: str, quarter: float, half: float) -> None:
    ratios = mask_ratio(schedule, torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    assert ratios.tolist() == pytest.approx([1, quarter, half, 0], abs=1e-12)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match=r"masking_schedule must be one of 'cosine', 'linear', .*got 'sine'"):
        mask_ratio("sine", torch.zeros(1))


@pytest.mark.parametrize(
    ("schedule", "num_unknown", "num_steps", "expected"),
    [
        ("linear", 10, 5, [8, 6, 4, 2, 0]),
        ("linear", 10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("cosine", 16, 4, [14, 11, 6, 0]),  # 16 · cos(π/8, π/4, 3π/8) = 14.8, 11.3, 6.1
        ("square-root", 16, 4, [8, 4, 2, 0]),  # 16 · (1 − √¼, 1 − √½, 1 − √¾) = 8, 4.7, 2.1
        ("cubic", 8, 4, [7, 6, 4, 0]),  # 7.9 → one is revealed, 7, 4.6
        ("cosine", 3, 5, [2, 1, 0, 0, 0]),  # fewer codes than steps: one per step, then none
        ("square-root", 4, 4, [3, 2, 1, 0]),  # one is left for every later step
        ("cosine", 64, 1, [0]),
        ("cosine", 0, 2, [0, 0]),
    ],
)
def test_numbers_of_hidden_codes_by_hand(schedule: str, num_unknown: int, num_steps: int, expected: list[int]) -> None:
    unknown = torch.tensor([num_unknown])
    assert [num_hidden(schedule, step + 1, num_steps, unknown).item() for step in range(num_steps)] == expected


@given(st.sampled_from(MASKING_SCHEDULES), st.integers(0, 300), st.integers(1, 40))
def test_every_step_reveals_something_until_nothing_is_hidden(schedule: str, num_unknown: int, num_steps: int) -> None:
    unknown = torch.tensor([num_unknown])
    counts = [num_unknown] + [num_hidden(schedule, step, num_steps, unknown).item() for step in range(1, num_steps + 1)]
    assert counts[-1] == 0
    assert all(after < before or before == after == 0 for before, after in itertools.pairwise(counts))


def test_ranks() -> None:
    assert ranks(torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 4.0]])).tolist() == [[2, 0, 1], [1, 2, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an integer from 1 to .* or a list of them .*got 0"),
        ({"num_steps": [4, 0]}, r"num_steps .*got \[4, 0\]"),
        ({"num_steps": 2.5}, "num_steps .*got 2.5"),
        ({"num_steps": True}, "num_steps .*got True"),
        ({"masking_schedule": "sine"}, "masking_schedule must be one of 'cosine', .*got 'sine'"),
        ({"decoding_order": "raster"}, "decoding_order must be one of 'confidence', 'random', got 'raster'"),
        ({"choice_temperature": -1}, r"choice_temperature must be a number from 0 .*got -1"),
        ({"choice_temperature": math.inf}, "choice_temperature .*got inf"),
        ({"steps": 4}, "steps is unknown; accepted are num_steps, masking_schedule"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_decoding(**settings)
