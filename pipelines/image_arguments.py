"""Images as users write them: one, a list, a batch, or a stream."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hq_tokenizers.image_decoding import decode_image, is_encoded, is_url

_ARRAYS = (np.ndarray, torch.Tensor)


def is_single_image(image: Any) -> bool:
    """Whether this is one image (PIL, path, URL, bytes, array of 2 or 3 axes) rather than several."""
    if isinstance(image, _ARRAYS):
        return image.ndim in (2, 3)
    return isinstance(image, Image.Image) or is_encoded(image)


def list_images(name: str, images: Any) -> list[Any]:
    """One image, or the images of a list, tuple or array with a batch axis, as a list.

    Args:
        name: What the error calls them.
        images: As users write them.

    Raises:
        TypeError: If it is neither, or an item is not a single image.
        FileNotFoundError: If it is a path that leads to no file.
    """
    if is_single_image(images):
        _check_exists(name, images)
        return [images]
    if not (isinstance(images, (list, tuple)) or (isinstance(images, _ARRAYS) and images.ndim == 4)):
        raise TypeError(
            f"{name} is an image (PIL, path, URL, bytes, array or tensor) or a list of images, got {_describe(images)}."
        )
    for index, item in enumerate(images):
        if not is_single_image(item):
            raise TypeError(f"{name}[{index}] must be a single image, got {_describe(item)}.")
        _check_exists(f"{name}[{index}]", item)
    return list(images)


def _check_exists(name: str, image: Any) -> None:
    """Before the first of many images is worked on."""
    if isinstance(image, (str, os.PathLike)) and not is_url(image) and not os.path.isfile(image):
        raise FileNotFoundError(f"{name}: there is no image file {str(image)!r}.")


def decode_each(name: str, images: Sequence[Any]) -> Iterator[Any]:
    """The images of a list, decoded one by one.

    Args:
        name: What errors call the list.
        images: Single images.

    Raises:
        UnreadableImageError: If one cannot be read, by its index, and its path where it has one.
    """
    for index, image in enumerate(images):
        yield decode_image(image, name if len(images) == 1 else f"{name}[{index}]")


def decode_stream(images: Iterable[Any]) -> Iterator[Any]:
    """The images of a stream, each checked when its turn comes."""
    for index, image in enumerate(images):
        (single,) = list_images("image", [image])
        yield decode_image(single, f"image[{index}]")


def _describe(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, _ARRAYS) else ""
    return f"{type(value).__name__}{shape}"
