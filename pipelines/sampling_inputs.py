"""What a sample is drawn from, as tensors with a leading 1, which transformers' `Pipeline` joins into batches.

Shape legend: B samples of a batch; T codes of an image; C × H × W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.padding import padding_of_codes

from .image_editing import untouched_codes
from .modeling_hq_generator import HQGeneratorModel

SamplingInputs = dict[str, torch.Tensor]
"""class_labels (B,); where speakers are known speakers (B,); with known codes, known_codes and known_mask (B, T);
with a repainted image, pixel_values (B, C, H, W) and repaint (B, H · W); and seeds (B,), which the pipeline adds."""


def inputs_of_label(label: int, speaker: int | None = None) -> SamplingInputs:
    """Nothing but a class, −1 for none, and a speaker of a generator that knows some, −1 for none."""
    spoken = {} if speaker is None else {"speakers": torch.tensor([speaker])}
    return {"class_labels": torch.tensor([label]), **spoken}


def inputs_of_known_codes(
    condition: SamplingInputs,
    pixel_values: torch.Tensor,
    known_mask: Sequence[torch.Tensor],
    generator: HQGeneratorModel,
    attention_mask: torch.Tensor | None = None,
) -> SamplingInputs:
    """A condition and the codes of an image or a sound, of which some are kept.

    Args:
        condition: `inputs_of_label`.
        pixel_values: (1, C, H, W).
        known_mask: One BoolTensor (1, h_g, w_g, D_g) per group, True where a code is kept.
        generator: Whose codes they are.
        attention_mask: Of a sound, (1, W). The codes of its padding are kept as well, so that it ends where it did.

    Raises:
        ValueError: If the codes have another layout than those of the prior.
    """
    # One image at a time, so that its codes cannot depend on the batch size through a near tie.
    masked = {} if attention_mask is None else {"attention_mask": attention_mask.to(generator.device)}
    codes = generator.image_tokenizer.encode(pixel_values.to(generator.device), **masked).to("cpu")
    if codes.layout != generator.code_layout:
        height, width = pixel_values.shape[-2:]
        given, remedy = (
            ("An image of {}×{} pixels", "let the image processor resize (do_resize=True), or resize before")
            if attention_mask is None
            else ("A sound of {} bands and {} frames", "take the front end that the tokenizer was trained with")
        )
        raise ValueError(
            f"{given.format(height, width)} has codes of the layout {codes.layout}, but the prior models "
            f"{generator.code_layout}: {remedy}."
        )
    if attention_mask is not None:
        padding = padding_of_codes(codes.layout, -(-attention_mask.sum(1) // generator.image_tokenizer.config.stride))
        known_mask = [kept | padded for kept, padded in zip(known_mask, padding, strict=True)]
    mask = torch.cat([kept.flatten(1) for kept in known_mask], dim=1).long()
    return {**condition, "known_codes": codes.flatten(), "known_mask": mask}


def inputs_of_repainting(
    condition: SamplingInputs,
    pixel_values: torch.Tensor,
    repaint: torch.Tensor,
    generator: HQGeneratorModel,
    attention_mask: torch.Tensor | None = None,
) -> SamplingInputs:
    """A condition, an image or a sound, and what of it is kept.

    Args:
        condition: `inputs_of_label`.
        pixel_values: (1, C, H, W).
        repaint: BoolTensor (1, 1, H, W), True where something new is wanted.
        generator: Whose codes they are.
        attention_mask: Of a sound, (1, W).
    """
    kept = untouched_codes(repaint, generator.code_layout)
    # The base class joins tensors of four axes into batches only under the name pixel_values.
    return {
        **inputs_of_known_codes(condition, pixel_values, kept, generator, attention_mask),
        "pixel_values": pixel_values,
        "repaint": repaint.flatten(1),
    }


def known_arguments(inputs: SamplingInputs, layout: CodeLayout) -> dict[str, Any]:
    """The arguments of `HQGeneratorModel.generate` for the known codes of a batch, where it has some."""
    if "known_codes" not in inputs:
        return {}
    return {
        "known_codes": layout.unflatten(inputs["known_codes"]),
        "known_mask": [kept.bool() for kept in layout.unflatten(inputs["known_mask"]).groups],
    }


def put_kept_pixels_back(images: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """Images (B, C, H, W), with the given pixels wherever nothing was to be repainted."""
    if "repaint" not in inputs:
        return images
    pixel_values = inputs["pixel_values"]
    return torch.where(inputs["repaint"].unflatten(1, (1, *pixel_values.shape[-2:])), images, pixel_values)
