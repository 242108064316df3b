"""The networks that the constructors of `presets` know by name, with the codebooks they are used with."""

from __future__ import annotations

import math
from typing import Any

NETWORKS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 8,
        "num_channels": 1,
        "num_downsampling": 1,
        "bottleneck_convolution": False,
        "bottleneck_norm": False,
        "codebook_size": 64,
        "initial_log_variance": math.log(10),
    },
    "mnist": {
        "image_size": 28,
        "num_channels": 1,
        "bottleneck_convolution": False,
        "bottleneck_norm": False,
        "codebook_size": 128,
        "initial_log_variance": math.log(10),
    },
    "cifar10": {"image_size": 32},
    "celeba": {
        "image_size": 64,
        "num_residual_blocks": 6,
        "num_decoder_residual_blocks": 5,
        "bottleneck_norm": False,
    },
    "debug": {
        "image_size": 64,
        "backbone": "diffusers",
        "num_downsampling": 3,
        "block_out_channels": [16, 16, 32, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_strides": [8],
        "codebook_dim": 16,
        "codebook_size": 64,
    },
    "ffhq256": {
        "image_size": 256,
        "backbone": "diffusers",
        "num_downsampling": 5,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "attention_strides": [16],
        "codebook_dim": 256,
        "codebook_size": 2048,
    },
    "imagenet256": {
        "image_size": 256,
        "backbone": "diffusers",
        "num_downsampling": 4,
        "block_out_channels": [128, 128, 256, 256, 512],
        "attention_strides": [16],
        "codebook_dim": 256,
        "codebook_size": 16384,
    },
    "celebamask": {
        "image_size": 64,
        "num_classes": 19,
        "likelihood": "vmf",
        "quantizer": "vmf",
        "hidden_size": 65,
        "codebook_dim": 65,
        "codebook_size": 64,
        "num_downsampling": 3,
        "num_decoder_residual_blocks": 1,
        "bottleneck_convolution": False,
        "bottleneck_norm": False,
    },
    "speech": {
        "modality": "sound",
        "grid_dims": 1,
        "image_size": [1, 32],
        "num_channels": 80,
        "hidden_size": 768,
        "num_downsampling": 1,
        "initial_log_variance": math.log(10),
    },
    "fsdd": {"modality": "sound", "image_size": [80, 64], "num_channels": 1, "initial_log_variance": math.log(20)},
    "urbansound": {
        "modality": "sound",
        "image_size": [80, 344],
        "num_channels": 1,
        "hidden_size": 128,
        "initial_log_variance": math.log(20),
    },
}
"""Networks and codebook sizes.

* "mnist", "cifar10", "celeba" and "celebamask": those of the SQ-VAE paper; "digits" a small one for 8×8 images.
* "ffhq256": RQ-VAE with 8×8 positions (kakaobrain/rq-vae-transformer, configs/ffhq/stage1/ffhq256-rqvae-8x8x4.yaml: ch
  128, ch_mult 1 1 2 2 4 4, two residual blocks, attention at 16×16, K = 2048).
* "imagenet256": VQGAN with 16×16 (CompVis/taming-transformers, vqgan_imagenet_f16_16384: ch 128, ch_mult 1 1 2 2 4, two
  residual blocks, attention at 16×16, K = 16384).
* "debug": a small one of the same kind.
* "speech": SQ-VAE's speech model; "fsdd" and "urbansound": networks of images for spectrograms, the latter of HQ-VAE's
  size, 80 bands and 4 seconds.

Encoder and decoder of the published two have 100,207,491 and 71,879,555 parameters; ours lack the two 1×1 convolutions
around the codes, 131,584 of them.
"""

STRIDES = {
    "digits": (4, 2),
    "mnist": (4, 2),
    "cifar10": (8, 4),
    "celeba": (8, 4),
    "debug": (8, 4),
    "ffhq256": (32, 16),
    "imagenet256": (16, 8),
    "speech": (2,),
    "fsdd": (8, 4),
    "urbansound": (8, 4),
}
"""Strides of the two-level systems by network. Of those in the papers' networks the second is that of the single-layer
systems where both exist; the others have as many resolutions as the first says."""
