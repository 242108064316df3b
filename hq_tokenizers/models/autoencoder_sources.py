"""Where autoencoders come from: models of diffusers, in memory, in a folder or on the Hub, and tokenizers of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import AutoModel, PreTrainedConfig

from hq_tokenizers.pretrained_models import can_name_a_model, not_a_model
from hq_tokenizers.tensor_files import named_damage

from .autoencoders import Autoencoder, autoencoder_of_tokenizer, folded_encoder
from .configuration_image_tokenizer import ImageTokenizerConfig

_DIFFUSERS = ("AutoencoderKL", "VQModel")
_TOKENIZERS = ("sq_vae", "hq_vae")
_BLOCKS = {"DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"}


def read_autoencoder(source: Any, subfolder: str | None = None) -> Autoencoder:
    """Encoder and decoder of an autoencoder.

    Args:
        source: An `AutoencoderKL` or a `VQModel` of diffusers, or a tokenizer of ours on one grid with the backbone
            "diffusers"; or the folder or Hub id of one.
        subfolder: Of the folder or the repository, such as "vae".

    Raises:
        OSError: If there is no such folder or id.
        ValueError: If it holds something else, or networks that cannot be taken over.
        ImportError: If diffusers is not installed.
    """
    if isinstance(source, str | os.PathLike):
        source = _load(os.fspath(source), subfolder)
    config = getattr(source, "config", None)
    if isinstance(config, ImageTokenizerConfig):
        return autoencoder_of_tokenizer(source)
    if type(source).__name__ in _DIFFUSERS and isinstance(config, Mapping):
        return _of_diffusers(source, config)
    raise ValueError(
        f"An autoencoder is an AutoencoderKL or a VQModel of diffusers, or a tokenizer of this package, got "
        f"{type(source).__name__}."
    )


def _load(path: str, subfolder: str | None) -> Any:
    if not can_name_a_model(path):
        raise OSError(f"{not_a_model(path, 'an autoencoder')}.")
    arguments = {} if subfolder is None else {"subfolder": subfolder}
    config, _ = PreTrainedConfig.get_config_dict(path, **arguments)
    with named_damage(path):
        if config.get("model_type") in _TOKENIZERS:
            return AutoModel.from_pretrained(path, **arguments)
        name = config.get("_class_name")
        if name not in _DIFFUSERS:
            raise ValueError(
                f"{path} holds {name or config.get('model_type') or 'something without a config.json'}, and "
                f"{' or '.join(_DIFFUSERS)} of diffusers, or a tokenizer of this package, is needed. Checkpoints of "
                "other packages are converted first: hq-tokenizers convert --help."
            )
        import diffusers

        return getattr(diffusers, name).from_pretrained(path, use_safetensors=True, **arguments)


def _of_diffusers(model: Any, config: Mapping[str, Any]) -> Autoencoder:
    """Encoder and decoder of a model of diffusers; its latents are the mean, not a sample."""
    blocks = {*config["down_block_types"], *config["up_block_types"]} - _BLOCKS
    for refused, what in (
        (config["act_fn"] != "silu", f"the activation {config['act_fn']!r}, and 'silu' is needed"),
        (config.get("norm_type", "group") != "group", f"norms of type {config.get('norm_type')!r}, not 'group'"),
        (bool(blocks), f"blocks of type {', '.join(sorted(blocks))}"),
    ):
        if refused:
            raise ValueError(f"This autoencoder cannot be taken over: it has {what}.")
    continuous = type(model).__name__ == "AutoencoderKL"
    named = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items() if name.startswith(named)}
    own_scale = {}
    if continuous:
        own_scale = {"latent_mean": config["shift_factor"] or 0.0, "latent_deviation": 1 / config["scaling_factor"]}
    size = config["sample_size"]
    return Autoencoder(
        folded_encoder(weights, config["latent_channels"] if continuous else None),
        config["norm_num_groups"],
        list(size) if isinstance(size, list | tuple) else size,
        **own_scale,
    )
