"""Both types of block against other people's implementations of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.priors import RQPriorConfig
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel
from hq_tokenizers.priors.transformer import TransformerLayer

Make = Callable[..., CodePriorModel]

WIDTH, HEADS, LENGTH = 16, 2, 5


def layer(block_type: str) -> TransformerLayer:
    config = RQPriorConfig(hidden_size=WIDTH, num_attention_heads=HEADS, block_type=block_type, dropout=0.0)
    config._attn_implementation = "sdpa"
    made = TransformerLayer(config, layer_idx=0, is_causal=True, has_memory=False).eval().double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def copy_into(module: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    module.load_state_dict(weights)
    return module.eval()


def test_gpt_is_the_pre_norm_layer_of_torch() -> None:
    ours, inputs = layer("gpt"), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    names = {
        "self_attn.in_proj_": "attention.qkv_proj.",
        "self_attn.out_proj.": "attention.o_proj.",
        "norm1.": "attention_norm.",
        "norm2.": "mlp_norm.",
        "linear1.": "mlp.up_proj.",
        "linear2.": "mlp.down_proj.",
    }
    weights = ours.state_dict()
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    copy_into(theirs, {a + kind: weights[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
    torch.testing.assert_close(ours(inputs), theirs(inputs, mask, is_causal=True), atol=1e-10, rtol=1e-10)


def test_llama_is_the_layer_of_transformers() -> None:
    ours, inputs = layer("llama"), torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 64, "rms_norm_eps": 1e-6}
    config = LlamaConfig(**sizes)
    config._attn_implementation = "sdpa"
    weights = ours.state_dict()
    split = {"input_layernorm.weight": weights["attention_norm.weight"]}
    split["post_attention_layernorm.weight"] = weights["mlp_norm.weight"]
    for name, part in zip("qkv", weights["attention.qkv_proj.weight"].chunk(3), strict=True):
        split[f"self_attn.{name}_proj.weight"] = part
    split["self_attn.o_proj.weight"] = weights["attention.o_proj.weight"]
    split["mlp.gate_proj.weight"], split["mlp.up_proj.weight"] = weights["mlp.gate_up_proj.weight"].chunk(2)
    split["mlp.down_proj.weight"] = weights["mlp.down_proj.weight"]
    theirs = copy_into(LlamaDecoderLayer(config, 0).double(), split)
    # Without positions: a rotation by nothing.
    still = (torch.ones(1, LENGTH, WIDTH // HEADS).double(), torch.zeros(1, LENGTH, WIDTH // HEADS).double())
    expected = theirs(inputs, position_embeddings=still)
    # transformers computes the norm in float32.
    torch.testing.assert_close(ours(inputs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block_type", ["llama", "gpt"])
def test_number_of_parameters(make_any: Make, mixed_layout: CodeLayout, block_type: str) -> None:
    model = make_any(mixed_layout, block_type=block_type)
    width, inner = 16, 64
    if block_type == "gpt":
        expected = (3 + 1) * width * width + 2 * width * inner + (3 + 1 + 1) * width + inner + 2 * 2 * width
        last_norm = 2 * width
    else:
        expected = (3 + 1) * width * width + 3 * width * inner + 2 * width
        last_norm = width
    layers = model.spatial_transformer.layers
    assert [sum(p.numel() for p in layer.parameters()) for layer in layers] == [expected] * 2
    assert sum(p.numel() for p in model.spatial_transformer.norm.parameters()) == last_norm


def test_gpt_starts_without_biases(make_any: Make, mixed_layout: CodeLayout) -> None:
    model = make_any(mixed_layout, block_type="gpt", cross_attention_dim=6)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    assert len({name.split(".")[-2] for name in biases}) >= 9
    assert not any(bias.any() for bias in biases.values())
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.LayerNorm))
    assert not any(isinstance(m, nn.RMSNorm) for m in model.modules())
