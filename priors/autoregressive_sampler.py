"""The sampling loop of the autoregressive prior: positions outside, depth inside, both written out.

Shape legend: B samples, B' rows of the model (B, or 2B under guidance: conditional rows, then unconditional ones),
P positions (P_g of group g), D_g codes of a position, K codes of a level, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hq_tokenizers.codes import CodeGroup, Codes

from .code_cache import new_cache
from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig
from .fast_layers import with_fast_layers
from .known_codes import KnownCodes
from .progress import OnStep, PartialCodes, partial_codes
from .sampling import apply_guidance, sample_codes, sample_gumbel

if TYPE_CHECKING:
    from .modeling_rq_prior import RQPriorModel


class AutoregressiveSampler:
    """Draws the codes of B samples, one position after the other.

    Noise is drawn for every code, given or not, and for a row of positions at a time: what a sample draws depends
    neither on its neighbours in the batch nor on the mask, and an accelerator is handed noise once per row.

    Args:
        model: The prior.
        conditions: Of the B samples.
        generators: One per sample.
        config: How to sample.
        known: Codes to keep.
        on_step: Called after every position.
    """

    def __init__(
        self,
        model: RQPriorModel,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> None:
        self.layout = model.layout
        self.generators = generators
        self.known = known
        self.on_step = on_step
        self.level_sampling = config.level_sampling(self.layout.num_levels)
        self.scales = config.guidance_scales(self.layout.num_positions)
        # Without a condition both branches are the same model, and u + s·(u − u) = u.
        self.guided = any(scale != 1 for scale in self.scales) and conditions.any_given()
        rows = conditions.with_null() if self.guided else conditions
        self.model = with_fast_layers(model, len(rows))
        self.context = model.position_context(rows.labels)
        self.angles = model.position_angles()
        self.memory = model.encode_conditions(rows)
        implementation = config.cache_implementation or "static"
        num_positions, max_depth = self.layout.num_positions, max(group.depth for group in self.layout.groups)
        self.spatial_cache = new_cache(implementation, len(model.spatial_transformer.layers), num_positions)
        # Emptied for every position and never longer than a few codes, so it is always allocated once.
        self.depth_cache = new_cache("static", len(model.depth_transformer.layers), max_depth)
        self.step = 0
        self.previous: torch.Tensor | None = None
        size, device = len(conditions), self.context.device
        self.codes = [torch.zeros(size, g.num_positions, g.depth, dtype=torch.long, device=device) for g in self.groups]

    @property
    def groups(self) -> tuple[CodeGroup, ...]:
        """The groups of the layout."""
        return self.layout.groups

    def run(self) -> Codes:
        """Samples all positions."""
        first_level = 0
        for index, group in enumerate(self.groups):
            self._sample_group(index, group, first_level)
            first_level += group.depth
        grids = (codes.unflatten(1, (g.height, g.width)) for codes, g in zip(self.codes, self.groups, strict=True))
        return Codes(tuple(grids), self.layout)

    def _sample_group(self, index: int, group: CodeGroup, first_level: int) -> None:
        sizes = group.codebook_sizes
        for row in range(group.height):
            noise = sample_gumbel((group.width, sum(sizes)), self.generators, self.context.device)
            for column in range(group.width):
                gumbel = noise[:, column].split(sizes, dim=-1)
                self._sample_position(index, row * group.width + column, first_level, gumbel)

    def _sample_position(self, group: int, position: int, first_level: int, gumbel: Sequence[torch.Tensor]) -> None:
        model, embedding = self.model, self.model.code_embedding
        inputs = self.context[:, self.step, None]
        if self.previous is not None:
            inputs = inputs + self.previous
        angles = None if self.angles is None else self.angles[self.step, None]
        depth_inputs = model.spatial_transformer(inputs, self.spatial_cache, angles, self.memory)
        self.depth_cache.reset()
        summed: torch.Tensor | None = None
        for depth, noise in enumerate(gumbel):
            level = first_level + depth
            logits = model.level_logits(depth_inputs, level, self.depth_cache)[:, 0]
            if self.guided:
                logits = apply_guidance(logits, self.scales[self.step])
            code = sample_codes(logits, noise, self.level_sampling[level])
            if self.known is not None:
                code = self.known.fill(code, group, position, depth)
            self.codes[group][:, position, depth] = code
            rows = torch.cat([code, code]) if self.guided else code
            embedded = embedding.lookup(level, rows)[:, None]
            summed = embedded if summed is None else summed + embedded
            depth_inputs = embedding.project(group, summed)
        self.previous = depth_inputs
        self.step += 1
        self.on_step(self.step, self._partial)

    def _partial(self) -> PartialCodes:
        final, first, finished = [], 0, 0
        for codes, group in zip(self.codes, self.groups, strict=True):
            done = torch.arange(group.num_positions, device=codes.device) < self.step - first
            final.append(done[None, :, None].expand(codes.shape))
            first += group.num_positions
            finished += group.depth if self.step >= first else 0
        return partial_codes(self.layout, self.codes, final, finished, finished)
