"""The `model` section of a configuration: a named system or a model type, and fields of its configuration."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from hq_tokenizers.checks import did_you_mean
from hq_tokenizers.options.reading import convert_option, unknown_name
from hq_tokenizers.presets import NETWORKS, PRESETS


def build_tokenizer_config(section: Mapping[str, Any], from_data: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of the tokenizer to train.

    Args:
        section: {"preset": "sq_vae", "network": "mnist", **fields} or {"model_type": "sq_vae", **fields}.
        from_data: Fields that the data decide; a field set to another value in the section is an error.

    Raises:
        ValueError: For an unknown system, type or field, a wrong value, or a disagreement with the data.
    """
    fields = dict(section)
    if "preset" not in fields:
        return build_model_config(fields, from_data, list({type(construct()) for construct in PRESETS.values()}))
    if "model_type" in fields:
        raise ValueError("model has a preset and a model_type: give one of them.")
    construct = PRESETS[_known("preset", fields.pop("preset"), list(PRESETS))]
    network = _known("network", fields.pop("network", "cifar10"), list(NETWORKS))
    accepted = config_fields(type(construct(network))) | _own_arguments(construct)
    return construct(network, **_checked(accepted, fields, from_data))


def build_model_config(
    section: Mapping[str, Any], from_data: Mapping[str, Any], config_classes: Sequence[type[PreTrainedConfig]]
) -> PreTrainedConfig:
    """The configuration of {"model_type": …, **fields}; arguments and errors as for `build_tokenizer_config`.

    Args:
        section: The model type and fields of its configuration.
        from_data: Fields that the data decide.
        config_classes: The model types to choose from.
    """
    fields = dict(section)
    accepted = {config_class.model_type: config_class for config_class in config_classes}
    config_class = accepted[_known("model_type", fields.pop("model_type", None), list(accepted))]
    return config_class(**_checked(config_fields(config_class), fields, from_data))


def config_fields(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The fields that a configuration class adds to those of every transformers model, with their defaults."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = dataclasses.fields(config_class)
    return {field.name: field.default for field in own if field.name not in inherited}


def _own_arguments(construct: Callable[..., PreTrainedConfig]) -> dict[str, Any]:
    """What a named constructor takes besides fields, such as the number of levels, with its defaults."""
    parameters = inspect.signature(construct).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _checked(accepted: dict[str, Any], fields: dict[str, Any], from_data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with known names and the data's values; the configuration class checks their types itself."""
    for name, value in fields.items():
        if name not in accepted:
            raise ValueError(unknown_name(f"model.{name}", [f"model.{field}" for field in accepted]))
        if isinstance(value, str) and isinstance(accepted[name], float):
            # YAML reads 1e-3 as a string.
            fields[name] = convert_option(float, value, f"model.{name}")
    for name, value in from_data.items():
        if name not in accepted:
            raise ValueError(
                f"The data need a model with the field {name}, which this one does not have: label maps need the "
                "preset sq_vae or model_type sq_vae."
            )
        if fields.setdefault(name, value) not in (value, [value, value]):
            raise ValueError(f"model.{name} is {fields[name]!r}, but the data say {value!r}: leave it out.")
    return fields


def _known(option: str, value: Any, accepted: list[str]) -> str:
    if value in accepted:
        return value
    hint = did_you_mean(str(value), accepted)
    raise ValueError(f"model.{option} {value!r} is unknown.{hint and f' {hint}'} Accepted: {', '.join(accepted)}.")
