"""The layer that every transformer here is made of: a norm before each branch, the parts of `config.block_type`.

Queries and keys are not normalised: at the widths of image priors the norm before the branch keeps their scale, and
single-token decoding is bound by the number of operations.

Shape legend: B batch, T tokens, S keys, d width of a head, H width, E width of the conditioning vectors.
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
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .block_parts import GELUBlock, SwiGLU, make_feed_forward, make_linear, make_norm
from .code_embeddings import rotate
from .configuration_code_prior import CodePriorConfig


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


def init_output_projection(module: nn.Module, std: float, num_branches: int) -> None:
    """Initialises the last matrix of a residual branch smaller than the others.

    The variance of the residual stream shall not grow with the number of branches added to it.
    """
    last_of = {SelfAttention: "o_proj", CrossAttention: "o_proj", SwiGLU: "down_proj", GELUBlock: "down_proj"}
    last = last_of.get(type(module))
    if last is not None:
        init.normal_(module.get_submodule(last).weight, std=std / math.sqrt(num_branches))
