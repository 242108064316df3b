"""The `model` section of a configuration: a named system or a model type, and fields of its configuration."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

from hq_tokenizers.checks import Name, check_choice, check_value, converted, describe, did_you_mean, field_hints
from hq_tokenizers.models.autoencoder_sources import read_autoencoder
from hq_tokenizers.models.autoencoders import Autoencoder, autoencoder_config
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_image_tokenizer import ImageTokenizerConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.named_networks import NETWORKS
from hq_tokenizers.models.presets import PRESETS, Recipe
from hq_tokenizers.options.reading import to_yaml, unknown_name
from hq_tokenizers.priors.configuration_contextual_prior import ContextualPriorConfig
from hq_tokenizers.priors.configuration_masked_prior import MaskedPriorConfig
from hq_tokenizers.priors.configuration_rq_prior import RQPriorConfig

TOKENIZER_CONFIGS = (SQVAEConfig, HQVAEConfig)
PRIOR_CONFIGS = (RQPriorConfig, MaskedPriorConfig, ContextualPriorConfig)
FROM_DATA = ("image_size", "num_channels", "num_classes", "num_speakers", "code_layout", "code_vector_dim")
"""Fields that the data, or the tokenizer, decide."""
DEFAULT_NETWORK = "cifar10"
FROM_AUTOENCODER = "from_autoencoder"
"""The key of a `model` section that names an autoencoder."""
_SYSTEM = ("preset", "network", "model_type", FROM_AUTOENCODER)
"""Keys of a `model` section that name a system."""


def build_tokenizer_config(section: Mapping[str, Any], from_data: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of the tokenizer to train.

    Args:
        section: {"preset": "sq_vae", "network": "mnist", **fields}, {"model_type": "sq_vae", **fields} or
            {"from_autoencoder": path, **fields}.
        from_data: Fields that the data decide; a field set to another value in the section is an error.

    Raises:
        ValueError: For an unknown system, type or field, a wrong value, or a disagreement with the data.
    """
    return _checked_section(section, from_data)()


def check_section(section: Mapping[str, Any]) -> None:
    """Checks the names in a tokenizer's section, before there are data to check the rest with.

    Raises:
        ValueError: For an unknown system, type or field.
    """
    _checked_section(section, {})


def _checked_section(section: Mapping[str, Any], from_data: Mapping[str, Any]) -> Callable[[], PreTrainedConfig]:
    """What builds the configuration, whose names are known."""
    fields = dict(section)
    if FROM_AUTOENCODER in fields:
        return _from_autoencoder(fields, from_data)
    if "preset" not in fields:
        return _of_type(fields, from_data, TOKENIZER_CONFIGS)
    if "model_type" in fields:
        raise ValueError("model has a preset and a model_type: give one of them.")
    construct = PRESETS[_known("preset", fields.pop("preset"), list(PRESETS))]
    network = _known("network", fields.pop("network", DEFAULT_NETWORK), list(NETWORKS))
    config_class = type(construct(network))
    accepted = config_fields(config_class) | _own_arguments(construct)
    for name, instead in (("recipe", "has one way of training only"), ("num_levels", "has no such levels")):
        if name in fields and name not in accepted:
            having = ", ".join(other for other, made in PRESETS.items() if name in _own_arguments(made))
            raise ValueError(f"model.{name} is for the presets {having}; {section['preset']} {instead}.")
    hints = {**inspect.get_annotations(construct, eval_str=True), **field_hints(config_class, PreTrainedConfig)}
    return partial(construct, network, **_checked(accepted, hints, fields, from_data))


