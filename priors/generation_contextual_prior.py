"""Draft and revise: the sampling loop of the contextual prior (Lee et al., NeurIPS 2022, arXiv 2206.04452).

Group after group, coarse to fine, in rounds. A round is a random partition of the group's positions into parts of equal
size, up to one position, drawn part after part. The first round is the draft, in which a part sees the parts before it;
in each later one, a revision, every part is hidden and drawn anew given all other positions.

Shape legend: B samples, B' rows of the model (B, or 2B under guidance: conditional rows, then unconditional ones),
P_g positions of group g, n positions of a part, D_g codes of a position, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.randomness import sample_generators, sample_gumbel, sample_uniform

from .code_sampler import CodeSampler
from .conditions import Conditions
from .configuration_code_generation import DRAFT_SETTINGS, CodeGenerationConfig, per_level
from .generation_depth import DepthPredictor, sample_depths
from .known_codes import KnownCodes
from .progress import OnStep, PartialCodes, partial_codes
from .sampling import LevelSampling

DRAFT_STEPS, REVISIONS, REVISE_STEPS = 12, 2, 2
"""What is taken where the configuration does not say."""


def draft_settings(config: CodeGenerationConfig) -> dict[str, Any]:
    """The `DRAFT_SETTINGS` of a configuration, with the defaults where it does not say."""
    defaults = {"num_draft_steps": DRAFT_STEPS, "num_revise_steps": REVISE_STEPS, "num_revisions": REVISIONS}
    given = {name: getattr(config, name) for name in DRAFT_SETTINGS if getattr(config, name) is not None}
    return defaults | given


def rounds_per_group(layout: CodeLayout, config: CodeGenerationConfig) -> list[list[int]]:
    """The steps of every round of every group: of the draft, then of each revision.

    No round has more steps than its group has positions. A group of one position is not revised: nothing would be left
    to see.

    Raises:
        ValueError: If a list of draft steps does not have one entry per group.
    """
    settings = draft_settings(config)
    revise, revisions = settings["num_revise_steps"], settings["num_revisions"]
    return [
        [min(steps, size), *([min(revise, size)] * revisions if size > 1 else [])]
        for steps, size in zip(
            per_level("num_draft_steps", settings["num_draft_steps"], len(layout.groups), "group"),
            (group.num_positions for group in layout.groups),
            strict=True,
        )
    ]


def random_partition(
    size: int, num_parts: int, generators: Sequence[torch.Generator], device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Partitions `size` positions at random into parts whose sizes differ by at most one, another way for each sample.

    Args:
        size: P, at least `num_parts`.
        num_parts: Parts.
        generators: One per sample.
        device: Of the result.

    Returns:
        `num_parts` LongTensors (B, n); each of the P positions stands in exactly one of them.
    """
    order = sample_uniform((size,), generators, device).argsort(dim=1, stable=True)
    return order.tensor_split(num_parts, dim=1)


