"""Checks that the configurations share; each error names the field, its value and the accepted ones."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raises a ValueError unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}.")


def check_minimum(name: str, value: float, minimum: float) -> None:
    """Raises a ValueError if `value` is below `minimum` or no finite number."""
    _check_number(name, value)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raises a ValueError unless `value` is a finite number above 0."""
    _check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be above 0, got {value}.")


def _check_number(name: str, value: object) -> None:
    # The types of the fields are checked after these checks, which would compare text with numbers.
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")


def image_height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image size given as an integer or a pair."""
    if isinstance(image_size, int):
        return image_size, image_size
    if isinstance(image_size, str) or len(image_size) != 2:
        raise ValueError(f"image_size must be an integer or [height, width], got {image_size!r}.")
    return image_size[0], image_size[1]


def check_image_size(image_size: int | Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width), after checking that the stride divides both.

    Raises:
        ValueError: If it does not, naming the nearest sizes that fit.
    """
    height, width = image_height_width(image_size)
    for side in (height, width):
        if side < stride or side % stride:
            lower = max(stride, side // stride * stride)
            nearest = f"{lower}" if side < stride else f"{lower} or {lower + stride}"
            raise ValueError(
                f"Images of {height}×{width} do not fit a tokenizer of stride {stride}: both sides must be multiples "
                f"of {stride}; instead of {side}, use {nearest}."
            )
    return height, width
