"""Inputs of a groupwise transformer, group after group.

Shape legend: B rows, P_g positions of group g, H width.
"""

from __future__ import annotations

from typing import cast

import torch

from .conditions import Conditions
from .modeling_code_prior import CodePriorModel
from .transformer import GroupwiseTransformer


class GroupwiseInputs:
    """What a prior that finishes one group after the other sees; conditions and finished groups are embedded once.

    Args:
        model: A prior with a `GroupwiseTransformer`.
        conditions: Of the B rows.
    """

    def __init__(self, model: CodePriorModel, conditions: Conditions) -> None:
        sizes = [group.num_positions for group in model.layout.groups]
        self.transformer = cast(GroupwiseTransformer, model.spatial_transformer)
        self.context = model.position_context(conditions.labels, conditions.speakers).split(sizes, dim=1)
        self.memory = model.encode_conditions(conditions)
        self.finished: list[torch.Tensor] = []

    @property
    def group(self) -> int:
        """The group that follows the finished ones."""
        return len(self.finished)

    def finish(self, embedded: torch.Tensor) -> None:
        """Takes the embedded codes (B, P_g, H) of the next group, all of which are known now."""
        self.finished.append(self.context[self.group] + embedded)

    def states(self, embedded: torch.Tensor) -> torch.Tensor:
        """States (B, P_g, H) of the group that follows the finished ones, from its embedded codes (B, P_g, H)."""
        inputs = torch.cat([*self.finished, self.context[self.group] + embedded], dim=1)
        return self.transformer(inputs, self.group + 1, self.memory)[:, -embedded.shape[1] :]
