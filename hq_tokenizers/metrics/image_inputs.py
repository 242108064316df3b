"""What the metrics accept as images, and what they say about everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hq_tokenizers.checks import is_list
from hq_tokenizers.image_decoding import decode_image

# Resampling and dtype conversions leave values a few ulps outside [0, 1]; anything beyond this is a wrong range.
_RANGE_TOLERANCE = 1e-4
_ACCEPTED = (
    "images are a tensor (B, C, H, W) with C = 1 or 3, uint8 in [0, 255] or float in [0, 1], or a list of PIL images"
)


def as_pixels(images: Any, side: str) -> torch.Tensor:
    """Validates a batch of images.

    Args:
        images: A tensor (B, C, H, W), C = 1 or 3, uint8 in [0, 255] or float in [0, 1]; or a list of PIL images of mode
            "L" or "RGB" or of tensors (C, H, W), all of one size.
        side: What the images are called in error messages, such as "predictions".

    Returns:
        uint8 (B, C, H, W), or float32 / float64 in [0, 1].

    Raises:
        TypeError: If the type or the dtype is another one.
        ValueError: If the shape, the mode or the range is wrong, sizes differ, or a pixel is NaN or infinite.
    """
    if is_list(images) and not isinstance(images, torch.Tensor):
        images = _stack(images, side)
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{side}: {_ACCEPTED}; got {type(images).__name__}.")
    _check_shape(images, side)
    if images.dtype == torch.uint8:
        return images
    if not images.dtype.is_floating_point:
        raise TypeError(f"{side}: {_ACCEPTED}; got {images.dtype}. Use images.to(torch.uint8) for values 0 to 255.")
    pixels = images if images.dtype == torch.float64 else images.float()
    _check_values(pixels, side)
    return pixels.clamp(0, 1)


def check_pair(predictions: torch.Tensor, references: torch.Tensor) -> None:
    """Checks that two batches can be compared pixel by pixel.

    Raises:
        ValueError: If the number of images, channels or the size differs.
        TypeError: If one batch is uint8 and the other float.
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"Predictions {tuple(predictions.shape)} and references {tuple(references.shape)} are compared image by "
            "image and must have one shape (B, C, H, W): resize or convert one side first."
        )
    if (predictions.dtype == torch.uint8) != (references.dtype == torch.uint8):
        raise TypeError(
            f"Predictions are {predictions.dtype} and references {references.dtype}; rounding only one side to 8 bits "
            "distorts the comparison. Give both as uint8 in [0, 255] or both as floats in [0, 1] (images / 255)."
        )


def check_rgb(pixels: torch.Tensor, side: str, network: str) -> None:
    """Checks that images have the three channels a pretrained network expects.

    Raises:
        ValueError: If they are grey.
    """
    if pixels.shape[1] != 3:
        raise ValueError(
            f"{side}: {network} looks at RGB images, got {pixels.shape[1]} channel. Repeat the grey channel with "
            'images.expand(-1, 3, -1, -1), or image.convert("RGB") for PIL images.'
        )


def quantize(pixels: torch.Tensor) -> torch.Tensor:
    """Images as they would be stored in 8 bits: floats in [0, 1] become round(255 x)."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)


def to_unit_range(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images as floats in [0, 1]: uint8 values are divided by 255."""
    return pixels.to(dtype) / 255 if pixels.dtype == torch.uint8 else pixels.to(dtype)


def _stack(images: Sequence[Any], side: str) -> torch.Tensor:
    if not len(images):
        raise ValueError(f"{side}: the list of images is empty.")
    tensors = [image if isinstance(image, torch.Tensor) else _from_pil(image, side) for image in images]
    for tensor in tensors:
        if tensor.shape != tensors[0].shape:
            raise ValueError(
                f"{side}: images of one batch must have one shape (C, H, W), got {tuple(tensors[0].shape)} and "
                f"{tuple(tensor.shape)}: resize or convert them first."
            )
        if tensor.dtype != tensors[0].dtype:
            raise TypeError(
                f"{side}: images of one batch must have one type, got {tensors[0].dtype} and {tensor.dtype}: give all "
                "as uint8 in [0, 255] or all as floats in [0, 1]."
            )
    return torch.stack(tensors)


def _from_pil(image: Any, side: str) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(f"{side}: {_ACCEPTED}; got a list of {type(image).__name__}.")
    # Upright, as every other part sees it.
    image = decode_image(image, side)
    if image.mode not in ("L", "RGB"):
        raise ValueError(f'{side}: PIL images have mode "RGB" or "L", got {image.mode!r}: use image.convert("RGB").')
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def _check_shape(images: torch.Tensor, side: str) -> None:
    shape = tuple(images.shape)
    if images.ndim == 3:
        raise ValueError(f"{side}: {_ACCEPTED}; got the shape {shape}. Add the batch dimension with images[None].")
    if images.ndim != 4:
        raise ValueError(f"{side}: {_ACCEPTED}; got the shape {shape}.")
    if shape[1] not in (1, 3):
        hint = " Channels come first: use images.permute(0, 3, 1, 2)." if shape[3] in (1, 3) else ""
        raise ValueError(f"{side}: {_ACCEPTED}; got the shape {shape}.{hint}")
    if not images.numel():
        raise ValueError(f"{side}: the batch holds no pixels, its shape is {shape}.")


def _check_values(pixels: torch.Tensor, side: str) -> None:
    finite = torch.isfinite(pixels).flatten(1).all(dim=1)
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise ValueError(f"{side}: image {bad} of the batch has NaN or infinite pixels.")
    low, high = (float(bound) for bound in pixels.aminmax())
    if low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE:
        return
    if high > 2 and low >= 0:
        hint = "for values 0 to 255 pass uint8 or divide by 255"
    elif low >= -1 - _RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE:
        hint = "for values in [-1, 1] use (images + 1) / 2; a decoder's output is not clamped, use images.clamp(0, 1)"
    else:
        hint = "a decoder's output is not clamped, use images.clamp(0, 1)"
    raise ValueError(f"{side}: float images lie in [0, 1], these in [{low:.4g}, {high:.4g}]: {hint}.")
