"""Guidance in a sampling loop: which rows the model runs on, and what becomes of their logits.

Shape legend: B samples, B' rows of the model (B, or 2B under guidance: conditional rows, then unconditional ones).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .conditions import Conditions
from .sampling import apply_guidance


class Guidance:
    """Runs both branches where a step is guided and a sample has a condition.

    Args:
        scales: The guidance scale of every step.
        conditions: Of the B samples.
    """

    def __init__(self, scales: Sequence[float], conditions: Conditions) -> None:
        self.scales = scales
        # Without a condition both branches are the same model, and u + s·(u − u) = u.
        self.active = any(scale != 1 for scale in scales) and conditions.any_given()
        self.conditions = conditions.with_null() if self.active else conditions

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, …) → (B', …)."""
        return torch.cat([tensor, tensor]) if self.active else tensor

    def apply(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Logits (B', …) of a step → (B, …)."""
        return apply_guidance(logits, self.scales[step]) if self.active else logits
