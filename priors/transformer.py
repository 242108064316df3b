"""The transformers of the priors, from their parts up: norms and feed-forward blocks, attention, layers, two stacks.

A layer has a norm before each branch, and the parts of `config.block_type`. The autoregressive prior stacks layers to a
`CausalTransformer`, the masked one to a `GroupwiseTransformer`.

Queries and keys are not normalised: at the widths of image priors the norm before the branch keeps their scale, and
single-token decoding is bound by the number of operations.

Shape legend: B batch, T tokens, S keys, d width of a head, H width, E width of the conditioning vectors, P positions
of the groups that are there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hq_tokenizers.codes import CodeLayout

from .code_embeddings import rotate
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


@dataclass(frozen=True)
class AttentionMemory:
    """Conditioning vectors as the layers of one transformer attend to them, projected once.

    Args:
        keys_values: Per layer the keys and values, (B, heads, S, d) each.
        mask: BoolTensor (B, S), True where a vector may be seen; None where all may.
    """

    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    mask: torch.Tensor | None

    def attention_mask(self, config: CodePriorConfig, hidden_states: torch.Tensor) -> Any:
        """The mask for queries (B, T, H), in the form the attention implementation takes."""
        if self.mask is None:
            return None
        # Only the shape of the memory is read.
        placeholder = hidden_states[:, :1].expand(-1, self.mask.shape[1], -1)
        return create_bidirectional_mask(
            config=config,
            inputs_embeds=hidden_states,
            attention_mask=self.mask,
            encoder_hidden_states=placeholder,
            # Finding out that nothing is hidden would wait for the device.
            allow_is_bidirectional_skip=False,
        )


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(QKᵀ/√d + mask)·V spelled out; (B, heads, T, d) in, (B, T, heads, d) out, with the weights."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _attend(
    module: SelfAttention | CrossAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
) -> torch.Tensor:
    """Attention through transformers' interface, `config._attn_implementation`, and the output projection."""
    config = module.config
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    dropout = config.dropout if module.training else 0.0
    attended, _ = attend(module, query, key, value, attention_mask, dropout=dropout, scaling=module.scaling)
    return module.o_proj(attended.flatten(2))


class SelfAttention(nn.Module):
    """Multi-head self-attention; `is_causal` tells implementations what no mask means."""

    def __init__(self, config: CodePriorConfig, layer_idx: int, is_causal: bool) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv_proj = make_linear(config, config.hidden_size, 3 * config.hidden_size)
        self.o_proj = make_linear(config, config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any,
        past_key_values: Cache | None = None,
        angles: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, H) → (B, T, H); angles (T, d/2) turn queries and keys."""
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (3, -1, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        return _attend(self, query, key, value, attention_mask)


class CrossAttention(nn.Module):
    """Attention of the tokens to conditioning vectors (B, S, E), which `project` turns into keys and values."""

    is_causal = False

    def __init__(self, config: CodePriorConfig) -> None:
        super().__init__()
        assert config.cross_attention_dim is not None  # the layer is only built with it
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = make_linear(config, config.hidden_size, config.hidden_size)
        self.kv_proj = make_linear(config, config.cross_attention_dim, 2 * config.hidden_size)
        self.o_proj = make_linear(config, config.hidden_size, config.hidden_size)

    def project(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, S, d) of conditioning vectors (B, S, E)."""
        key, value = self.kv_proj(encoder_hidden_states).unflatten(-1, (2, -1, self.head_dim)).unbind(2)
        return key.transpose(1, 2), value.transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, key_value: tuple[torch.Tensor, torch.Tensor], attention_mask: Any
    ) -> torch.Tensor:
        """(B, T, H) → (B, T, H)."""
        query = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return _attend(self, query, *key_value, attention_mask)


class TransformerLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + cross-attention(norm(x)) where there is one, then x + MLP(norm(x))."""

    def __init__(self, config: CodePriorConfig, layer_idx: int, is_causal: bool, has_memory: bool) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = SelfAttention(config, layer_idx, is_causal)
        self.cross_attention: CrossAttention | None = None
        if has_memory:
            self.cross_attention_norm = make_norm(config)
            self.cross_attention = CrossAttention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = make_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        angles: torch.Tensor | None = None,
        memory: tuple[torch.Tensor, torch.Tensor] | None = None,
        memory_mask: Any = None,
    ) -> torch.Tensor:
        """(B, T, H) → (B, T, H)."""
        attended = self.attention(self.attention_norm(hidden_states), attention_mask, past_key_values, angles)
        hidden_states = hidden_states + self.dropout(attended)
        if self.cross_attention is not None:
            attended = self.cross_attention(self.cross_attention_norm(hidden_states), memory, memory_mask)
            hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


def make_layers(config: CodePriorConfig, num_layers: int, is_causal: bool, has_memory: bool = False) -> nn.ModuleList:
    """A stack of layers, to be run by `run_layers`."""
    return nn.ModuleList(TransformerLayer(config, index, is_causal, has_memory) for index in range(num_layers))


def run_layers(
    layers: nn.ModuleList,
    config: CodePriorConfig,
    hidden_states: torch.Tensor,
    attention_mask: Any,
    past_key_values: Cache | None = None,
    angles: torch.Tensor | None = None,
    memory: AttentionMemory | None = None,
) -> torch.Tensor:
    """Applies the layers in turn: (B, T, H) → (B, T, H)."""
    memory_mask = None if memory is None else memory.attention_mask(config, hidden_states)
    for index, layer in enumerate(layers):
        hidden_states = layer(
            hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            angles=angles,
            memory=None if memory is None else memory.keys_values[index],
            memory_mask=memory_mask,
        )
    return hidden_states


def encode_memory(
    layers: nn.ModuleList, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None
) -> AttentionMemory:
    """Projects conditioning vectors (B, S, E), mask (B, S), for every layer."""
    attentions = [cast(CrossAttention, layer.get_submodule("cross_attention")) for layer in layers]
    return AttentionMemory(tuple(attention.project(encoder_hidden_states) for attention in attentions), mask)


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
        # The cache by its place: transformers called it past_key_values, and calls it cache from 5.24 on.
        return create_causal_mask(self.config, hidden_states, None, past_key_values)


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


def init_output_projection(module: nn.Module, std: float, num_branches: int) -> None:
    """Initialises the last matrix of a residual branch smaller than the others.

    The variance of the residual stream shall not grow with the number of branches added to it.
    """
    last_of = {SelfAttention: "o_proj", CrossAttention: "o_proj", SwiGLU: "down_proj", GELUBlock: "down_proj"}
    last = last_of.get(type(module))
    if last is not None:
        init.normal_(module.get_submodule(last).weight, std=std / math.sqrt(num_branches))
