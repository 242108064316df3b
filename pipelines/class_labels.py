"""Class labels and speakers as users write them: names, ids, or nothing."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

NULL_LABEL = -1
_MAX_LISTED = 12


def is_single_label(class_labels: Any) -> bool:
    """Whether this is one label (None, a name, an id) rather than several."""
    if class_labels is None or isinstance(class_labels, str):
        return True
    return getattr(class_labels, "ndim", None) == 0 or not hasattr(class_labels, "__len__")


@dataclass(frozen=True)
class _Words:
    """What errors call a label, the argument, and where the names are."""

    argument: str
    label: str
    one: str
    many: str
    attribute: str
    none: str
    optional: bool = True
    """Whether an item may have none of them."""


_CLASSES = _Words(
    *("class_labels", "class label", "class", "classes", "model.config.id2label"),
    "this model is unconditional, leave class_labels out.",
)
_SPEAKERS = _Words(
    *("speakers", "speaker", "speaker", "speakers", "model.config.speaker_names"),
    "this model knows no speakers, leave speakers out.",
)
_NEEDED_SPEAKERS = replace(_SPEAKERS, optional=False)


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
    return _resolve_all(class_labels, id2label, _CLASSES)


def resolve_speakers(speakers: Any, names: Mapping[int, str], needed: bool = False) -> list[int]:
    """Ids of speakers, as `resolve_class_labels` has those of classes.

    Args:
        speakers: A name, an id, None or −1 for no speaker; or a list, array or tensor of such.
        names: Names of the speakers by id; empty for a model that knows none.
        needed: Whether no speaker will not do.

    Raises:
        TypeError: As `resolve_class_labels` does.
        ValueError: Likewise, or if a speaker is needed and not given.
    """
    found = _resolve_all(speakers, names, _NEEDED_SPEAKERS if needed else _SPEAKERS)
    if needed and NULL_LABEL in found:
        listed = ", ".join(map(repr, list(names.values())[:_MAX_LISTED]))
        raise ValueError(f"This model decodes for a speaker: say who speaks by speakers, such as {listed}.")
    return found


def _resolve_all(given: Any, names: Mapping[int, str], words: _Words) -> list[int]:
    if is_single_label(given):
        return [_resolve(given, names, words)]
    if isinstance(given, (set, Mapping)):
        raise TypeError(f"{words.argument} have an order: give a list, not a {type(given).__name__}.")
    labels: Sequence[Any] = given.tolist() if hasattr(given, "tolist") else list(given)
    return [_resolve(label, names, words) for label in labels]


def resolve_single_label(class_label: Any, id2label: Mapping[int, str]) -> int:
    """The class id of one input of a stream, or of all of them.

    Raises:
        TypeError: If there are several labels.
        ValueError: As `resolve_class_labels` does.
    """
    if not is_single_label(class_label):
        raise TypeError(f"A stream has one class label per input, or one for all of them, got {class_label!r}.")
    return resolve_class_labels(class_label, id2label)[0]


def resolve_labels_of_images(
    class_labels: Any, num_images: int, id2label: Mapping[int, str], items: str = "images"
) -> list[int]:
    """One class id per image, or sound, of one label per image or one for all.

    Raises:
        ValueError: If there are several labels but not one per image, or as `resolve_class_labels` does.
    """
    return _one_for_each(class_labels, resolve_class_labels(class_labels, id2label), num_images, "class_labels", items)


def resolve_speakers_of_sounds(
    speakers: Any, num_sounds: int, names: Mapping[int, str], needed: bool = False
) -> list[int]:
    """One id per sound, of one speaker per sound or one for all.

    Raises:
        ValueError: If there are several speakers but not one per sound, or as `resolve_speakers` does.
    """
    return _one_for_each(speakers, resolve_speakers(speakers, names, needed), num_sounds, "speakers", "sounds")


def _one_for_each(given: Any, values: list[int], number: int, name: str, items: str) -> list[int]:
    if is_single_label(given):
        return values * number
    if len(values) != number:
        raise ValueError(f"Got {len(values)} {name} for {number} {items}: give one per {items[:-1]}, or one for all.")
    return values


def _resolve(label: Any, id2label: Mapping[int, str], words: _Words) -> int:
    if label is None:
        return NULL_LABEL
    if isinstance(label, str):
        return _resolve_name(label, id2label, words)
    try:
        if isinstance(label, bool):
            raise TypeError
        index = operator.index(label)
    except TypeError:
        accepted = f"a name, an integer, or None for no {words.one}" if words.optional else "a name or an integer"
        raise TypeError(f"A {words.label} is {accepted}, got {label!r} of type {type(label).__name__}.") from None
    if index != NULL_LABEL and index not in id2label:
        raise ValueError(
            f"{words.label.capitalize()} {index} is out of range: "
            + (
                f"this model has the {words.many} 0 to {len(id2label) - 1}"
                + (f", and None for no {words.one}." if words.optional else ".")
                if id2label
                else words.none
            )
        )
    return index


def _matching(name: str, id2label: Mapping[int, str]) -> list[int]:
    """The classes, or speakers, that a name may mean, by the strictest of four readings that any class fits.

    Letter by letter; whatever the case; whatever stands between letters and digits ("ankle_boot"); or one of several
    names of a class, which commas and slashes part ("t-shirt" for "T-shirt/top").
    """

    def folded(text: str) -> str:
        return text.casefold()

    def letters(text: str) -> str:
        return re.sub(r"[\W_]+", "", text.casefold())

    for spelling in (str, folded, letters):
        if matches := [index for index, known in id2label.items() if spelling(known) == spelling(name) != ""]:
            return matches
    wanted = letters(name)
    return [index for index, known in id2label.items() if wanted and wanted in map(letters, re.split(r"[,/]", known))]


def _resolve_name(name: str, id2label: Mapping[int, str], words: _Words) -> int:
    if not id2label:
        raise ValueError(f"{words.label.capitalize()} {name!r} is unknown: {words.none}")
    matches = _matching(name, id2label)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"Several {words.many} are called {name!r}: give one of the ids {matches}.")
    names = list(id2label.values())
    folded = {known.casefold(): known for known in names}
    if len(names) <= _MAX_LISTED:
        near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1)]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown {words.one} {name!r}; the {words.many} are {', '.join(map(repr, names))}.{hint}")
    nearest = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=5, cutoff=0.3)]
    nearest = nearest or names[:5]
    raise ValueError(
        f"Unknown {words.one} {name!r}; the nearest of the {len(names)} names are {', '.join(map(repr, nearest))}. "
        f"All are in {words.attribute}."
    )
