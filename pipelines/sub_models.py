"""The classes of a generator's parts, found by model_type.

Self-contained exports replace this module by one that names the classes of the exported parts (hq_tokenizers/hub).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

DEFAULT_MODEL_TYPES = {"image_tokenizer_config": "sq_vae", "prior_config": "rq_prior"}


def build_sub_config(field: str, config: Mapping[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    """The configuration of a part, from what a user or a config.json gives for it.

    Args:
        field: "image_tokenizer_config" or "prior_config".
        config: A configuration, which is returned as it is; a mapping with "model_type"; or None for the defaults of
            the default type.

    Raises:
        ValueError: If the model_type is missing or not registered with transformers.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    values = {"model_type": DEFAULT_MODEL_TYPES[field]} if config is None else dict(config)
    model_type = values.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f'{field} needs the "model_type" of a model registered with transformers, such as '
            f"{DEFAULT_MODEL_TYPES[field]!r}, got {model_type!r}. Own models are registered by AutoConfig.register and "
            "AutoModel.register."
        )
    return CONFIG_MAPPING[model_type](**values)


def build_sub_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A part with fresh weights."""
    return AutoModel.from_config(config)
