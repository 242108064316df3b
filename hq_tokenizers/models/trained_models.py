"""Trained models by the folder or Hub id that the option of their name gives, with errors that name it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from hq_tokenizers.checks import did_you_mean
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.pretrained_models import can_name_a_model, folder_of, not_a_model, pretrained_names

from .configuration_image_tokenizer import ImageTokenizerConfig
from .input_checks import check_beam


def load_tokenizer(path: str) -> PreTrainedModel:
    """Loads a tokenizer, in evaluation mode; of a generator, the one that it has.

    Args:
        path: Folder, Hub id with its owner, or name that `pretrained` knows, as the option `tokenizer` gives it.

    Raises:
        ValueError: If there is no model, or one of another kind.
    """
    model = _load(path, "tokenizer", "train-tokenizer", (ImageTokenizerConfig,))
    tokenizer: PreTrainedModel = model.image_tokenizer if _is_generator(model.config) else model
    return tokenizer


def set_beam_width(tokenizer: PreTrainedModel, beam_width: int | None) -> int:
    """Makes `encode` choose codes by this width when nothing else is said; None leaves the tokenizer's own.

    Returns:
        The width that it has now, 1 without levels to search.

    Raises:
        ValueError: See `check_beam`.
    """
    config = tokenizer.config
    width = None if beam_width is None else check_beam(config, beam_width)
    if not getattr(config, "has_residual_levels", False):
        return 1
    config.beam_width = config.beam_width if width is None else width
    return int(config.beam_width)


def load_generator(path: str) -> PreTrainedModel:
    """Loads a generator, in evaluation mode.

    Args:
        path: Folder, Hub id with its owner, or name that `pretrained` knows, as the option `generator` gives it.

    Raises:
        ValueError: If there is no model, or one of another kind.
    """
    return _load(path, "generator", "train-prior", ())


def _is_generator(config: PreTrainedConfig) -> bool:
    """Asked by what it has, so that own classes are welcome."""
    return isinstance(getattr(config, "image_tokenizer_config", None), PreTrainedConfig)


def _load(path: str, kind: str, command: str, besides: tuple[type[PreTrainedConfig], ...]) -> PreTrainedModel:
    """A generator, or a model whose configuration is one of `besides`."""
    path = folder_of(path)
    if not can_name_a_model(path):
        names = pretrained_names()
        suggestion = did_you_mean(path.lower().replace("_", "-"), names)
        raise ValueError(
            f"{kind} {not_a_model(path, f'a {kind}')}, nor a name of the package's own ({', '.join(names)}); "
            f"`{command}` writes one.{suggestion and f' {suggestion}'}"
        )
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        if Path(path, "config.json").is_file():
            raise ValueError(f"{kind} {path!r}: its config.json cannot be used ({_cause(error)}).") from error
        raise ValueError(
            f"{kind} {path!r} is neither the folder of a {kind} nor the id of one on the Hub that can be reached; "
            f"`{command}` writes one ({_cause(error)})."
        ) from error
    if not (isinstance(config, besides) or _is_generator(config)):
        raise ValueError(
            f"{kind} {path!r} holds a model of type {config.model_type}, but a {kind} is needed; `{command}` writes "
            "one."
        )
    try:
        return AutoModel.from_pretrained(path).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"{kind} {path!r}: the {kind} cannot be loaded ({_cause(error)}).") from error


def load_image_processor(path: str, config: ImageTokenizerConfig) -> HQImageProcessor | None:
    """The image processor beside a model, or the one that its tokenizer's configuration asks for; None for label maps.

    Args:
        path: Folder, Hub id or name that `pretrained` knows, of the model.
        config: Configuration of the tokenizer, of images or label maps.
    """
    if config.for_label_maps:
        return None
    try:
        processor: HQImageProcessor = AutoImageProcessor.from_pretrained(folder_of(path))
    except (OSError, ValueError):  # Saved by the model alone.
        processor = HQImageProcessor.for_config(config)
    return processor


def _cause(error: Exception) -> str:
    """What transformers says, with what it advises in a second line: a token, access to ask for, the connection."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
