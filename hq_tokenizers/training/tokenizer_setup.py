"""What a tokenizer is trained on, and the model before its first step: they fit together, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, set_seed

from hq_tokenizers.checks import as_image_size, image_height_width
from hq_tokenizers.data.digits import SIZE as DIGITS_SIZE
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.sound import SoundRows
from hq_tokenizers.data.sound_loading import feature_extractor, load_sound_splits
from hq_tokenizers.data.stream_loading import load_streamed_splits
from hq_tokenizers.data.streams import ImageStream
from hq_tokenizers.data.synthetic import synthetic_images, synthetic_sounds
from hq_tokenizers.models.autoencoders import load_networks
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.sound import SoundConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig

from .continuation import count_steps
from .model_options import FROM_AUTOENCODER, autoencoder_of, build_tokenizer_config, sound_config

Rows = ImageRows | SoundRows
TrainingRows = Rows | ImageStream


def load_splits(config: TokenizerTrainingConfig) -> tuple[TrainingRows, Rows, Rows]:
    """The training split, perhaps as a stream, validation and test; validation again where there is no test split.

    Raises:
        ValueError: If they differ in the size or the channels of their images.
    """
    names = ["train_split", "validation_split"] + (["test_split"] if config.data.test_split else [])
    sounds = sound_config(config.model)
    if sounds is not None:
        extractor = feature_extractor(config.data, sounds.grid_dims, sounds.stride)
        measure = config.data.sound.mean_db is None
        heard, *others = load_sound_splits(config.data, extractor, *names, measure=measure)
        return heard, others[0], others[-1]
    if config.data.sound != SoundConfig():
        raise ValueError(
            "data.sound is for models of sound, and the model is one of images: choose a network of sounds (speech, "
            "fsdd, urbansound) or set model.modality to sound."
        )
    train: ImageRows | ImageStream
    if config.data.streaming:
        train, validation, test = load_streamed_splits(config.data)
    else:
        train, validation, *further = load_image_splits(config.data, *names)
        test = further[0] if further else validation
    for rows, name in ((validation, "validation_split"), (test, "test_split")):
        if rows.image_format != train.image_format:
            raise ValueError(
                f"data.{name} has images of {rows.image_format}, data.train_split of {train.image_format}: set "
                "data.image_size and data.num_channels."
            )
    return train, validation, test


def synthetic_rows(config: TokenizerTrainingConfig) -> tuple[int, Callable[[int], Rows]]:
    """What a dry run trains on, of the sizes of the options, or else of the network's.

    Returns:
        Values of one image or spectrogram, and what makes so many of them.

    Raises:
        ValueError: If sounds have no length.
    """
    sounds = sound_config(config.model)
    return _synthetic_images(config) if sounds is None else _synthetic_sounds(config, sounds)


def _synthetic_images(config: TokenizerTrainingConfig) -> tuple[int, Callable[[int], Rows]]:
    """Pixels of an image, and images of noise by their number."""
    size = {} if config.data.image_size is None else {"image_size": config.data.image_size}
    if config.data.label_map_classes is not None:
        size["num_classes"] = config.data.label_map_classes
    network = build_tokenizer_config(config.model, size)
    height, width = image_height_width(network.image_size)
    channels = config.data.num_channels or network.num_channels
    if config.data.name == "digits" and config.data.image_size is None:
        height, width, channels = DIGITS_SIZE, DIGITS_SIZE, 1
    return height * width, partial(synthetic_images, config.data, height, width, channels)


def _synthetic_sounds(config: TokenizerTrainingConfig, sounds: PreTrainedConfig) -> tuple[int, Callable[[int], Rows]]:
    """Values of a spectrogram, and sounds of noise by their number; one speaker where the number is not given."""
    frames = config.data.sound.segment_frames
    if frames is None:
        raise ValueError("The sounds of a dry run need a length: set data.sound.segment_frames.")
    extractor = feature_extractor(config.data, sounds.grid_dims, sounds.stride)
    speakers = 0 if config.data.sound.speaker_column is None else config.model.get("num_speakers", 1)
    return extractor.feature_size * frames, partial(synthetic_sounds, extractor, frames, speakers)


def check_model(config: TokenizerTrainingConfig, train: TrainingRows) -> None:
    """Builds the model of a run without its memory, so that many runs can be checked before the first of them.

    Raises:
        ValueError: If model, data and length of the run do not fit together.
        TypeError: If a field of the model has a value of another type than it should.
    """
    model_config = model_config_of(config, train)
    with torch.device("meta"):
        check_warmup(config, AutoModel.from_config(model_config), train, num_processes=1)


def model_config_of(config: TokenizerTrainingConfig, train: TrainingRows) -> PreTrainedConfig:
    """The configuration of the model, with what the data decide: sizes, channels, classes."""
    if isinstance(train, SoundRows):
        return build_tokenizer_config(config.model, train.model_fields(config.data.sound.segment_frames))
    height, width, channels = train.image_format.height, train.image_format.width, train.image_format.num_channels
    from_data: dict[str, Any] = {"image_size": as_image_size(height, width)}
    if config.data.label_map_classes is None:
        from_data["num_channels"] = channels
    else:
        from_data["num_classes"] = config.data.label_map_classes
    model_config = build_tokenizer_config(config.model, from_data)
    if model_config.for_label_maps and config.data.label_map_classes is None:
        raise ValueError(
            f"The model is one of label maps (likelihood {model_config.likelihood}), but the data are images: set "
            "data.label_map_classes to the number of classes, or choose a model of images."
        )
    return model_config


def build_model(config: TokenizerTrainingConfig, train: TrainingRows) -> PreTrainedModel:
    """The model of a run, with the weights that its seed or its autoencoder gives it."""
    model_config = model_config_of(config, train)
    set_seed(config.seed)
    model = AutoModel.from_config(model_config)
    if FROM_AUTOENCODER in config.model:
        load_networks(model, autoencoder_of(config.model))
    model.freeze(config.freeze)
    return model


def check_warmup_epochs(config: TokenizerTrainingConfig, model_config: PreTrainedConfig) -> None:
    """As `check_warmup`, as far as it does not depend on the data."""
    if not model_config.reestimation_epochs:
        return
    if config.data.streaming:
        raise ValueError(
            "Codebooks are re-estimated in epochs (model.reestimation_epochs, model.warmup_epochs), which a stream "
            "does not have: set both to 0, or data.streaming false."
        )
    if config.max_steps is None and config.epochs <= model_config.warmup_epochs:
        raise ValueError(
            f"epochs is {config.epochs:g}, but the model quantises nothing in its first {model_config.warmup_epochs} "
            "epochs, and its codebooks are estimated after them: train for longer, or set model.warmup_epochs lower."
        )


def check_warmup(
    config: TokenizerTrainingConfig, model: PreTrainedModel, train: TrainingRows, num_processes: int
) -> None:
    """Refuses a run in which codebooks would never be estimated."""
    check_warmup_epochs(config, model.config)
    if isinstance(train, ImageStream) or not model.config.reestimation_epochs:
        return
    steps_per_epoch = len(train) // config.batch_size
    if not steps_per_epoch:
        return
    warmup = model.config.warmup_epochs * steps_per_epoch
    total = count_steps(options_to_dict(config), steps_per_epoch)
    if total <= warmup:
        raise ValueError(
            f"The run has {total} steps, but the model quantises nothing in its first {model.config.warmup_epochs} "
            f"epochs ({warmup} steps), and its codebooks are estimated after them: train for longer (epochs, "
            "max_steps), or set model.warmup_epochs lower."
        )
    # Codebooks are estimated from what the first process saw in the last epoch of the warm-up.
    images = steps_per_epoch * config.batch_size // num_processes
    for group in model.code_layout().groups:
        vectors = images * group.num_positions
        if vectors < max(group.codebook_sizes):
            raise ValueError(
                f"A codebook of {max(group.codebook_sizes)} codes cannot be estimated from the {vectors} vectors that "
                "the epoch before has: use fewer codes, or more images."
            )
