"""Classes of images: which column holds them, and their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

NO_CLASSES = "none"
# More would be numbers of something else, such as users, and fill the memory with their names.
MAX_CLASSES = 100_000
USUAL_COLUMN = "label"

Classes = tuple[torch.Tensor | None, list[str] | None]


class _NoClassesError(ValueError):
    """What a column holds instead of classes."""


def read_classes(
    column: str | None, source: DatasetDict, rows: Dataset, notes: dict[str, None], option: str = "data.label_column"
) -> Classes:
    """Classes of rows, and their names.

    Args:
        column: The column that the user chose; "none" for no classes. None takes "label" where that holds classes by
            name or number, one in every row.
        source: All splits, which have the names of text classes in common; parts of one split also the numbers.
        rows: The rows.
        notes: Takes what is to be said about a column that is not used.
        option: The option that chose it, to name in errors.

    Returns:
        LongTensor (N,) and the names; None and None without classes.

    Raises:
        ValueError: If the column that the user chose holds no classes, or too many.
    """
    if column == NO_CLASSES or (column is None and USUAL_COLUMN not in rows.column_names):
        return None, None
    name = USUAL_COLUMN if column is None else column
    if name not in rows.column_names:
        raise ValueError(
            f"{option} {name!r} is no column of classes (by name, number or text). Columns that are: "
            f"{', '.join(column for column in rows.column_names if _can_be_classes(rows, column)) or 'none'}."
        )
    if column is None and all(value is None for value in rows[name]):
        # What `datasets` gives folders of images without folders of classes.
        return None, None
    try:
        values, names = _read(source, rows, name, option, chosen=column is not None)
    except _NoClassesError as error:
        if column is not None:
            raise ValueError(
                f"{option} {name!r} {error}. Choose another column, or {NO_CLASSES} for no classes."
            ) from error
        notes[
            f"the column {name!r} {error}, and is not used: set {option} to choose a column of classes, or "
            f"{NO_CLASSES}."
        ] = None
        return None, None
    return torch.from_numpy(values), names


def _read(source: DatasetDict, rows: Dataset, column: str, option: str, chosen: bool) -> tuple[np.ndarray, list[str]]:
    """The classes and their names; what the user chose may also be texts or whole numbers."""
    from datasets import ClassLabel

    kind = rows.features[column]
    if not _can_be_classes(rows, column):
        raise _NoClassesError(f"holds {_describe(kind)}, not classes")
    values = rows[column][:]
    names = list(kind.names) if isinstance(kind, ClassLabel) else None
    missing = sum(value is None for value in values)
    if missing:
        raise _NoClassesError(f"has {missing:,} rows without a class")
    if names is None and not chosen and "int" not in kind.dtype:
        raise _NoClassesError(f"holds {_describe(kind)}, not classes")
    if names is None and "string" in kind.dtype:
        names = sorted({text for split in source.values() for text in split.unique(column) if text is not None})
        number_of = {text: number for number, text in enumerate(names)}
        values = [number_of[text] for text in values]
    numbers = np.asarray(values)
    if not np.array_equal(numbers, np.floor(numbers)):
        raise _NoClassesError("holds fractions or NaN, not classes")
    if numbers.min() < 0 or (names is not None and numbers.max() >= len(names)):
        last = "" if names is None else f" to {len(names) - 1}"
        raise _NoClassesError(f"holds {numbers.min()} to {numbers.max()}; classes go from 0{last}")
    largest = _largest_class(source, rows, column) if names is None else len(names) - 1
    if largest >= MAX_CLASSES:
        raise ValueError(
            f"{option} {column!r} holds the class {largest}, but there can be {MAX_CLASSES:,} classes: "
            f"choose another column, or {NO_CLASSES} for no classes."
        )
    return numbers.astype(np.int64), names or [str(label) for label in range(int(largest) + 1)]


def _largest_class(source: DatasetDict, rows: Dataset, column: str) -> float:
    """The largest class number, which parts of one split have in common, even where only one of them shows it."""
    whole = rows if len(source) > 1 else next(iter(source.values()))
    return max(value for value in whole.unique(column) if value is not None and not np.isnan(value))


def _can_be_classes(rows: Dataset, column: str) -> bool:
    from datasets import ClassLabel, Value

    kind = rows.features[column]
    return isinstance(kind, ClassLabel) or (
        isinstance(kind, Value) and any(word in kind.dtype for word in ("int", "float", "bool", "string"))
    )


def _describe(kind: Any) -> str:
    dtype = getattr(kind, "dtype", "")
    words = {"string": "texts", "float": "numbers that are not whole by type", "bool": "truth values"}
    return next((said for word, said in words.items() if word in str(dtype)), "lists or records")
