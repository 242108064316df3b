"""What tokenizers are given: checked before anything is computed, with the way out in the message."""

from __future__ import annotations

import math
from typing import Any

import torch

from hq_tokenizers.checks import BeamWidth, check_image_size, check_value
from hq_tokenizers.codes import CodeLayout, Codes, values_are_at_hand

from .configuration_image_tokenizer import ImageTokenizerConfig

# Resizing and conversions of types leave values a little outside of [0, 1]; what is beyond has a wrong scale.
_RANGE_TOLERANCE = 1e-3


def check_pixel_values(config: ImageTokenizerConfig, pixel_values: torch.Tensor) -> None:
    """Checks shape and type of a batch, and its values where reading them costs next to nothing.

    Raises:
        TypeError: If it is no tensor of floats.
        ValueError: If its shape or its values are not those that the model takes.
    """
    check_tensor(pixel_values)
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values must have shape (batch, {config.num_channels}, height, width), got "
            f"{tuple(pixel_values.shape)}."
        )
    if not pixel_values.shape[0]:
        raise ValueError("pixel_values is an empty batch: give at least one image.")
    if not pixel_values.is_floating_point() and config.modality == "sound":
        raise TypeError(f"Spectrograms are floats, as HQFeatureExtractor gives them, got {pixel_values.dtype}.")
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values must be floats in [0, 1], got {pixel_values.dtype}: divide integers by 255, or use "
            "HQImageProcessor."
        )
    config.coarsest_grid(tuple(pixel_values.shape[-2:]))
    if values_are_at_hand(pixel_values):
        low, high = (float(bound) for bound in pixel_values.detach().aminmax())
        if config.modality == "sound":
            if not math.isfinite(low) or not math.isfinite(high):
                raise ValueError("pixel_values, the spectrograms, hold values that are NaN or infinite.")
            return
        # Not `low < …`: NaN is neither below nor above.
        if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
            raise ValueError(
                f"pixel_values must lie in [0, 1], found [{low:.4g}, {high:.4g}]: divide [0, 255] by 255, map "
                "[-1, 1] by (x + 1) / 2, or use HQImageProcessor; a decoder's output needs clamp(0, 1)."
            )


def check_label_map(config: Any, label_map: torch.Tensor) -> None:
    """As `check_pixel_values`, for models of label maps."""
    check_tensor(label_map)
    if label_map.ndim != 3 or label_map.dtype != torch.long:
        raise ValueError(
            "This tokenizer takes label maps, LongTensors of shape (batch, height, width), got "
            f"{label_map.dtype} of shape {tuple(label_map.shape)}."
        )
    if not label_map.shape[0]:
        raise ValueError("pixel_values is an empty batch: give at least one label map.")
    check_image_size(tuple(label_map.shape[-2:]), config.stride)
    if values_are_at_hand(label_map):
        low, high = label_map.aminmax()
        if low < 0 or high >= config.num_classes:
            raise ValueError(
                f"The classes of a label map must be 0 to {config.num_classes - 1} (num_classes "
                f"{config.num_classes}), got {low} to {high}: map pixels without a label to a class of their "
                "own."
            )


def check_codes(codes: Codes, num_codes: int) -> None:
    """Checks that these are codes, see `check_is_codes`, and values within their codebooks.

    Raises:
        TypeError: If they are something else, such as a flat tensor.
        ValueError: If a value is out of range.
    """
    check_is_codes(codes, num_codes)
    if values_are_at_hand(codes.groups[0]):
        codes.validate()


def check_is_codes(codes: Codes, num_codes: int) -> None:
    """Checks that these are codes, of `num_codes` an image as a rule; reads no values.

    Raises:
        TypeError: If they are something else, such as a flat tensor.
    """
    if not isinstance(codes, Codes):
        raise TypeError(
            f"Expected Codes, got {type(codes).__name__}: a flat tensor (batch, {num_codes}) "
            "becomes Codes by model.code_layout().unflatten(tensor)."
        )


def check_layout(codes: Codes, layout: CodeLayout) -> None:
    """Checks that codes have a layout.

    Raises:
        ValueError: If they have another.
    """
    # Number by number: torch.compile does not compare dataclasses whose sizes have become symbolic.
    if _sizes(codes.layout) != _sizes(layout):
        coarsest = layout.groups[0]
        raise ValueError(
            f"These codes have the layout {codes.layout}, but this tokenizer's, on a coarsest grid of "
            f"{coarsest.height}×{coarsest.width}, is {layout}."
        )


def check_tensor(pixel_values: Any) -> None:
    """Checks that this is a tensor.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(
            f"pixel_values must be a tensor, got {type(pixel_values).__name__}: an image processor comes first, "
            'HQImageProcessor.for_config(model.config)(image)["pixel_values"].'
        )


def _sizes(layout: CodeLayout) -> list[tuple[int, ...]]:
    return [(group.height, group.width, *group.codebook_sizes) for group in layout.groups]


def check_beam(config: ImageTokenizerConfig, beam_width: int, sample: bool = False) -> int:
    """Checks a beam width for encoding.

    Returns:
        The width as an integer.

    Raises:
        ValueError: If it is out of range, or more than 1 with `sample` or where no grid has several codes per position.
    """
    width: int = check_value("beam_width", beam_width, BeamWidth)
    if width > 1 and sample:
        raise ValueError(f"beam_width {width} searches for codes, and sample draws them: give one of them.")
    if width > 1 and not getattr(config, "has_residual_levels", False):
        raise ValueError(
            f"beam_width is {width}, but no grid of this tokenizer has several codes per position, so that no levels "
            "could be searched together: leave it at 1, or take one that has (rsq_vae, rq_vae, hybrid_vae)."
        )
    return width
