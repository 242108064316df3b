"""The inner loop of priors with a depth transformer: the codes of a position, one after the other.

Shape legend: R positions of samples, R' rows of the model (R, or 2R under guidance: conditional rows, then
unconditional ones), K codes of a level, D_g codes of a position, d width of an embedding, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .guidance import Guidance
from .sampling import LevelSampling, sample_codes


class DepthPredictor(Protocol):
    """What the loop steps: a model that predicts depth after depth."""

    def start(self, num_rows: int) -> None:
        """Begins with the first depth of R' positions."""

    def logits(self, depth_inputs: torch.Tensor, level: int) -> torch.Tensor:
        """Logits (R', K) of the next depth, which is of that level, given v_{t,d}, (R', 1, H)."""

    def embed(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings (R', 1, d) of codes (R',) of a level."""

    def project(self, group: int, summed: torch.Tensor) -> torch.Tensor:
        """A sum of embeddings of a group's codes as the model takes it, (R', 1, H)."""


def sample_depths(
    predictor: DepthPredictor,
    depth_inputs: torch.Tensor,
    *,
    group: int,
    first_level: int,
    gumbel: Sequence[torch.Tensor],
    level_sampling: Sequence[LevelSampling],
    guidance: Guidance,
    step: int,
    fill: Callable[[torch.Tensor, int], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws all codes of R positions of a group.

    Args:
        predictor: The model at work on R' rows.
        depth_inputs: v_{t,1}, (R', 1, H).
        group: The positions' group.
        first_level: Its first level.
        gumbel: Noise of each of its levels, (R, K).
        level_sampling: Settings of all levels of the layout.
        guidance: Of the call.
        step: The step, which decides how strong guidance is.
        fill: Given the codes (R,) drawn at a depth, and the depth, returns those to take.

    Returns:
        The codes, LongTensor (R, D_g), and the projected sum of their embeddings, (R', 1, H).
    """
    predictor.start(len(depth_inputs))
    drawn: list[torch.Tensor] = []
    summed: torch.Tensor | None = None
    for depth, noise in enumerate(gumbel):
        level = first_level + depth
        logits = guidance.apply(predictor.logits(depth_inputs, level), step)
        drawn.append(fill(sample_codes(logits, noise, level_sampling[level]), depth))
        embedded = predictor.embed(level, guidance.rows(drawn[-1]))
        summed = embedded if summed is None else summed + embedded
        depth_inputs = predictor.project(group, summed)
    return torch.stack(drawn, dim=1), depth_inputs
