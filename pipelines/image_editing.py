"""Which pixels and codes of a given image are kept, and which are made anew.

Shape legend: C × H × W image; per group of the layout a grid h_g × w_g with D_g codes per position.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers.image_utils import PILImageResampling

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.image_decoding import decode_image
from hq_tokenizers.image_processing_hq import HQImageProcessor


def prepare_image_and_mask(
    image: Any, mask: Any, image_processor: HQImageProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels of an image and which of them to repaint, both as the processor resizes and crops.

    Args:
        image: A single image.
        mask: A single image of the same height and width, or larger or smaller in the same proportions. True, or
            brighter than half, marks what to repaint. Where integers go up to 1 only, they are truth values, also the
            indices of a palette whose first two colours are dark.
        image_processor: Of the generator.

    Returns:
        pixel_values (1, C, H, W), and a BoolTensor (1, 1, H, W), True where a pixel of the mask has any share in the
        resized one.

    Raises:
        ValueError: If the proportions differ, or the mask is not black but nowhere brighter than half.
    """
    original = image_processor(image, do_resize=False, do_normalize=False)["pixel_values"]
    pixels = image_processor(_with_unit_range(mask), do_resize=False, do_normalize=False, num_channels=1)
    marked = (pixels["pixel_values"] > 0.5).float()
    brightest = float(pixels["pixel_values"].max())
    if 0 < brightest <= 0.5:
        raise ValueError(
            f"mask marks nothing: greys count from one half on, and its brightest is {brightest:.3g} of 1. Give truth "
            "values, or black and white."
        )
    # Bilinear weights are never negative, so that zero means: nothing of the mask.
    resized = image_processor(marked, num_channels=1, do_normalize=False, resample=PILImageResampling.BILINEAR)
    repaint, pixel_values = resized["pixel_values"] > 0, image_processor(original)["pixel_values"]
    if not _have_one_shape(marked, original) or repaint.shape[-2:] != pixel_values.shape[-2:]:
        sizes = ["{}×{}".format(*tensor.shape[-2:]) for tensor in (marked, original)]
        raise ValueError(
            f"mask and image must have the same height and width, or the same proportions where they are resized, got "
            f"{sizes[0]} and {sizes[1]}."
        )
    return pixel_values, repaint


def _have_one_shape(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether one is the other in another size, up to the rounding of a side."""
    height, width = (a / b for a, b in zip(first.shape[-2:], second.shape[-2:], strict=True))
    smaller = [min(sides) for sides in zip(first.shape[-2:], second.shape[-2:], strict=True)]
    return abs(height / width - 1) < 0.5 / min(smaller)


def untouched_codes(repaint: torch.Tensor, layout: CodeLayout) -> list[torch.Tensor]:
    """Where codes are kept: at positions none of whose pixels is repainted.

    Args:
        repaint: BoolTensor (1, 1, H, W).
        layout: Of the codes of an H × W image.

    Returns:
        One BoolTensor (1, h_g, w_g, D_g) per group.
    """
    masks = []
    for group in layout.groups:
        # Bins of adaptive pooling cover every pixel, also of a grid that does not divide the image.
        touched = functional.adaptive_max_pool2d(repaint.float(), (group.height, group.width))[:, 0] > 0
        masks.append(~touched[..., None].expand(-1, -1, -1, group.depth))
    return masks


def first_levels(num_levels: Any, layout: CodeLayout) -> list[torch.Tensor]:
    """Where codes are kept: in the first levels, coarse to fine.

    Args:
        num_levels: How many levels to keep, 0 … number of levels.
        layout: Of the codes.

    Returns:
        One BoolTensor (1, h_g, w_g, D_g) per group.

    Raises:
        ValueError: If `num_levels` is no integer in the range.
    """
    if isinstance(num_levels, bool) or not hasattr(num_levels, "__index__") or not 0 <= num_levels <= layout.num_levels:
        raise ValueError(
            f"keep_levels must be an integer from 0 to {layout.num_levels}, the number of levels of this generator's "
            f"codes, got {num_levels!r}."
        )
    masks, left = [], operator.index(num_levels)
    for group in layout.groups:
        kept = torch.arange(group.depth) < left
        masks.append(kept.expand(1, group.height, group.width, group.depth))
        left -= group.depth
    return masks


def _with_unit_range(mask: Any) -> Any:
    """Truth values as the numbers 0 and 1, which the image processor would take for almost black."""
    mask = decode_image(mask, "mask")
    if isinstance(mask, Image.Image):
        values = np.array(mask)
        shows_colours = mask.has_transparency_data or (mask.mode == "P" and _first_colours_are_bright(mask))
        is_truth = not shows_colours and values.dtype.kind in "bui" and values.max() <= 1
        return values.astype(np.float32) if is_truth or mask.mode == "F" else mask
    tensor = torch.as_tensor(mask)
    is_truth = not tensor.is_floating_point() and not bool((tensor.float() > 1).any())
    return tensor.float() if is_truth else mask


def _first_colours_are_bright(palette_image: Image.Image) -> bool:
    """Whether the indices 0 and 1 stand for colours, as in a quantised picture, not for classes."""
    indices = Image.frombytes("P", (2, 1), bytes([0, 1]))
    indices.putpalette(palette_image.getpalette() or [])
    return bool(np.asarray(indices.convert("L")).max() > 127)
