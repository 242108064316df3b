"""What the two types of transformer block differ in: norm, biases and feed-forward block.

Shape legend: H width of the transformer, F width inside the feed-forward block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_code_prior import CodePriorConfig


def make_norm(config: CodePriorConfig) -> nn.RMSNorm | nn.LayerNorm:
    """The norm before every branch and after the last layer."""
    norm = nn.LayerNorm if config.block_type == "gpt" else nn.RMSNorm
    return norm(config.hidden_size, eps=config.norm_eps)


def make_linear(config: CodePriorConfig, in_features: int, out_features: int) -> nn.Linear:
    """A matrix of a block, with a bias in blocks of type "gpt"."""
    return nn.Linear(in_features, out_features, bias=config.block_type == "gpt")


class SwiGLU(nn.Module):
    """Feed-forward block W₂(silu(W₁x) ⊙ V x)."""

    def __init__(self, config: CodePriorConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None  # the config filled it in
        self.gate_up_proj = make_linear(config, config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, H) → (…, H)."""
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class GELUBlock(nn.Module):
    """Feed-forward block W₂ gelu(W₁x + b₁) + b₂, with x Φ(x) for gelu (no approximation)."""

    def __init__(self, config: CodePriorConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None  # the config filled it in
        self.up_proj = make_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, H) → (…, H)."""
        return self.down_proj(F.gelu(self.up_proj(hidden_states)))


def make_feed_forward(config: CodePriorConfig) -> SwiGLU | GELUBlock:
    """The feed-forward block of a layer."""
    return GELUBlock(config) if config.block_type == "gpt" else SwiGLU(config)
