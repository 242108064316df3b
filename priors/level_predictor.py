"""What the masked prior predicts for one level, given everything coarser: the frame of sampling and of log_prob.

Shape legend: B rows, P_g positions of group g, D_g its depth, K codes of the level, H width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .conditions import Conditions

if TYPE_CHECKING:
    from .modeling_masked_prior import MaskedPriorModel


class LevelPredictor:
    """Predicts level after level; conditions and finished groups are embedded once.

    Args:
        model: The prior.
        conditions: Of the B rows.
    """

    def __init__(self, model: MaskedPriorModel, conditions: Conditions) -> None:
        self.model = model
        self.levels = list(model.layout.levels())
        sizes = [group.num_positions for group in model.layout.groups]
        self.context = model.position_context(conditions.labels).split(sizes, dim=1)
        self.memory = model.encode_conditions(conditions)
        self.finished: list[torch.Tensor] = []

    def finish_group(self, codes: torch.Tensor) -> None:
        """Takes the codes (B, P_g, D_g) of the next group, all of which are known now."""
        index = len(self.finished)
        self.finished.append(self.context[index] + self.model.embed_group(index, codes, torch.zeros_like(codes).bool()))

    def logits(self, level: int, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, P_g, K) of a level of the group that follows the finished ones.

        Args:
            level: The level.
            codes: (B, P_g, D_g); read at the depths above the level's, and at its own where it is not hidden.
            hidden: BoolTensor (B, P_g), the level's hidden codes.
        """
        group, depth = self.levels[level]
        depths = torch.arange(codes.shape[-1], device=codes.device)
        everywhere = torch.where(depths == depth, hidden[..., None], depths > depth)
        inputs = self.context[group] + self.model.embed_group(group, codes, everywhere)
        states = self.model.spatial_transformer(torch.cat([*self.finished, inputs], dim=1), group + 1, self.memory)
        return self.model.heads[level](states[:, -codes.shape[1] :])
