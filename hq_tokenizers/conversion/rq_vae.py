"""RQ-VAE of kakaobrain/rq-vae-transformer (Lee et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .foreign_checkpoints import read_state
from .taming_vqgan import taming_networks
from .vqgan_names import as_autoencoder, vector_tokenizer


def convert_rq_vae(checkpoint: Path, settings: Mapping[str, Any], image_size: int | None) -> PreTrainedModel:
    """An RQ-VAE with its codebooks, and their moving averages.

    Args:
        checkpoint: Their file, of which `state_dict` is used, as their own scripts do; or that state_dict alone.
        settings: config.yaml beside it, of which `arch.ddconfig.resolution` and `arch.hparams.decay` are used.
        image_size: Instead of the former; else 256.

    Raises:
        ValueError: For another checkpoint, and for one whose codes stand for several latents each.
    """
    state = read_state(checkpoint, "state_dict")
    levels = [f"quantizer.codebooks.{level}" for level in range(len(state))]
    levels = [level for level in levels if f"{level}.weight" in state]
    if not levels:
        raise ValueError(f"{checkpoint} is no RQ-VAE of rq-vae-transformer: quantizer.codebooks.0.weight is missing.")
    # The last row is padding.
    codebooks = [state[f"{level}.weight"][:-1] for level in levels]
    shared = all(torch.equal(codebook, codebooks[0]) for codebook in codebooks)
    architecture = settings.get("arch", {})
    size = architecture.get("ddconfig", {}).get("resolution") if image_size is None else image_size
    decay = architecture.get("hparams", {}).get("decay", 0.99)
    return vector_tokenizer(
        as_autoencoder(taming_networks(state), size),
        codebooks,
        [state.get(f"{level}.cluster_size_ema") for level in levels],
        **({"shared": shared} if len(levels) > 1 else {}),
        codebook_update="ema",
        ema_decay=decay if isinstance(decay, float) else 0.99,
        restart_threshold=1.0,
    )
