"""From a `DataConfig` to `datasets` splits, with every mistake named before any work is done."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hq_tokenizers.options.data import DataConfig

from .digits import load_digits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_source(config: DataConfig) -> DatasetDict:
    """All splits of the configured data set.

    Raises:
        FileNotFoundError: If the path does not exist or a pattern matches nothing.
        ConnectionError: If a Hub data set cannot be reached.
    """
    from datasets import DatasetDict, load_dataset

    if config.name == "digits":
        return load_digits()
    if config.name in ("imagefolder", "parquet"):
        root = Path(str(config.path)).expanduser()
        if config.files is None and root.is_dir():
            source = load_dataset(config.name, data_dir=str(root))
        else:
            source = load_dataset(config.name, data_files=_data_files(config, root))
    else:
        source = _load_hub_dataset(config)
    if not isinstance(source, DatasetDict):
        raise TypeError(f"data.name {config.name!r} gave {type(source).__name__}, expected splits.")
    return source


def select_split(source: DatasetDict, split: str, option_name: str = "split") -> Dataset:
    """The rows of a split or of a slice of it, such as "train[:40000]", "train[90%:]" or "train+test".

    Args:
        source: All splits.
        split: What to select, in the notation of `datasets`.
        option_name: The option to name in errors.

    Raises:
        ValueError: If the split is unknown, malformed, empty, or reaches beyond the data.
    """
    from datasets import ReadInstruction, concatenate_datasets

    sizes = {name: rows.num_rows for name, rows in source.items()}
    accepted = ", ".join(f"{name} ({size} rows)" for name, size in sizes.items())
    try:
        asked = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f'data.{option_name} {split!r} is not one of {accepted}, nor a slice of one such as "train[:1000]".'
        ) from error
    for name, bounds in re.findall(r"(\w+)\[([-\d:]+)\]", split):
        # `datasets` silently cuts a slice to what is there, which would train on less than the recipe says.
        if any(abs(int(bound)) > sizes[name] for bound in bounds.split(":") if bound):
            raise ValueError(f"data.{option_name} {split!r} reaches beyond the data: there are {accepted}.")
    parts = [source[str(part.splitname)].select(range(part.from_ or 0, part.to)) for part in asked]
    rows = concatenate_datasets(parts)
    if rows.num_rows == 0:
        raise ValueError(f"data.{option_name} {split!r} selects no rows; there are {accepted}.")
    return rows


def _data_files(config: DataConfig, root: Path) -> dict[str, list[str]]:
    """Existing files per split."""
    if config.files is None:
        return {"train": _matches(root)}
    patterns = {split: [p] if isinstance(p, str) else p for split, p in config.files.items()}
    return {split: [f for p in many for f in _matches(root / p)] for split, many in patterns.items()}


def _matches(pattern: Path) -> list[str]:
    found = sorted(path for path in glob.glob(str(pattern), recursive=True) if Path(path).is_file())
    if not found:
        parent = pattern.parent
        there = sorted(p.name for p in parent.iterdir())[:10] if parent.is_dir() else None
        hint = f"the folder holds {', '.join(there)}" if there else f"the folder {str(parent)!r} does not exist"
        raise FileNotFoundError(f"data.path / data.files: nothing matches {str(pattern)!r}; {hint}.")
    return found


def _load_hub_dataset(config: DataConfig) -> DatasetDict:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(config.name)
    except (ConnectionError, DatasetNotFoundError) as error:
        raise ConnectionError(
            f"data.name {config.name!r} is neither digits, imagefolder nor parquet, and no data set of that id could "
            f"be read from the Hub ({error})."
        ) from error
