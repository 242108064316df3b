"""Trained models by the folder or Hub id that an option gives, with errors that name the option."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from hq_tokenizers.image_processing_hq import HQImageProcessor

from .configuration_image_tokenizer import ImageTokenizerConfig


def load_trained(
    path: str, option: str, config_class: type[PreTrainedConfig], kind: str, command: str
) -> PreTrainedModel:
    """Loads a model, in evaluation mode.

    Args:
        path: Folder or Hub id.
        option: The option that gave it, to name in errors.
        config_class: What its configuration has to be.
        kind: What such a model is called.
        command: The command that writes such models.

    Raises:
        ValueError: If there is no model, or one of another kind.
    """
    config = _load_config(path, option, kind, command)
    if not isinstance(config, config_class):
        raise ValueError(_other_kind(path, option, config, kind, command))
    return _load_model(path, option, kind)


def load_tokenizer(path: str, option: str = "tokenizer") -> PreTrainedModel:
    """Loads a tokenizer, in evaluation mode; of a generator, the one that it has.

    Args:
        path: Folder or Hub id.
        option: The option that gave it, to name in errors.

    Raises:
        ValueError: If there is no model, or one of another kind.
    """
    kind, command = "tokenizer", "train-tokenizer"
    config = _load_config(path, option, kind, command)
    if isinstance(config, ImageTokenizerConfig):
        return _load_model(path, option, kind)
    if isinstance(getattr(config, "image_tokenizer_config", None), ImageTokenizerConfig):
        tokenizer: PreTrainedModel = _load_model(path, option, "generator").image_tokenizer
        return tokenizer
    raise ValueError(_other_kind(path, option, config, kind, command))


def _load_config(path: str, option: str, kind: str, command: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if Path(path, "config.json").is_file():
            raise ValueError(f"{option} {path!r}: its config.json cannot be used ({_cause(error)}).") from error
        raise ValueError(
            f"{option} {path!r} is neither the folder of a {kind} nor the id of one on the Hub that can be reached; "
            f"`{command}` writes one ({_cause(error)})."
        ) from error
    return config


def _load_model(path: str, option: str, kind: str) -> PreTrainedModel:
    try:
        return AutoModel.from_pretrained(path).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {path!r}: the {kind} cannot be loaded ({_cause(error)}).") from error


def _other_kind(path: str, option: str, config: PreTrainedConfig, kind: str, command: str) -> str:
    found = f"{option} {path!r} holds a model of type {config.model_type}"
    return f"{found}, but a {kind} is needed; `{command}` writes one."


def load_image_processor(path: str, config: ImageTokenizerConfig) -> HQImageProcessor | None:
    """The image processor beside a model, or the one that its tokenizer's configuration asks for; None for label maps.

    Args:
        path: Folder or Hub id of the model.
        config: Configuration of the tokenizer, of images or label maps.
    """
    if config.for_label_maps:
        return None
    try:
        processor: HQImageProcessor = AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError):  # Saved by the model alone.
        processor = HQImageProcessor.for_config(config)
    return processor


def _cause(error: Exception) -> str:
    """What transformers says, with what it advises in a second line: a token, access to ask for, the connection."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
