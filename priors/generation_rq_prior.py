"""The sampling loop of the autoregressive prior: positions outside, depth inside, both written out.

Shape legend: B samples, B' rows of the model (B, or 2B under guidance: conditional rows, then unconditional ones),
P positions (P_g of group g), D_g codes of a position, K codes of a level, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.randomness import sample_gumbel

from .code_sampler import CodeSampler
from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig
from .generation_depth import DepthPredictor, sample_depths
from .known_codes import KnownCodes
from .progress import OnStep, PartialCodes, partial_codes


class PositionPredictor(Protocol):
    """What the loop steps: a model that predicts position after position."""

    @property
    def depth(self) -> DepthPredictor:
        """Predicts the codes of a position."""

    def next_position(self, previous: torch.Tensor | None) -> torch.Tensor:
        """v_{t,1} of the next position, (B', 1, H), given the projected sum of the codes before it."""


class AutoregressiveSampler(CodeSampler[PositionPredictor]):
    """Draws the codes of B samples, one position after the other.

    Noise is drawn for every code, given or not, and for a row of positions at a time: what a sample draws depends
    neither on its neighbours in the batch nor on the mask, and an accelerator is handed noise once per row.

    Args:
        layout: Of the codes.
        predictor_for: Gives the predictor for the conditions of B' rows.
        conditions: Of the B samples.
        generators: One per sample.
        config: How to sample.
        known: Codes to keep.
        on_step: Called after every position.
    """

    def __init__(
        self,
        *,
        layout: CodeLayout,
        predictor_for: Callable[[Conditions], PositionPredictor],
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> None:
        super().__init__(
            layout=layout,
            predictor_for=predictor_for,
            num_steps=layout.num_positions,
            conditions=conditions,
            config=config,
            known=known,
            on_step=on_step,
        )
        self.generators = generators
        self.previous: torch.Tensor | None = None

    def run(self) -> Codes:
        """Samples all positions."""
        for index, group in enumerate(self.layout.groups):
            self._sample_group(index, group)
        return self.sampled()

    def _sample_group(self, index: int, group: CodeGroup) -> None:
        sizes = group.codebook_sizes
        for row in range(group.height):
            noise = sample_gumbel((group.width, sum(sizes)), self.generators, self.device)
            for column in range(group.width):
                gumbel = noise[:, column].split(sizes, dim=-1)
                self._sample_position(index, row * group.width + column, gumbel)

    def _sample_position(self, group: int, position: int, gumbel: Sequence[torch.Tensor]) -> None:
        def fill(code: torch.Tensor, depth: int) -> torch.Tensor:
            return code if self.known is None else self.known.fill(code, group, position, depth)

        self.codes[group][:, position], self.previous = sample_depths(
            self.predictor.depth,
            self.predictor.next_position(self.previous),
            group=group,
            first_level=self.layout.first_level(group),
            gumbel=gumbel,
            level_sampling=self.level_sampling,
            guidance=self.guidance,
            step=self.step,
            fill=fill,
        )
        self.step += 1
        self.on_step(self.step, self._partial)

    def _partial(self) -> PartialCodes:
        final, first, finished = [], 0, 0
        for codes, group in zip(self.codes, self.layout.groups, strict=True):
            done = torch.arange(group.num_positions, device=codes.device) < self.step - first
            final.append(done[None, :, None].expand(codes.shape))
            first += group.num_positions
            finished += group.depth if self.step >= first else 0
        return partial_codes(self.layout, self.codes, final, finished, finished)
