"""The networks of VQGAN and its descendants under diffusers' names, and tokenizers of them with their codebooks.

CompVis/taming-transformers, FoundationVision/LlamaGen and kakaobrain/rq-vae-transformer call the parts of a residual
layer and of attention the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hq_tokenizers.models.autoencoders import Autoencoder, autoencoder_config, folded_encoder, load_networks
from hq_tokenizers.models.modeling_hq_vae import HQVAEModel
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel

NUM_GROUPS = 32
"""Groups of the group norms, in all of them."""
IMAGE_SIZE = 256
NETWORKS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

_PARTS = {
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "downsample.conv": "downsamplers.0.conv",
    "upsample.conv": "upsamplers.0.conv",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def under_diffusers_names(state: Mapping[str, torch.Tensor], module: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """Encoder, decoder and the convolutions around the codes under diffusers' names.

    Args:
        state: All tensors of a checkpoint; those of other parts are left out.
        module: Renames the module of a layer, such as "encoder.down.0.block.1", in a tensor's name.
    """
    result = {}
    for name, tensor in state.items():
        if not name.startswith(NETWORKS):
            continue
        renamed = module(name)
        for theirs, ours in _PARTS.items():
            renamed = re.sub(rf"(?<=\.){re.escape(theirs)}(?=\.)", ours, renamed)
        attention = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(\w+)", renamed)
        if attention:
            block, part, kind = attention.groups()
            renamed = f"{block}.{_ATTENTION.get(part, part)}.{kind}"
            # 1×1 convolutions are linear layers there.
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        result[renamed] = tensor
    return result


def as_autoencoder(weights: Mapping[str, torch.Tensor], image_size: int | None) -> Autoencoder:
    """Encoder and decoder of weights under diffusers' names."""
    if "encoder.conv_out.weight" not in weights:
        raise ValueError("The checkpoint has no encoder of this layout: encoder.conv_out is missing.")
    return Autoencoder(folded_encoder(weights), NUM_GROUPS, IMAGE_SIZE if image_size is None else image_size)


def vector_tokenizer(
    autoencoder: Autoencoder,
    codebooks: Sequence[torch.Tensor],
    counts: Sequence[torch.Tensor | None] | None = None,
    shared: bool = False,
    **fields: Any,
) -> PreTrainedModel:
    """A tokenizer of nearest codes: VQ-VAE with one codebook for a position, RQ-VAE with several.

    Args:
        autoencoder: The networks.
        codebooks: (K, d) of every level.
        counts: How many vectors each code stands for, (K,), of every level; None where nothing is known.
        shared: Whether all levels have the first codebook.
        **fields: Of the configuration.
    """
    fields = {"quantizer": "vq", "normalize_latents": False, **fields}
    model_class: type[SQVAEModel] | type[HQVAEModel]
    if len(codebooks) == 1:
        model_class, fields = SQVAEModel, {"codebook_size": len(codebooks[0]), **fields}
    else:
        sizes = ", ".join(str(len(codebook)) for codebook in codebooks)
        fields = {"code_groups": [f"stride {autoencoder.stride}: {sizes}"], "shared_codebook": shared, **fields}
        model_class = HQVAEModel
    config = autoencoder_config(model_class.config_class, autoencoder, fields)
    _check_width(codebooks, config.codebook_dim)
    model = model_class(config)
    load_networks(model, autoencoder)
    quantizer = model.quantizer[0] if isinstance(model, HQVAEModel) else model.quantizer
    for book, codebook, count in zip(quantizer.codebooks, codebooks, counts or [None] * len(codebooks), strict=False):
        book.assign(codebook.float(), count)
    return model.eval()


def _check_width(codebooks: Sequence[torch.Tensor], width: int) -> None:
    for codebook in codebooks:
        if codebook.ndim != 2 or codebook.shape[1] != width:
            raise ValueError(
                f"A codebook has the shape {tuple(codebook.shape)}, and the latents {width} channels: they belong to "
                "different models, or several latents share a code."
            )
