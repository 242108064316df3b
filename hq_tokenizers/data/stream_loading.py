"""From a `DataConfig` to a stream of training images, and the first images of the other splits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.processes import is_main_process

from .augmentation import Augmentation
from .classes import NO_CLASSES, USUAL_COLUMN
from .images import ImageRows, RowNames
from .loading import LOOKED_AT, as_stored, image_column, image_format_of, load_rows
from .sources import load_streams
from .streams import MAX_PARTS, ImageStream, is_there

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def load_streamed_splits(config: DataConfig, classes: bool = False) -> tuple[ImageStream, ImageRows, ImageRows]:
    """The training split as a stream, and the first images of validation and test; validation again where there is no
    test split.

    Of data with one split only, its first part (a file, or a row group of parquet) is the validation split that
    `validation_split` names by default.

    Args:
        config: Options.
        classes: Whether to read classes, of which training a tokenizer has no use. Those of a stream are known by name
            or number.

    Raises:
        FileNotFoundError: For a wrong path.
        ValueError: For a wrong split, column or size, naming the accepted values; for classes by texts.
    """
    streams, files = load_streams(config)
    streams = {split: _with_images_as_stored(stream) for split, stream in streams.items()}
    usual = (config.train_split, config.validation_split, config.test_split)
    is_held_out = list(streams) == ["train"] and usual == ("train", DataConfig.validation_split, None)
    train = _split(streams, config.train_split, "train_split")
    num_parts = min(train.num_shards, MAX_PARTS)
    if is_held_out and num_parts == 1:
        raise ValueError(
            "There is one split only, 'train', in one part (a file, or a row group of parquet), of which none can be "
            "held out: name files of others by data.files, or set data.validation_split to train, to validate on the "
            "same."
        )
    if is_held_out:
        validation = train.shard(num_parts, 0, contiguous=False)
        if is_main_process():
            print(
                f"data: there is one split only, 'train': the first of its {num_parts:,} parts is held out as "
                f"{config.validation_split!r} (data.validation_split)."
            )
    else:
        validation = _split(streams, config.validation_split, "validation_split")
    label_column, label_names = _classes(config, train) if classes else (None, None)
    config = dataclasses.replace(config, label_column=label_column or NO_CLASSES)
    column, head = _images(config, train, LOOKED_AT, "train_split")
    stream = ImageStream(
        dataset=as_stored(train, column).select_columns(_columns(config, column)),
        column=column,
        split=config.train_split,
        image_format=image_format_of(config, RowNames(config.train_split), head[0][column]),
        files=tuple(files.get(config.train_split, ())),
        parts=tuple(range(int(is_held_out), num_parts)),
        num_parts=num_parts,
        shuffle_buffer=config.shuffle_buffer,
        augmentation=Augmentation.from_options(config),
        num_workers=config.num_workers,
        label_column=label_column,
        label_names=label_names,
    )
    first = _first_images(config, validation, "validation_split")
    if config.test_split is None:
        return stream, first, first
    return stream, first, _first_images(config, _split(streams, config.test_split, "test_split"), "test_split")


def _split(streams: dict[str, IterableDataset], split: str, option: str) -> IterableDataset:
    if split not in streams:
        raise ValueError(
            f"data.{option} {split!r} is not one of {', '.join(streams)}; of streams (data.streaming) there are no "
            "slices."
        )
    return streams[split]


def _with_images_as_stored(stream: IterableDataset) -> IterableDataset:
    from datasets import Image as ImageFeature

    if stream.features is None:
        stream = stream._resolve_features()
    for name, kind in stream.features.items():
        if isinstance(kind, ImageFeature):
            stream = as_stored(stream, name)
    return stream


def _classes(config: DataConfig, stream: IterableDataset) -> tuple[str | None, list[str] | None]:
    """The column of classes of a stream, and their names; None for no names where they are numbers.

    Raises:
        ValueError: If the column that the user chose holds no such classes.
    """
    from datasets import ClassLabel, Value

    name = config.label_column or USUAL_COLUMN
    if name == NO_CLASSES or (config.label_column is None and name not in stream.features):
        return None, None
    kind = stream.features.get(name)
    if isinstance(kind, ClassLabel):
        return name, list(kind.names)
    if isinstance(kind, Value) and "int" in kind.dtype:
        return name, None
    there = ", ".join(
        column
        for column, kind in stream.features.items()
        if isinstance(kind, ClassLabel) or "int" in str(getattr(kind, "dtype", ""))
    )
    problem = (
        f"data.label_column {name!r} holds no classes by name or number, and of a stream no others are known before "
        "its end"
    )
    if config.label_column is not None:
        raise ValueError(f"{problem}. Columns that do: {there or 'none'}; {NO_CLASSES} means no classes.")
    if is_main_process():
        print(f"data: {problem}, and is not used.")
    return None, None


def _columns(config: DataConfig, column: str) -> list[str]:
    """The columns to read: that of the images, and that of the classes where there are some."""
    return [column] if config.label_column in (None, NO_CLASSES) else [column, config.label_column]


def _images(config: DataConfig, stream: IterableDataset, number: int, option: str) -> tuple[str, Dataset]:
    """The column of images, and up to so many of the first rows that have one."""
    from datasets import Dataset

    head = Dataset.from_list(list(stream.take(min(number, LOOKED_AT))), features=stream.features)
    column = image_column(config, head)
    columns = _columns(config, column)
    if not {*columns} <= {*stream.features}:
        raise ValueError(
            f"data.{option} {getattr(config, option)!r} has no column {config.label_column!r}, the classes of "
            f"data.train_split: set data.label_column to a column of both, or to {NO_CLASSES} for no classes."
        )
    stream = as_stored(stream, column).select_columns(columns)
    found: list[dict[str, Any]] = []
    for row in stream:
        if is_there(row[column]):
            found.append(row)
        if len(found) == number:
            break
    if not found:
        raise ValueError(f"data.{option} {getattr(config, option)!r} has no rows with an image.")
    return column, Dataset.from_list(found, features=stream.features)


def _first_images(config: DataConfig, stream: IterableDataset, option: str) -> ImageRows:
    from datasets import DatasetDict

    split = getattr(config, option)
    column, rows = _images(config, stream, config.max_validation_images, option)
    chosen = dataclasses.replace(config, image_column=column)
    return load_rows(chosen, DatasetDict({split: rows}), rows, RowNames(split), {})
