"""What the sampling loops of all priors begin with, and what they end in.

Shape legend: B samples, B' rows of the model (B, or 2B under guidance), P_g positions of group g, D_g codes of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from hq_tokenizers.codes import CodeLayout, Codes

from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig
from .guidance import Guidance
from .known_codes import KnownCodes
from .progress import OnStep, as_grids

Predictor = TypeVar("Predictor")


class CodeSampler(Generic[Predictor]):
    """Base class: a subclass has `run`, which fills `codes`, one LongTensor (B, P_g, D_g) per group.

    Args:
        layout: Of the codes.
        predictor_for: Gives the predictor for the conditions of B' rows.
        num_steps: Steps of the loop.
        conditions: Of the B samples.
        config: How to sample.
        known: Codes to keep.
        on_step: Called after every step.
    """

    def __init__(
        self,
        *,
        layout: CodeLayout,
        predictor_for: Callable[[Conditions], Predictor],
        num_steps: int,
        conditions: Conditions,
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> None:
        self.layout = layout
        self.known = known
        self.on_step = on_step
        self.level_sampling = config.level_sampling(layout.num_levels)
        self.guidance = Guidance(config.guidance_scales(num_steps), conditions)
        self.predictor = predictor_for(self.guidance.conditions)
        self.device = conditions.labels.device
        self.step = 0
        self.codes = self.zeros(len(conditions), torch.long)

    def zeros(self, batch_size: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """Zeros, or False, for every code: (B, P_g, D_g) per group."""
        shapes = [(batch_size, group.num_positions, group.depth) for group in self.layout.groups]
        return [torch.zeros(shape, dtype=dtype, device=self.device) for shape in shapes]

    def sampled(self) -> Codes:
        """The codes of the B samples."""
        return Codes(as_grids(self.layout, self.codes), self.layout)
