"""Generators that come with the package: small, trained, there without a network."""

from __future__ import annotations

import os
from pathlib import Path

from .checks import check_choice

DEFAULT = "fashion-mnist"
"""Where nothing else is named: by `pipeline("hq-generation")` and the app."""
DEFAULT_OF_SOUNDS = "spoken-digits"
"""By `pipeline("hq-audio-generation")`."""

_FOLDER = Path(__file__).resolve().parent / "pretrained"


def pretrained(name: str) -> str:
    """The folder of a generator that comes with the package, for `from_pretrained` and `pipeline`.

    Its weights are stored in 16 bits and load as float32. docs/pretrained.md says how each was made and how good it is.

    Args:
        name: One of `pretrained_names()`, such as "fashion-mnist".

    Returns:
        The path of the folder.

    Raises:
        ValueError: For an unknown name; the error lists the known ones.

    Example:
        >>> from transformers import pipeline
        >>> draw = pipeline("hq-generation", model=pretrained("fashion-mnist"))
        >>> draw("sneaker", seed=0).size
        (28, 28)
    """
    check_choice("name", name, pretrained_names())
    return str(_FOLDER / name.replace("-", "_"))


def folder_of(path: str) -> str:
    """What an option that names a model means: the folder of `pretrained` for its names, anything else as it is.

    A folder of that name in the working directory comes first.
    """
    return pretrained(path) if path in pretrained_names() and not Path(path).exists() else path


def can_name_a_model(path: str) -> bool:
    """Whether a path is there, or can be an id on the Hub, owner/name: to ask it for others would only take time."""
    return "/" in path or os.path.exists(path)


def not_a_model(path: str, kind: str) -> str:
    """The start of an error about what cannot name a model; `kind` has its article."""
    return f"{path!r} is neither the folder of {kind} nor the id of one on the Hub, as in owner/name"


def pretrained_names() -> tuple[str, ...]:
    """The names that `pretrained` knows, in alphabetical order."""
    return tuple(sorted(path.parent.name.replace("_", "-") for path in _FOLDER.glob("*/config.json")))
