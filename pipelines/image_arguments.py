"""Images as users write them: one, a list or column, a batch, or a stream."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL import Image

from hq_tokenizers.checks import is_list
from hq_tokenizers.image_decoding import decode_image, is_encoded, is_url

_ARRAYS = (np.ndarray, torch.Tensor)


def is_single_image(image: Any) -> bool:
    """Whether this is one image (PIL, path, URL, open file, bytes, array of 2 or 3 axes) rather than several."""
    if isinstance(image, _ARRAYS):
        return image.ndim in (2, 3)
    return isinstance(image, Image.Image) or is_encoded(image) or _is_matrix(image)


def _is_matrix(values: Any) -> bool:
    """Whether this is a grey image as lists of numbers."""
    row = values[0] if isinstance(values, (list, tuple)) and values else None
    return isinstance(row, (list, tuple)) and bool(row) and isinstance(row[0], Number)


def list_images(name: str, images: Any) -> list[Any]:
    """One image, or the images of a list, tuple, column or array with a batch axis, as a list.

    Args:
        name: What the error calls them.
        images: As users write them.

    Raises:
        TypeError: If it is neither, or an item is not a single image.
        FileNotFoundError: If it is a path that leads to no file.
    """
    if is_single_image(images):
        return [_checked(name, images)]
    if not (is_list(images) or (isinstance(images, _ARRAYS) and images.ndim == 4)):
        raise TypeError(
            f"{name} is an image (PIL, path, URL, open file, bytes, array or tensor) or a list of images, got "
            f"{_describe(images)}."
        )
    listed = []
    # Once: a column of `datasets` decodes an image whenever it is asked for it.
    for index, item in enumerate(images):
        if not is_single_image(item):
            raise TypeError(f"{name}[{index}] must be a single image, got {_describe(item)}.")
        listed.append(_checked(f"{name}[{index}]", item))
    return listed


def _checked(name: str, image: Any) -> Any:
    """A single image, before the first of many is worked on."""
    if isinstance(image, (str, os.PathLike)) and not is_url(image) and not os.path.isfile(image):
        raise FileNotFoundError(f"{name}: there is no image file {str(image)!r}.")
    if not _is_matrix(image):
        return image
    try:
        return np.asarray(image)
    except ValueError as error:
        raise ValueError(f"{name}: the rows of a list of numbers have one length.") from error


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
    kind = type(value).__name__
    if isinstance(value, _ARRAYS):
        return f"{kind} of shape {tuple(value.shape)}"
    columns = list(value) if isinstance(value, Mapping) else getattr(value, "column_names", None)
    if columns and isinstance(columns, list):
        return f"a {kind} of {', '.join(map(str, columns))}: give one of these, such as data[{columns[0]!r}]"
    return kind
