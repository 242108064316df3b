"""Trained models by the folder or Hub id that the option of their name gives, with errors that name it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from hq_tokenizers.image_processing_hq import HQImageProcessor

from .configuration_image_tokenizer import ImageTokenizerConfig


def load_tokenizer(path: str) -> PreTrainedModel:
    """Loads a tokenizer, in evaluation mode; of a generator, the one that it has.

    Args:
        path: Folder or Hub id, as the option `tokenizer` gives it.

    Raises:
        ValueError: If there is no model, or one of another kind.
    """
    kind, command = "tokenizer", "train-tokenizer"
    config = _load_config(path, kind, command)
    if isinstance(config, ImageTokenizerConfig):
        return _load_model(path, kind)
    if not _is_generator(config):
        raise ValueError(_other_kind(path, config, kind, command))
    tokenizer: PreTrainedModel = _load_model(path, kind).image_tokenizer
    return tokenizer


def load_generator(path: str) -> PreTrainedModel:
    """Loads a generator, in evaluation mode.

    Args:
        path: Folder or Hub id, as the option `generator` gives it.

    Raises:
        ValueError: If there is no model, or one of another kind.
    """
    kind, command = "generator", "train-prior"
    config = _load_config(path, kind, command)
    if not _is_generator(config):
        raise ValueError(_other_kind(path, config, kind, command))
    return _load_model(path, kind)


def _is_generator(config: PreTrainedConfig) -> bool:
    """Asked by what it has, so that own classes are welcome."""
    return isinstance(getattr(config, "image_tokenizer_config", None), PreTrainedConfig)


def _load_config(path: str, kind: str, command: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if Path(path, "config.json").is_file():
            raise ValueError(f"{kind} {path!r}: its config.json cannot be used ({_cause(error)}).") from error
        raise ValueError(
            f"{kind} {path!r} is neither the folder of a {kind} nor the id of one on the Hub that can be reached; "
            f"`{command}` writes one ({_cause(error)})."
        ) from error
    return config


def _load_model(path: str, kind: str) -> PreTrainedModel:
    try:
        return AutoModel.from_pretrained(path).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"{kind} {path!r}: the {kind} cannot be loaded ({_cause(error)}).") from error


def _other_kind(path: str, config: PreTrainedConfig, kind: str, command: str) -> str:
    found = f"{kind} {path!r} holds a model of type {config.model_type}"
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
