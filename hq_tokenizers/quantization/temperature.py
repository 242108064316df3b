"""The Gumbel temperature τ(t): how soft the relaxed samples are after t optimiser steps."""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.quantization.snapshot import snapshot

SMALLEST_TEMPERATURE = 1e-6
"""Keeps the schedule from 0, where the relaxed sample has no value; at the papers' rate relevant after 10⁶ steps."""


class GumbelTemperature(nn.Module):
    """τ(t) = max(τ₀ exp(−decay · t), τ_min); the number of steps t is saved and resumed with the model.

    Args:
        initial: τ₀.
        decay: Rate per step.
        minimum: τ_min.
    """

    step: torch.Tensor

    def __init__(self, initial: float, decay: float, minimum: float):
        super().__init__()
        self.initial = initial
        self.decay = decay
        self.minimum = max(minimum, SMALLEST_TEMPERATURE)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self) -> torch.Tensor:
        """τ(t), a float32 scalar on the model's device."""
        step = snapshot(self.step).float()
        return (self.initial * torch.exp(-self.decay * step)).clamp_min(self.minimum)

    def advance(self, num_steps: int = 1) -> None:
        """Counts optimiser steps."""
        self.step += num_steps
