"""The JSON report that every command ends with."""

from __future__ import annotations

import math
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from hq_tokenizers._version import __version__
from hq_tokenizers.files import read_json, write_json

from .tracking import Record

REPORT = "report.json"


def write_report(output_dir: Path, report: dict[str, Any]) -> None:
    """Writes `report.json` with the versions that made it; a figure that is not finite becomes text, as in "inf"."""
    versions = {name: version(name) for name in ("torch", "transformers", "datasets")}
    content = {
        **report,
        "versions": {"hq_tokenizers": __version__, "python": platform.python_version(), **versions},
    }
    write_json(output_dir / REPORT, _as_json(content))


def _as_json(value: Any) -> Any:
    """Figures that are not finite as text: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_report(output_dir: Path) -> dict[str, Any]:
    """Reads `report.json`.

    Raises:
        ValueError: If it is damaged.
    """
    return read_json(
        output_dir / REPORT, "so nobody knows which call it is of; delete it, or that folder, or choose another folder"
    )


def changes(now: Mapping[str, Any], earlier: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """What differs between two descriptions, in words; empty when nothing does."""
    names = [name for name in sorted({*now, *earlier} - {*ignored}) if not _is_same(now.get(name), earlier.get(name))]
    return "; ".join(f"{name} was {_in_words(earlier, name)}, is {_in_words(now, name)}" for name in names)


def _in_words(described: Mapping[str, Any], name: str) -> str:
    return repr(described[name]) if name in described else "not set"


def _is_same(first: Any, second: Any) -> bool:
    """Equal; a folder is the same with a slash at its end."""
    if isinstance(first, str) and isinstance(second, str):
        return first == second or first.rstrip("/") == second.rstrip("/") != ""
    return first == second


def check_same_call(
    option: str, folder: str | Path, holds: str, difference: str, remedy: str = ", or delete that one to start over"
) -> None:
    """Refuses to mix in one folder what two calls make.

    Args:
        option: The option that names the folder.
        folder: The folder.
        holds: What is in it.
        difference: How the calls differ, from `changes`; empty when they are the same.
        remedy: What else helps than another folder.

    Raises:
        ValueError: If they differ.
    """
    if difference:
        raise ValueError(
            f"{option} {str(folder)!r} holds {holds} of another call ({difference}): choose another {option}{remedy}."
        )


def images_per_second(history: list[Record]) -> float | None:
    """Median training speed of a history; None when nothing was trained."""
    speeds = [record["images_per_second"] for record in history if record["split"] == "train"]
    return median(speeds) if speeds else None
