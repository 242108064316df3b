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
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if Path(path, "config.json").is_file():
            raise ValueError(f"{option} {path!r}: its config.json cannot be used ({_cause(error)}).") from error
        raise ValueError(
            f"{option} {path!r} is neither the folder of a {kind} nor the id of one on the Hub that can be reached; "
            f"`{command}` writes one ({_cause(error)})."
        ) from error
    if not isinstance(config, config_class):
        raise ValueError(
            f"{option} {path!r} holds a model of type {config.model_type}, but a {kind} is needed; `{command}` writes "
            "one."
        )
    try:
        return AutoModel.from_pretrained(path).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {path!r}: the {kind} cannot be loaded ({_cause(error)}).") from error


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
