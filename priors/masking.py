"""Which codes of a level are hidden, in training and while they are revealed step by step.

Shape legend: B batch, P positions of a level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import torch

from hq_tokenizers.checks import Count, Length, NotNegative, check_choice, check_value

MaskingSchedule = Literal["cosine", "linear", "square", "cubic", "square-root"]
MASKING_SCHEDULES: tuple[str, ...] = get_args(MaskingSchedule)
DECODING_SETTINGS: dict[str, Any] = {
    "num_steps": Count | Annotated[list[Count] | tuple[Count, ...], Length(1, 10_000)],
    "masking_schedule": MaskingSchedule,
    "decoding_order": Literal["confidence", "random"],
    "choice_temperature": NotNegative,
}
"""How codes are revealed, with what is accepted; the same names in the scheduler and in CodeGenerationConfig."""


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
    check_choice("masking_schedule", schedule, MASKING_SCHEDULES)
    return 1 - progress ** powers[schedule]


def scheduler_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The `DECODING_SETTINGS` in a scheduler's configuration, checked, without what diffusers notes for itself there.

    Args:
        config: The configuration, or what its file holds.
        prefix: What to put before names in errors.

    Raises:
        ValueError: Naming the setting, its value and what is accepted.
    """
    return check_decoding(prefix, **{name: value for name, value in config.items() if not name.startswith("_")})


def check_decoding(prefix: str = "", /, **settings: Any) -> dict[str, Any]:
    """Checks any of the `DECODING_SETTINGS`, and returns them as plain Python.

    Args:
        prefix: What to put before names in errors.
        **settings: The settings.

    Raises:
        ValueError: Naming the setting, its value and what is accepted.
    """
    for name in settings:
        if name not in DECODING_SETTINGS:
            raise ValueError(f"{prefix}{name} is unknown; accepted are {', '.join(DECODING_SETTINGS)}.")
    return {name: check_value(f"{prefix}{name}", value, DECODING_SETTINGS[name]) for name, value in settings.items()}


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
