"""JSON records of finished runs, which make a comparison of many hours resumable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from hq_tokenizers.files import write_text
from hq_tokenizers.options.data import DataConfig

Record = dict[str, Any]


def slug(name: str) -> str:
    """A name as that of a file."""
    return "".join(character if character.isalnum() else "_" for character in name.lower())


def check_names(*groups: Iterable[str]) -> None:
    """Checks that different names become different files, and that `--only` can name them.

    Raises:
        SystemExit: If two names of a group do not, or a name has a comma.
    """
    for names in groups:
        seen: dict[str, str] = {}
        for name in names:
            if "," in name:
                raise SystemExit(
                    f"error: the name {name!r} has a comma, which separates names after --only: rename it."
                )
            if slug(name) in seen:
                other = seen[slug(name)]
                raise SystemExit(f"error: {other!r} and {name!r} would both be the file {slug(name)!r}: rename one.")
            seen[slug(name)] = name


def data_description(data: DataConfig) -> Record:
    """What of the data makes two runs comparable; where they lie and how they are read is no part of it."""
    usual = asdict(DataConfig()) | {"path": data.path, "num_workers": data.num_workers}
    return {key: value for key, value in asdict(data).items() if value != usual[key]}


def write_record(path: Path, record: Record) -> None:
    """Writes a record, whole or not at all: half a record would stop every later call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path, description: Mapping[str, Any]) -> Record | None:
    """The record of a finished run, or None.

    Args:
        path: Its file.
        description: What the record has to be of.

    Raises:
        SystemExit: If the record is of something else, or damaged.
    """
    if not path.is_file():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"error: {path} is no record ({error}): delete it to train anew.") from error
    for key, now in description.items():
        if record.get(key) != now:
            raise SystemExit(
                f"error: {path} is of a run with {key} {record.get(key)}, the configuration says {now}. Delete the "
                "record and the run's folder to train anew, or give the comparison another name and output_dir."
            )
    return record


def is_deterministic(runs: Sequence[Record]) -> bool:
    """Whether tokenizers have neither a posterior over codes nor one over continuous latents."""
    return not {"discrete", "kl"} & set(runs[0]["test"])


def level_usage(run: Record) -> list[float]:
    """Perplexity / K of every level of a tokenizer; none for a VAE."""
    sizes = run["codebook_sizes"]
    return [value / size for value, size in zip(run["test"].get("perplexity", []), sizes, strict=True)]


def level_means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Level by level the mean over runs."""
    return [mean(column) for column in zip(*rows, strict=True)]
