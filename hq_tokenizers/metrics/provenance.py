"""The header that makes a number reproducible, and the refusal to compare numbers whose headers disagree."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hq_tokenizers._version import __version__

_LIBRARIES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "evaluate", "numpy", "pillow")


def library_versions(libraries: Sequence[str] | None = None) -> dict[str, str]:
    """Versions of this package and of libraries, absent ones left out.

    Args:
        libraries: Their names; None for those that a metric's value may depend on.
    """
    versions = {"hq_tokenizers": __version__}
    for library in _LIBRARIES if libraries is None else libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    """Refuses two descriptions that differ.

    Args:
        ours: This metric's description, nested dictionaries of plain values.
        theirs: The other's.
        what: What the other is, for the message.

    Raises:
        ValueError: Naming the first field that differs and both values.
    """
    flat_ours, flat_theirs = dict(_flatten(ours)), dict(_flatten(theirs))
    for field in flat_ours | flat_theirs:
        mine, other = flat_ours.get(field), flat_theirs.get(field)
        if mine != other:
            raise ValueError(
                f"{what} cannot be compared with this metric: {field} is {other!r} there and {mine!r} here. Numbers "
                "made differently do not compare; make both with one setting."
            )


def _flatten(description: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in description.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
