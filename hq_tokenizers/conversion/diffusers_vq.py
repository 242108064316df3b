"""The `VQModel` of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hq_tokenizers.models.autoencoder_sources import read_autoencoder
from hq_tokenizers.tensor_files import named_damage

from .vqgan_names import vector_tokenizer


def convert_diffusers(checkpoint: Path, settings: Mapping[str, Any], image_size: int | None) -> PreTrainedModel:
    """A VQ-VAE with the codebook of a `VQModel`.

    Args:
        checkpoint: Its folder.
        settings: Not used: the folder has its config.json.
        image_size: Instead of its `sample_size`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: For another folder; an `AutoencoderKL` has no codes.
    """
    import diffusers

    if not checkpoint.is_dir():
        raise FileNotFoundError(f"There is no folder {str(checkpoint)!r}: download the model first.")
    with named_damage(checkpoint):
        config = diffusers.VQModel.load_config(str(checkpoint))
        if config.get("_class_name") != "VQModel":
            raise ValueError(
                f"{checkpoint} holds {config.get('_class_name')}, and a VQModel is needed. Around an AutoencoderKL, "
                "which has no codes, train some: train-tokenizer --model.from_autoencoder."
            )
        model = diffusers.VQModel.from_pretrained(str(checkpoint), use_safetensors=True)
    fields: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    return vector_tokenizer(read_autoencoder(model), [model.quantize.embedding.weight.detach()], **fields)
