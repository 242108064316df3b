"""Class labels as users write them: names, ids, or nothing."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

NULL_LABEL = -1
_MAX_LISTED = 12


def is_single_label(class_labels: Any) -> bool:
    """Whether this is one label (None, a name, an id) rather than several."""
    if class_labels is None or isinstance(class_labels, str):
        return True
    return getattr(class_labels, "ndim", None) == 0 or not hasattr(class_labels, "__len__")


def resolve_class_labels(class_labels: Any, id2label: Mapping[int, str]) -> list[int]:
    """Class ids of labels.

    Args:
        class_labels: A name of `id2label`, an id, or None or −1 for no class; or a list, array or tensor of such.
        id2label: Names of the classes 0 … C−1; empty for an unconditional model.

    Returns:
        One id per label, −1 for no class.

    Raises:
        ValueError: If an id is out of range, a name is unknown (the error lists the nearest names) or ambiguous, or
            the model is unconditional.
        TypeError: If a label is neither a name nor an integer.
    """
    if is_single_label(class_labels):
        return [_resolve(class_labels, id2label)]
    if isinstance(class_labels, (set, Mapping)):
        raise TypeError(f"class_labels have an order: give a list, not a {type(class_labels).__name__}.")
    labels: Sequence[Any] = class_labels.tolist() if hasattr(class_labels, "tolist") else list(class_labels)
    return [_resolve(label, id2label) for label in labels]


def resolve_single_label(class_label: Any, id2label: Mapping[int, str]) -> int:
    """The class id of one input of a stream, or of all of them.

    Raises:
        TypeError: If there are several labels.
        ValueError: As `resolve_class_labels` does.
    """
    if not is_single_label(class_label):
        raise TypeError(f"A stream has one class label per input, or one for all of them, got {class_label!r}.")
    return resolve_class_labels(class_label, id2label)[0]


def resolve_labels_of_images(class_labels: Any, num_images: int, id2label: Mapping[int, str]) -> list[int]:
    """One class id per image, of one label per image or one for all.

    Raises:
        ValueError: If there are several labels but not one per image, or as `resolve_class_labels` does.
    """
    labels = resolve_class_labels(class_labels, id2label)
    if is_single_label(class_labels):
        return labels * num_images
    if len(labels) != num_images:
        raise ValueError(f"Got {len(labels)} class_labels for {num_images} images: give one per image, or one for all.")
    return labels


def _resolve(label: Any, id2label: Mapping[int, str]) -> int:
    if label is None:
        return NULL_LABEL
    if isinstance(label, str):
        return _resolve_name(label, id2label)
    try:
        if isinstance(label, bool):
            raise TypeError
        index = operator.index(label)
    except TypeError:
        raise TypeError(
            f"A class label is a name, an integer, or None for no class, got {label!r} of type {type(label).__name__}."
        ) from None
    if index != NULL_LABEL and index not in id2label:
        raise ValueError(
            f"Class label {index} is out of range: "
            + (f"this model has the classes 0 to {len(id2label) - 1}, and None for no class." if id2label else _NONE)
        )
    return index


_NONE = "this model is unconditional, leave class_labels out."


def _resolve_name(name: str, id2label: Mapping[int, str]) -> int:
    if not id2label:
        raise ValueError(f"Class label {name!r} is unknown: {_NONE}")
    matches = [index for index, known in id2label.items() if known == name]
    matches = matches or [index for index, known in id2label.items() if known.casefold() == name.casefold()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"Several classes are called {name!r}: give one of the ids {matches}.")
    names = list(id2label.values())
    if len(names) <= _MAX_LISTED:
        raise ValueError(f"Unknown class {name!r}; the classes are {', '.join(map(repr, names))}.")
    folded = {known.casefold(): known for known in names}
    nearest = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=5, cutoff=0.3)]
    nearest = nearest or names[:5]
    raise ValueError(
        f"Unknown class {name!r}; the nearest of the {len(names)} names are {', '.join(map(repr, nearest))}. All are "
        "in model.config.id2label."
    )
