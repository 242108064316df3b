"""Which codes of a level are hidden, in training and while they are revealed step by step.

Shape legend: B batch, P positions of a level.
"""

from __future__ import annotations

import math
from typing import Any

import torch

MASKING_SCHEDULES = ("cosine", "linear", "square", "cubic", "square-root")
DECODING_ORDERS = ("confidence", "random")
# How codes are revealed; the same names in the scheduler and in CodeGenerationConfig.
DECODING_SETTINGS = ("num_steps", "masking_schedule", "decoding_order", "choice_temperature")


def mask_ratio(schedule: str, progress: torch.Tensor) -> torch.Tensor:
    """Share γ(r) of the codes that is hidden at progress r, falling from γ(0) = 1 to γ(1) = 0.

    * `"cosine"`: cos(πr/2)
    * `"linear"`: 1 − r
    * `"square"`: 1 − r²
    * `"cubic"`: 1 − r³
    * `"square-root"`: 1 − √r

    The concave ones (cosine, square, cubic) reveal few codes at first and many at the end, square-root the opposite
    (Chang et al., CVPR 2022, arXiv 2202.04200, section 3.3).

    Raises:
        ValueError: If the schedule is unknown.
    """
    if schedule == "cosine":
        return torch.cos(progress * (math.pi / 2))
    powers = {"linear": 1.0, "square": 2.0, "cubic": 3.0, "square-root": 0.5}
    if schedule not in powers:
        raise ValueError(f"masking_schedule must be one of {', '.join(MASKING_SCHEDULES)}, got {schedule!r}.")
    return 1 - progress ** powers[schedule]


def check_decoding(**settings: Any) -> None:
    """Checks any of the `DECODING_SETTINGS`.

    Raises:
        ValueError: Naming the setting, its value and what is accepted.
    """
    for name, value in settings.items():
        if name == "num_steps":
            steps = value if isinstance(value, (list, tuple)) else [value]
            accepts = bool(steps) and all(isinstance(step, int) and step is not True and step >= 1 for step in steps)
            accepted = "an integer of at least 1, or a list of one per level"
        elif name == "choice_temperature":
            accepts = isinstance(value, (int, float)) and value is not True and 0 <= value < math.inf
            accepted = "a number of at least 0 (0 = off)"
        elif name in DECODING_SETTINGS:
            choices = MASKING_SCHEDULES if name == "masking_schedule" else DECODING_ORDERS
            accepts, accepted = value in choices, f"one of {', '.join(choices)}"
        else:
            raise ValueError(f"{name} is unknown; accepted are {', '.join(DECODING_SETTINGS)}.")
        if not accepts:
            raise ValueError(f"{name} must be {accepted}, got {value!r}.")


def num_hidden(schedule: str, step: int, num_steps: int, num_unknown: torch.Tensor) -> torch.Tensor:
    """How many codes remain hidden after `step` of `num_steps` steps, of `num_unknown` to begin with.

    ⌊γ(step / num_steps) · N⌋, but every step reveals at least one code as long as there are any, and leaves one for
    each later step as long as there are enough.

    Args:
        schedule: A mask schedule.
        step: Steps done, 1 … num_steps.
        num_steps: Number of steps.
        num_unknown: N, LongTensor (B,).

    Returns:
        LongTensor (B,).
    """
    ratio = mask_ratio(schedule, torch.tensor(step / num_steps, dtype=torch.float64)).item()
    # A product that is an integer but for rounding counts as that integer.
    counts = (num_unknown.double() * ratio + 1e-6).floor().long()
    most = (num_unknown - step).clamp_min(0)
    return counts.maximum(most.clamp_max(num_steps - step)).minimum(most)


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Rank of every score in its row, 0 for the lowest: LongTensor of the shape of `scores` (…, P)."""
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1)
