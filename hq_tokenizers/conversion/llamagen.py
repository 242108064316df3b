"""The VQ tokenizers of FoundationVision/LlamaGen (Sun et al., 2024), VQ-16 and VQ-8."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hq_tokenizers.models.autoencoders import load_networks
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel

from .foreign_checkpoints import read_state
from .vqgan_names import as_autoencoder, under_diffusers_names

_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_BLOCKS = {"encoder": "down_blocks", "decoder": "up_blocks"}
_LISTS = {"res": "resnets", "attn": "attentions"}


def convert_llamagen(checkpoint: Path, settings: Mapping[str, Any], image_size: int | None) -> PreTrainedModel:
    """A von Mises–Fisher SQ-VAE whose most probable codes are those of LlamaGen.

    Latents and codes of LlamaGen are unit vectors, and the nearest unit vector is the one of the largest product.

    Args:
        checkpoint: Their file, of which "ema", "model" or "state_dict" is used, the first that is there.
        settings: Not used: they have no file of settings. That latents are normalised (`codebook_l2_norm`) is taken for
            granted, as it holds for all that are released.
        image_size: Of the images; None for 256.

    Raises:
        ValueError: For another checkpoint.
    """
    state = read_state(checkpoint, "ema", "model", "state_dict")
    if "quantize.embedding.weight" not in state or "encoder.conv_blocks.0.res.0.conv1.weight" not in state:
        raise ValueError(
            f"{checkpoint} is no tokenizer of LlamaGen: it lacks quantize.embedding.weight or encoder.conv_blocks."
        )
    autoencoder = as_autoencoder(under_diffusers_names(state, _module), image_size)
    codebook = state["quantize.embedding.weight"].float()
    config = SQVAEConfig(
        **autoencoder.fields(),
        image_size=autoencoder.image_size,
        num_downsampling=len(autoencoder.channels) - 1,
        quantizer="vmf",
        codebook_size=len(codebook),
    )
    model = SQVAEModel(config)
    load_networks(model, autoencoder)
    with torch.no_grad():
        model.quantizer.codebook.weight.copy_(codebook)
    return model.eval()


def _module(name: str) -> str:
    name = re.sub(r"\.mid\.(\d)\.", lambda m: f".mid_block.{_MIDDLE[int(m[1])]}.", name)
    name = re.sub(r"^(encoder|decoder)\.conv_blocks\.", lambda m: f"{m[1]}.{_BLOCKS[m[1]]}.", name)
    return re.sub(r"(_blocks\.\d+)\.(res|attn)\.", lambda m: f"{m[1]}.{_LISTS[m[2]]}.", name)
