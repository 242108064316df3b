"""The transformer of the masked prior: positions see each other, but never a finer group.

Shape legend: B batch, P positions of the groups that are there, H width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from hq_tokenizers.codes import CodeLayout

from .block_parts import make_norm
from .configuration_code_prior import CodePriorConfig
from .transformer_layers import AttentionMemory, make_layers, run_layers


class GroupwiseTransformer(nn.Module):
    """A stack of layers and a last norm; a position sees its own group and the coarser ones, entirely.

    What a group's states are does therefore not depend on whether finer groups are in the sequence.
    """

    def __init__(self, config: CodePriorConfig, layout: CodeLayout, num_layers: int, has_memory: bool) -> None:
        super().__init__()
        self.config = config
        self.sizes = [group.num_positions for group in layout.groups]
        self.layers = make_layers(config, num_layers, is_causal=False, has_memory=has_memory)
        self.norm = make_norm(config)

    def forward(
        self, hidden_states: torch.Tensor, num_groups: int, memory: AttentionMemory | None = None
    ) -> torch.Tensor:
        """(B, P, H) → (B, P, H), the positions of the first `num_groups` groups."""
        mask = self._group_mask(hidden_states, num_groups) if num_groups > 1 else None
        return self.norm(run_layers(self.layers, self.config, hidden_states, mask, memory=memory))

    def _group_mask(self, hidden_states: torch.Tensor, num_groups: int) -> torch.Tensor:
        sizes = self.sizes[:num_groups]
        group = torch.cat([torch.full((size,), index) for index, size in enumerate(sizes)]).to(hidden_states.device)

        def not_finer(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return group[key] <= group[query]

        return create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=None, and_mask_function=not_finer
        )