def autoencoder_of(section: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder that a `model` section names.

    Raises:
        ValueError: If there is none, or one that cannot be taken over.
    """
    path = check_value(f"model.{FROM_AUTOENCODER}", section[FROM_AUTOENCODER], Name)
    try:
        return read_autoencoder(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.{FROM_AUTOENCODER} {path!r}: {error}") from error


def _from_autoencoder(fields: dict[str, Any], from_data: Mapping[str, Any]) -> Callable[[], PreTrainedConfig]:
    """What builds that of {"from_autoencoder": path, **fields}: of a hierarchy, unless `model_type` is sq_vae."""
    own = {name: fields.pop(name) for name in (FROM_AUTOENCODER, "model_type", "recipe") if name in fields}
    for name in ("preset", "network"):
        if name in fields:
            raise ValueError(f"model has a {name} and {FROM_AUTOENCODER}, which brings its networks: give one of them.")
    config_classes = {config_class.model_type: config_class for config_class in TOKENIZER_CONFIGS}
    config_class = config_classes[_known("model_type", own.get("model_type", "hq_vae"), list(config_classes))]
    recipe = own.get("recipe", "tuned")
    check_choice("model.recipe", recipe, get_args(Recipe))
    hints = field_hints(config_class, PreTrainedConfig)
    checked = _checked(config_fields(config_class), hints, fields, from_data)
    return lambda: autoencoder_config(config_class, autoencoder_of(own), checked, recipe)


def sound_config(section: Mapping[str, Any]) -> PreTrainedConfig | None:
    """The configuration that a `model` section means before its data are known; None unless it is one of sound."""
    network = NETWORKS.get(section.get("network", DEFAULT_NETWORK), {}) if "preset" in section else {}
    if {**network, **section}.get("modality") != "sound":
        return None
    fields = {name: value for name, value in section.items() if name not in FROM_DATA}
    # Divisible by every stride.
    one_dimensional = {**network, **section}.get("grid_dims") == 1
    return build_tokenizer_config(fields, {"image_size": [1 if one_dimensional else 2**16, 2**16]})


def build_model_config(
    section: Mapping[str, Any], from_data: Mapping[str, Any], config_classes: Sequence[type[PreTrainedConfig]]
) -> PreTrainedConfig:
    """The configuration of {"model_type": …, **fields}; arguments and errors as for `build_tokenizer_config`.

    Args:
        section: The model type and fields of its configuration.
        from_data: Fields that the data decide.
        config_classes: The model types to choose from.
    """
    return _of_type(dict(section), from_data, config_classes)()


def _of_type(
    fields: dict[str, Any], from_data: Mapping[str, Any], config_classes: Sequence[type[PreTrainedConfig]]
) -> Callable[[], PreTrainedConfig]:
    accepted = {config_class.model_type: config_class for config_class in config_classes}
    config_class = accepted[_known("model_type", fields.pop("model_type", None), list(accepted))]
    hints = field_hints(config_class, PreTrainedConfig)
    system = _SYSTEM if config_class in TOKENIZER_CONFIGS else ("model_type",)
    checked = _checked(config_fields(config_class), hints, fields, from_data, system)
    return lambda: config_class(**checked)


@dataclass(frozen=True)
class ModelField:
    """One field of a model, as `--help model` explains it, in words."""

    name: str
    default: str
    meaning: str
    accepted: str


@dataclass(frozen=True)
class ModelDescription:
    """A model in words: what it is, and the fields that have an effect on it."""

    title: str
    fields: list[ModelField]


def describe_model(section: Mapping[str, Any], kind: Literal["tokenizer", "prior"]) -> ModelDescription:
    """What can be set in a `model` section; fields that the data decide, and those without an effect, are left out.

    Args:
        section: The section, as far as it is given.
        kind: What is trained.

    Raises:
        ValueError: For an unknown system, type or field, or a wrong value.
    """
    if kind == "prior":
        section = {"model_type": "rq_prior", **section}
        config = build_model_config(section, _stand_ins(section), PRIOR_CONFIGS)
        of = f"of {', '.join(prior.model_type for prior in PRIOR_CONFIGS)}"
    elif FROM_AUTOENCODER in section:
        config = build_tokenizer_config(section, {})
        title = f"model_type {config.model_type} with the encoder and decoder of {section[FROM_AUTOENCODER]}."
        decided = autoencoder_of(section).fields()
        fields = _describe_fields(config, config)
        return ModelDescription(title, [field for field in fields if field.name not in decided])
    elif "model_type" not in section:
        return _describe_preset({"preset": "sq_vae", **section})
    else:
        config = build_tokenizer_config(section, _stand_ins(section))
        of = f"instead of it, a preset: {', '.join(PRESETS)}"
    return ModelDescription(f"model_type {config.model_type} ({of}).", _describe_fields(config, type(config)()))


def _describe_preset(section: Mapping[str, Any]) -> ModelDescription:
    construct = PRESETS[_known("preset", section["preset"], list(PRESETS))]
    config = build_tokenizer_config(section, _stand_ins(section))
    network = section.get("network", DEFAULT_NETWORK)
    summary, meanings = inspect.getdoc(construct), argument_meanings(construct)
    title = (
        f"preset {section['preset']} with network {network} (of {', '.join(NETWORKS)}): {str(summary).splitlines()[0]}"
    )
    hints = inspect.get_annotations(construct, eval_str=True)
    own = [
        ModelField(name, to_yaml(default), meanings[name], describe(hints[name]))
        for name, default in _own_arguments(construct).items()
    ]
    names = {field.name for field in own}
    return ModelDescription(
        title, own + [field for field in _describe_fields(config, construct(network)) if field.name not in names]
    )


def _describe_fields(config: PreTrainedConfig, usual: PreTrainedConfig) -> list[ModelField]:
    """The fields that have an effect on a model, with the defaults of `usual`."""
    purposes = config._purposes() if isinstance(config, ImageTokenizerConfig) else {}
    meanings, hints = argument_meanings(type(config)), field_hints(type(config), PreTrainedConfig)
    fields = []
    for name in config_fields(type(config)):
        used, _ = purposes.get(name, (True, ""))
        if used and name not in FROM_DATA:
            value = getattr(usual, name)
            default = to_yaml(list(value) if isinstance(value, tuple) else value)
            fields.append(ModelField(name, default, meanings[name], describe(hints[name])))
    return fields


def _stand_ins(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section cannot do without and the data would supply."""
    if section.get("likelihood", "gaussian") != "gaussian":
        return {"num_classes": section.get("num_classes", 2)}
    with_code_vectors = section.get("input_embeddings") == "code_vectors"
    return {"code_vector_dim": section.get("code_vector_dim", 1)} if with_code_vectors else {}


def argument_meanings(documented: Any) -> dict[str, str]:
    """What the docstring of a function, or those of a class and its bases, say under "Args:" about each argument."""
    meanings = {}
    for item in reversed(documented.__mro__ if isinstance(documented, type) else [documented]):
        section = inspect.cleandoc(item.__doc__ or "").partition("Args:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.M):
            meanings[name] = " ".join(text.split())
    return meanings


def config_fields(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The fields that a configuration class adds to those of every transformers model, with their defaults."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = dataclasses.fields(config_class)
    return {field.name: field.default for field in own if field.name not in inherited}


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """All fields of a model but those that the data decide, as JSON has them: what a preset stands for today."""
    names = [name for name in config_fields(type(config)) if name not in FROM_DATA]
    settings: dict[str, Any] = json.loads(json.dumps({name: getattr(config, name) for name in names}))
    return settings


def earlier_settings(config: PreTrainedConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `settings_of` gave earlier, with the fields that came later at their defaults."""
    defaults = json.loads(json.dumps(config_fields(type(config)), default=str))
    return {name: settings.get(name, defaults[name]) for name in settings_of(config)}


def _own_arguments(construct: Callable[..., PreTrainedConfig]) -> dict[str, Any]:
    """What a named constructor takes besides fields, such as the number of levels, with its defaults."""
    parameters = inspect.signature(construct).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _checked(
    accepted: dict[str, Any],
    hints: Mapping[str, Any],
    fields: dict[str, Any],
    from_data: Mapping[str, Any],
    system: Sequence[str] = _SYSTEM,
) -> dict[str, Any]:
    """The fields with known names, as YAML means them, and the data's values; the configuration class checks them."""
    for name, value in fields.items():
        if name not in accepted:
            raise ValueError(unknown_name(f"model.{name}", [f"model.{field}" for field in (*accepted, *system)]))
        fields[name] = converted(hints[name], value, texts=True)
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
