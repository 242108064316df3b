"""What makes the inputs of a model, and is saved beside it."""

from __future__ import annotations

import os

from transformers import PreTrainedModel

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.image_processing_hq import HQImageProcessor

from .configuration_image_tokenizer import is_of_sound


def processor_for(
    model: PreTrainedModel, front_end: HQFeatureExtractor | None = None
) -> HQImageProcessor | HQFeatureExtractor | None:
    """What makes the inputs of a tokenizer or a generator; None for priors and label maps.

    Args:
        model: The model.
        front_end: Of a model of sounds; without it theirs is None as well.

    Raises:
        TypeError: If it is not the front end of such a model.
    """
    config = getattr(model.config, "image_tokenizer_config", model.config)
    of_sound = hasattr(config, "image_size") and is_of_sound(config)
    if front_end is not None and not (of_sound and front_end.suits(config)):
        raise TypeError(f"feature_extractor is not the front end of this {type(model).__name__}: leave it out.")
    if of_sound or not hasattr(config, "image_size") or config.for_label_maps:
        return front_end
    return HQImageProcessor.for_config(config)


def processor_to_share(
    model: PreTrainedModel, front_end: HQFeatureExtractor | None = None
) -> HQImageProcessor | HQFeatureExtractor | None:
    """`processor_for` of a model that others shall use.

    Raises:
        TypeError: As `processor_for` does.
        ValueError: For a generator of sounds without its front end, with which no pipeline can do anything.
    """
    processor = processor_for(model, front_end)
    config = getattr(model.config, "image_tokenizer_config", None)
    if processor is None and config is not None and is_of_sound(config):
        raise ValueError(
            "A generator of sounds does not know its front end: give feature_extractor=pipeline.feature_extractor, or "
            "HQFeatureExtractor.from_pretrained of its folder."
        )
    return processor


def save_processor(
    model: PreTrainedModel, folder: str | os.PathLike[str], front_end: HQFeatureExtractor | None = None
) -> None:
    """Saves what makes a model's inputs beside it, see `processor_for`.

    Args:
        model: The model.
        folder: Where it is saved.
        front_end: Of a model of sounds.

    Raises:
        TypeError: As `processor_for` does.
    """
    processor = processor_for(model, front_end)
    if processor is not None:
        processor.save_pretrained(folder)
