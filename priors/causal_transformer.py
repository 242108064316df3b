"""The causal transformer that both halves of the autoregressive prior are.

Shape legend: B batch, T tokens, d width of a head, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .block_parts import make_norm
from .configuration_code_prior import CodePriorConfig
from .transformer_layers import AttentionMemory, make_layers, run_layers


class CausalTransformer(nn.Module):
    """A stack of layers and a last norm; token t sees tokens 0…t, and the memory where there is one."""

    def __init__(self, config: CodePriorConfig, num_layers: int, has_memory: bool = False) -> None:
        super().__init__()
        self.config = config
        self.layers = make_layers(config, num_layers, is_causal=True, has_memory=has_memory)
        self.norm = make_norm(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Cache | None = None,
        angles: torch.Tensor | None = None,
        memory: AttentionMemory | None = None,
    ) -> torch.Tensor:
        """(B, T, H) → (B, T, H); with a cache, the T tokens follow the ones in it.

        `angles` (T, d/2) are the rotary angles of the T tokens.
        """
        mask = self._causal_mask(hidden_states, past_key_values)
        return self.norm(
            run_layers(self.layers, self.config, hidden_states, mask, past_key_values, angles=angles, memory=memory)
        )

    def _causal_mask(self, hidden_states: torch.Tensor, past_key_values: Cache | None) -> Any:
        # One query sees every key, unless a compileable cache hands out keys that are not written yet.
        if hidden_states.shape[1] == 1 and (past_key_values is None or not past_key_values.is_compileable):
            return None
        return create_causal_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=None, past_key_values=past_key_values
        )
