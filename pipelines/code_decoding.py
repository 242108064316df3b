"""Codes of a prior as images or spectrograms: what a generator, and the training of a prior, ask of a tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.padding import code_lengths, frame_mask


def check_items(config: PreTrainedConfig, items: str, what: str) -> None:
    """Refuses the generator of something else than is wanted.

    Args:
        config: Of its tokenizer; own ones need not say that they are of images.
        items: "images" or "sounds".
        what: What wants them, for the error.

    Raises:
        TypeError: Naming what the generator makes, and what is for that.
    """
    made = "label maps" if getattr(config, "for_label_maps", False) else "sounds" if is_of_sound(config) else "images"
    if made != items:
        way = {"images": "pipeline('hq-generation')", "sounds": "pipeline('hq-audio-generation')"}
        raise TypeError(
            f"{what} is for {items}, this generator makes {made}: use `hq-tokenizers generate`, or "
            f"{way.get(made, 'its method generate')}."
        )


def num_speakers(config: PreTrainedConfig) -> int:
    """How many speakers a tokenizer decodes for; 0 where its decoder is told of none."""
    return getattr(config, "num_speakers", 0)


def layout_for(tokenizer: PreTrainedModel, layout: CodeLayout) -> CodeLayout:
    """A tokenizer's own layout where a prior has this one: that of its images, or of sounds of the same length.

    Args:
        tokenizer: The tokenizer. Spectrograms have any length, so that a prior of sounds decides theirs.
        layout: Of the prior's codes.
    """
    if not is_of_sound(tokenizer.config):
        return tokenizer.code_layout()
    height, _ = image_height_width(tokenizer.config.image_size)
    return tokenizer.code_layout([height, layout.groups[0].width * tokenizer.config.stride])


def decode_codes(
    tokenizer: PreTrainedModel, codes: Codes, speaker_ids: torch.Tensor | None = None, num_levels: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images of codes, or spectrograms as long as the codes say.

    Args:
        tokenizer: The tokenizer.
        codes: Of B samples.
        speaker_ids: LongTensor (B,), for tokenizers that decode for a speaker; others ignore it.
        num_levels: Decodes the first levels only.

    Returns:
        (B, C, H, W); of sounds also their "attention_mask" (B, W), else None.
    """
    arguments: dict[str, Any] = {} if num_levels is None else {"num_levels": num_levels}
    if not is_of_sound(tokenizer.config):
        return tokenizer.decode(codes, **arguments), None
    mask = frame_mask(code_lengths(codes), codes.groups[0].shape[2], tokenizer.config.stride)
    if num_speakers(tokenizer.config):
        arguments["speaker_ids"] = speaker_ids
    return tokenizer.decode(codes, attention_mask=mask, **arguments), mask
