"""From logits to codes, and how strongly guidance pulls at each step.

Shape legend: B samples, K codes of one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

GuidanceSchedule = Literal["constant", "linear", "power-cosine", "interval"]


@dataclass(frozen=True)
class LevelSampling:
    """How the codes of one level are drawn.

    Args:
        temperature: Divides the logits, ≥ 0; 1 samples the model's distribution, 0 takes the likeliest code.
        top_k: Keep the k likeliest codes; 0 keeps all.
        top_p: Keep the fewest likeliest codes that hold this share of the probability, in (0, 1]; 1 keeps all.
        min_p: Drop codes less likely than this share of the likeliest one's probability, in [0, 1); 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def filter_logits(logits: torch.Tensor, sampling: LevelSampling) -> torch.Tensor:
    """Applies temperature, top-k, top-p and min-p, in this order, each to the codes its predecessors left.

    Args:
        logits: (…, K), any floating type.
        sampling: The settings of the level; its temperature must be above 0.

    Returns:
        float32 (…, K); excluded codes are −∞. Codes that tie with the last one kept are kept as well.
    """
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if sampling.top_p < 1:
        ranked = logits.sort(dim=-1, descending=True).values
        probabilities = ranked.softmax(-1)
        mass_before = probabilities.cumsum(-1) - probabilities
        threshold = ranked.masked_fill(mass_before >= sampling.top_p, math.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if sampling.min_p > 0:
        # p < min_p · max p, without the normaliser that cancels.
        threshold = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    return logits


def sample_codes(logits: torch.Tensor, gumbel: torch.Tensor, sampling: LevelSampling) -> torch.Tensor:
    """Draws codes by the exponential race, argmax(log p − log E), without waiting for the device.

    Args:
        logits: (…, K).
        gumbel: −log E, (…, K), see `sample_gumbel`.
        sampling: The settings of the level.

    Returns:
        LongTensor (…).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return (filter_logits(logits, sampling) + gumbel).argmax(-1)


def apply_guidance(logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance, u + s·(c − u).

    Args:
        logits: (2B, …): conditional logits c, then unconditional logits u.
        scale: s; 1 gives exactly c, 0 gives u.

    Returns:
        float32 (B, …).
    """
    conditional, unconditional = logits.float().chunk(2)
    return torch.lerp(unconditional, conditional, scale)


def guidance_scales(
    schedule: str, scale: float, num_steps: int, power: float = 1.0, interval: Sequence[float] = (0.0, 1.0)
) -> tuple[float, ...]:
    """The guidance scale s(t) of each step, where t runs evenly from 0 (first step) to 1 (last step).

    * `"constant"`: s(t) = s
    * `"linear"`: s(t) = 1 + (s − 1)·t
    * `"power-cosine"`: s(t) = 1 + (s − 1)·(1 − cos(π·tᵖ)) / 2, which stays near 1 for long when the power p is large
    * `"interval"`: s(t) = s for t inside the interval, bounds included, and 1 (no guidance) outside

    Raises:
        ValueError: If the schedule is unknown.
    """
    times = [step / max(num_steps - 1, 1) for step in range(num_steps)]
    if schedule == "constant":
        return (scale,) * num_steps
    if schedule == "linear":
        return tuple(1 + (scale - 1) * t for t in times)
    if schedule == "power-cosine":
        return tuple(1 + (scale - 1) * (1 - math.cos(math.pi * t**power)) / 2 for t in times)
    if schedule == "interval":
        low, high = interval
        return tuple(scale if low <= t <= high else 1.0 for t in times)
    raise ValueError(
        f"guidance_schedule {schedule!r} is unknown; accepted are {', '.join(get_args(GuidanceSchedule))}."
    )
