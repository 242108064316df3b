"""The sampling loop of the masked prior: level after level, each revealed in a few steps.

Shape legend: B samples, B' rows of the model (B, or 2B under guidance: conditional rows, then unconditional ones),
P_g positions of group g, D_g codes of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.randomness import sample_generators

from .code_sampler import CodeSampler
from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig
from .known_codes import KnownCodes
from .progress import OnStep, PartialCodes, partial_codes

if TYPE_CHECKING:
    from .scheduling_masked_codes import MaskedCodeScheduler


class LevelPredictor(Protocol):
    """What the loop steps: a model that predicts the hidden codes of one level after the other."""

    def finish_group(self, codes: torch.Tensor) -> None:
        """Takes the codes (B', P_g, D_g) of the next group, all of which are known now."""

    def logits(self, level: int, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B', P_g, K) of a level of the next group, given its codes (B', P_g, D_g) and which are hidden."""


class MaskedSampler(CodeSampler[LevelPredictor]):
    """Draws the codes of B samples.

    Each sample's generator is asked for one seed per level, so that a level's noise depends neither on the levels
    before it, nor on known codes, nor on the other samples.

    Args:
        layout: Of the codes.
        predictor_for: Gives the predictor for the conditions of B' rows.
        scheduler: Reveals the codes.
        num_steps: Steps of each level.
        conditions: Of the B samples.
        generators: One per sample.
        config: How to sample.
        known: Codes to keep.
        on_step: Called after every step.
    """

    def __init__(
        self,
        *,
        layout: CodeLayout,
        predictor_for: Callable[[Conditions], LevelPredictor],
        scheduler: MaskedCodeScheduler,
        num_steps: Sequence[int],
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> None:
        super().__init__(
            layout=layout,
            predictor_for=predictor_for,
            num_steps=sum(num_steps),
            conditions=conditions,
            config=config,
            known=known,
            on_step=on_step,
        )
        self.scheduler = scheduler
        self.num_steps = num_steps
        self.generators = list(zip(*(sample_generators(g, self.layout.num_levels) for g in generators), strict=True))
        self.final = self.zeros(len(conditions), torch.bool)
        self.num_finished = 0

    def run(self) -> Codes:
        """Samples all levels."""
        for level, (group, depth) in enumerate(self.layout.levels()):
            self._sample_level(level, group, depth)
            if depth == self.layout.groups[group].depth - 1:
                self.predictor.finish_group(self.guidance.rows(self.codes[group]))
        return self.sampled()

    def _sample_level(self, level: int, group: int, depth: int) -> None:
        codes, final = self.codes[group][..., depth], self.final[group][..., depth]
        if self.known is not None:
            codes.copy_(self.known.codes[group][..., depth])
            final.copy_(self.known.masks[group][..., depth])
            if final.all():
                self._finish_level(self.step + self.num_steps[level])
                return
        num_unknown = (~final).sum(dim=1)
        self.scheduler.set_timesteps(self.num_steps[level])
        for timestep in self.scheduler.timesteps.tolist():
            sample = codes.masked_fill(~final, self.scheduler.hidden_code)
            rows = self.guidance.rows
            logits = self.predictor.logits(level, rows(self.codes[group]), rows(~final))
            logits = self.guidance.apply(logits, self.step)
            output = self.scheduler.step(
                logits, timestep, sample, num_unknown, self.level_sampling[level], self.generators[level]
            )
            codes.copy_(output.pred_original_sample)
            final.copy_(output.prev_sample != self.scheduler.hidden_code)
            if timestep:
                self.step += 1
                self.on_step(self.step, self._partial)
        self._finish_level(self.step + 1)

    def _finish_level(self, step: int) -> None:
        self.step = step
        self.num_finished += 1
        self.on_step(step, self._partial)

    def _partial(self) -> PartialCodes:
        # In the middle of a level there is a guess for all of its codes.
        in_level = self.step != sum(self.num_steps[: self.num_finished])
        return partial_codes(self.layout, self.codes, self.final, self.num_finished, self.num_finished + in_level)
