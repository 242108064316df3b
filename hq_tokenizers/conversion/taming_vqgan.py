"""VQGAN of CompVis/taming-transformers (Esser et al., 2021): `taming.models.vqgan.VQModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .foreign_checkpoints import read_state
from .vqgan_names import as_autoencoder, under_diffusers_names, vector_tokenizer

_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_LISTS = {"block": "resnets", "attn": "attentions"}


def convert_taming_vqgan(checkpoint: Path, settings: Mapping[str, Any], image_size: int | None) -> PreTrainedModel:
    """A VQ-VAE with the codebook of a VQGAN.

    Args:
        checkpoint: Lightning's file, or the state_dict alone.
        settings: The YAML file of its training, of which `model.params.ddconfig.resolution` is used.
        image_size: Instead of that; else 256.

    Raises:
        ValueError: For another checkpoint, and for that of a GumbelVQ.
    """
    state = read_state(checkpoint, "state_dict")
    if "quantize.proj.weight" in state:
        raise ValueError(
            f"{checkpoint} is a GumbelVQ: its codes are the largest of learned logits, not the nearest vectors, which "
            "no tokenizer of this package has."
        )
    if "quantize.embedding.weight" not in state:
        raise ValueError(f"{checkpoint} is no VQGAN of taming-transformers: quantize.embedding.weight is missing.")
    details = settings.get("model", {}).get("params", {}).get("ddconfig", {})
    size = details.get("resolution") if image_size is None else image_size
    return vector_tokenizer(as_autoencoder(taming_networks(state), size), [state["quantize.embedding.weight"]])


def taming_networks(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Encoder and decoder of taming's `Encoder` and `Decoder` under diffusers' names."""
    levels = [int(match[1]) for name in state if (match := re.match(r"decoder\.up\.(\d+)\.", name))]
    coarsest = max(levels, default=0)

    def module(name: str) -> str:
        name = re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda m: f".mid_block.{_MIDDLE[m[1]]}.", name)
        name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
        # The decoder's list is from fine to coarse.
        name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{coarsest - int(m[1])}.", name)
        return re.sub(r"(_blocks\.\d+)\.(block|attn)\.", lambda m: f"{m[1]}.{_LISTS[m[2]]}.", name)

    return under_diffusers_names(state, module)