class GroupPredictor(Protocol):
    """What the loop steps: a model that predicts the hidden positions of one group after the other."""

    @property
    def depth(self) -> DepthPredictor:
        """Predicts the codes of positions."""

    def finish_group(self, codes: torch.Tensor) -> None:
        """Takes the codes (B', P_g, D_g) of the next group, all of which are known now."""

    def states(self, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """h, (B', P_g, H), of the next group, given its codes (B', P_g, D_g) and which positions are hidden."""


class DraftAndReviseSampler(CodeSampler[GroupPredictor]):
    """Draws the codes of B samples.

    Each sample's generator is asked for one seed per group. Within a group the partitions, and the noise of every code,
    given or not, are the same whatever the other samples and the known codes are. A position is hidden until all of its
    codes are there: where only some are given, the others of the position see them, other positions once it is drafted.

    Args:
        layout: Of the codes.
        predictor_for: Gives the predictor for the conditions of B' rows.
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
        predictor_for: Callable[[Conditions], GroupPredictor],
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> None:
        self.rounds = rounds_per_group(layout, config)
        super().__init__(
            layout=layout,
            predictor_for=predictor_for,
            num_steps=sum(map(sum, self.rounds)),
            conditions=conditions,
            config=config,
            known=known,
            on_step=on_step,
        )
        self.generators = list(zip(*(sample_generators(g, len(layout.groups)) for g in generators), strict=True))
        self.given = self.zeros(len(conditions), torch.bool)
        if known is not None:
            self.codes, self.given = [codes.clone() for codes in known.codes], list(known.masks)
        self.final = [given.clone() for given in self.given]
        # Positions (B, P_g) whose codes are not all there, group after group.
        self.undrafted = [~given.all(dim=2) for given in self.given]
        self.group = 0

    def run(self) -> Codes:
        """Samples all groups."""
        for index, codes in enumerate(self.codes):
            self.group = index
            self._sample_group()
            self.predictor.finish_group(self.guidance.rows(codes))
        return self.sampled()

    def _sample_group(self) -> None:
        codes, rounds = self.codes[self.group], self.rounds[self.group]
        if self.known is not None and self.given[self.group].all():
            self.step += sum(rounds)
            self.on_step(self.step, self._partial)
            return
        generators, incomplete = self.generators[self.group], self.undrafted[self.group]
        for number, num_parts in enumerate(rounds):
            for part in random_partition(codes.shape[1], num_parts, generators, self.device):
                drawn = torch.zeros_like(incomplete).scatter(1, part, True)
                # In the draft all that is not there yet; in a revision the part alone, in both but for given positions.
                hidden = self.undrafted[self.group] | (drawn & incomplete)
                sizes = self.layout.groups[self.group].codebook_sizes
                gumbel = sample_gumbel((part.shape[1], sum(sizes)), generators, self.device).flatten(0, 1)
                new = self._predict(part, hidden, gumbel.split(sizes, dim=-1), self.level_sampling)
                codes.scatter_(1, part[..., None].expand_as(new), new)
                self.undrafted[self.group] = self.undrafted[self.group] & ~drawn
                if number == len(rounds) - 1:
                    self.final[self.group] |= drawn[..., None]
                self.step += 1
                self.on_step(self.step, self._partial)

    def _predict(
        self,
        part: torch.Tensor,
        hidden: torch.Tensor,
        gumbel: Sequence[torch.Tensor],
        level_sampling: Sequence[LevelSampling],
    ) -> torch.Tensor:
        """Codes (B, n, D_g) of positions `part` (B, n) of the group, where `hidden` (B, P_g) are hidden."""
        rows, places = self.guidance.rows, part[..., None]
        states = self.predictor.states(rows(self.codes[self.group]), rows(hidden))
        inputs = states.gather(1, rows(places).expand(-1, -1, states.shape[-1])).flatten(0, 1)
        at_part = places.expand(-1, -1, self.codes[self.group].shape[-1])
        kept, given = (t[self.group].gather(1, at_part).flatten(0, 1) for t in (self.codes, self.given))

        def fill(code: torch.Tensor, depth: int) -> torch.Tensor:
            return torch.where(given[:, depth], kept[:, depth], code)

        codes, _ = sample_depths(
            self.predictor.depth,
            inputs[:, None],
            group=self.group,
            first_level=self.layout.first_level(self.group),
            gumbel=gumbel,
            level_sampling=level_sampling,
            guidance=self.guidance,
            step=self.step,
            fill=fill,
        )
        return codes.unflatten(0, part.shape)

    def _partial(self) -> PartialCodes:
        codes = list(self.codes)
        ends = [sum(map(sum, self.rounds[: index + 1])) for index in range(len(self.rounds))]
        finished = self.layout.first_level(sum(end <= self.step for end in ends))
        if self.step == ends[self.group]:
            return partial_codes(self.layout, codes, self.final, finished, finished)
        hidden = self.undrafted[self.group]
        if self.step < ends[self.group] - sum(self.rounds[self.group][1:]):
            codes[self.group] = torch.where(hidden[..., None], self._guess(hidden), codes[self.group])
        return partial_codes(self.layout, codes, self.final, finished, finished + self.layout.groups[self.group].depth)

    @torch.inference_mode()
    def _guess(self, hidden: torch.Tensor) -> torch.Tensor:
        """The likeliest codes (B, P_g, D_g) of the group at this point, for previews; takes a pass, and no noise."""
        everywhere = torch.arange(hidden.shape[1], device=self.device).expand_as(hidden)
        depth = self.layout.groups[self.group].depth
        return self._predict(
            everywhere, hidden, [torch.empty(0)] * depth, [LevelSampling(temperature=0)] * self.layout.num_levels
        )
