"""Which codes of a level are hidden, in training and while they are revealed step by step.

Shape legend: B batch, P positions of a level.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import torch

from hq_tokenizers.checks import Count, Length, NotNegative, check_choice, check_value
from hq_tokenizers.randomness import GeneratorLike, sample_exponential, sample_generators

MaskingSchedule = Literal["cosine", "linear", "square", "cubic", "square-root"]
MASKING_SCHEDULES: tuple[str, ...] = get_args(MaskingSchedule)
DECODING_SETTINGS: dict[str, Any] = {
    "num_steps": Count | Annotated[list[Count] | tuple[Count, ...], Length(1, 10_000)],
    "masking_schedule": MaskingSchedule,
    "decoding_order": Literal["confidence", "random"],
    "choice_temperature": NotNegative,
}
"""How codes are revealed, with what is accepted; the same names in the scheduler and in CodeGenerationConfig."""
# Masks per level over a whole split, whose mean many images make steady, and the most of one image.
_MASKS_OF_SPLIT, _MAX_MASKS = 10_000, 8


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


def draw_parts(sizes: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Draws one of several parts for every image, in proportion to their sizes, by torch's global noise.

    Systematic sampling: each part gets its share of the batch, up to one image; which images is chance.

    Args:
        sizes: LongTensor (N,), the numbers of codes.
        batch_size: Number of images B.

    Returns:
        LongTensor (B,), values in [0, N).
    """
    order = torch.rand(batch_size, device=sizes.device).argsort()
    points = (order + torch.rand(1, device=sizes.device)) / batch_size
    return torch.searchsorted(sizes.cumsum(0) / sizes.sum(), points, right=True).clamp_max(len(sizes) - 1)


def draw_counts(schedule: str, sizes: torch.Tensor) -> torch.Tensor:
    """Draws how many of `sizes` places training hides, ⌈γ(u) · size⌉ with u uniform in [0, 1], by torch's global noise.

    Args:
        schedule: γ, a mask schedule.
        sizes: LongTensor (B,).

    Returns:
        LongTensor (B,), at least 1 and at most `sizes`.
    """
    ratios = mask_ratio(schedule, torch.rand(len(sizes), device=sizes.device))
    return (ratios * sizes).ceil().long().clamp_min(1).minimum(sizes)


def mask_generators(num_masks: int, generator: GeneratorLike, batch_size: int) -> list[torch.Generator]:
    """One generator per image for `bound_masks`; None gives equal ones, hence the same masks in every image.

    Raises:
        ValueError: If `num_masks` is below 1, or see `sample_generators`.
    """
    if num_masks < 1:
        raise ValueError(f"num_masks must be at least 1, got {num_masks}.")
    if generator is None:
        return [torch.Generator().manual_seed(0) for _ in range(batch_size)]
    return sample_generators(generator, batch_size)


def bound_masks(
    size: int, num_masks: int, generators: Sequence[torch.Generator], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Masks that estimate the mean log-probability over all orders in which `size` places can be revealed one by one.

        E_σ Σ_i log p(k_σ(i) | k_σ(<i)) = N · E_n E_{|M| = n} [ 1/n Σ_{t∈M} log p(k_t | k_V) ]

    with n uniform in 1…N, M the hidden places and V the others. The estimate is unbiased; n is spread evenly over its
    range, and with `num_masks` ≥ N each n comes once.

    Args:
        size: N.
        num_masks: Masks to draw, of which no more than N are.
        generators: One per image.
        device: Of the masks.

    Yields:
        M as a BoolTensor (B, N), and the weights (B,) of the sums over M, whose total is the estimate.
    """
    num_masks = min(num_masks, size)
    for index in range(num_masks):
        noise = sample_exponential((size + 1,), generators, device)
        # 1 − exp(−E) is uniform: one n from each of equal parts of 1 … N.
        uniform = -torch.expm1(-noise[:, 0])
        counts = ((index + uniform) * (size / num_masks)).floor().long().clamp_max(size - 1) + 1
        yield ranks(noise[:, 1:]) < counts[:, None], size / (counts * num_masks)


def split_estimation(indices: Sequence[int], num_images: int) -> dict[str, Any]:
    """Arguments of `log_prob_per_level` for images of a split, whose mean is wanted.

    Args:
        indices: Their numbers in the split, on which alone the masks depend.
        num_images: Images of the split.

    Returns:
        "num_masks", as many as make 10,000 of all images, at most 8 an image; and "generator", one per image.
    """
    num_masks = min(-(-_MASKS_OF_SPLIT // num_images), _MAX_MASKS)
    return {"num_masks": num_masks, "generator": [torch.Generator().manual_seed(index) for index in indices]}
