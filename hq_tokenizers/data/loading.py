"""From a `DataConfig` to image splits: which column, which classes, which size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.image_decoding import UnreadableImageError, decode_image, image_endings, is_encoded, is_url
from hq_tokenizers.image_processing_hq import GREY_MODES
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.processes import is_main_process

from .augmentation import Augmentation
from .classes import read_classes
from .digits import MAX_GREY_LEVEL
from .images import MEMORY_LIMIT, ImageFormat, ImageRows, RowNames
from .label_maps import LabelMapFormat
from .sources import image_files, load_source, select_split

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

OVERVIEW = "samples.png"
_TRAIN, _VALIDATION = DataConfig.train_split, DataConfig.validation_split
_HELD_OUT = 10
LOOKED_AT = 100
_BYTES, _TEXTS = ("binary", "large_binary", "binary_view"), ("string", "large_string", "string_view")
_READ = (
    "Read are images, and arrays of integers, of the types Image, Array2D and Array3D of `datasets`; bytes or paths of "
    "image files; records with bytes or path."
)


def load_image_splits(
    config: DataConfig, *split_options: str, memory_limit: int = MEMORY_LIMIT
) -> tuple[ImageRows, ...]:
    """The splits that options of a `DataConfig` name, e.g. `load_image_splits(config, "train_split")`.

    Of data with one split only, a random tenth is the split that `validation_split` names by default.

    Raises:
        FileNotFoundError: For a wrong path.
        ValueError: For a wrong split, column, label or size, naming the accepted values; for an image that cannot be
            read, by its name.
    """
    if config.streaming:
        raise ValueError(
            "data.streaming is for train-tokenizer and encode; here splits are read whole: set data.streaming false, "
            f'and of a large split name some rows, as data.{split_options[0]} "test[:5000]", or some files, by '
            "data.files."
        )
    source = load_source(config)
    # The same is said of every split: once.
    notes: dict[str, None] = {}
    loaded = []
    for option in split_options:
        rows, names = select_rows(config, source, option, notes, "image", image_column)
        augmentation = Augmentation.from_options(config) if option == "train_split" else Augmentation()
        loaded.append(load_rows(config, source, rows, names, notes, memory_limit, augmentation))
    for note in notes if is_main_process() else ():
        print(f"data: {note}")
    return tuple(loaded)


def load_image_folder(config: DataConfig, folder: str | Path, option: str) -> tuple[ImageRows, list[str]]:
    """All images of a folder and its subfolders, by name, without classes.

    Args:
        config: Whose image_size, num_channels and max_image_pixels apply.
        folder: The folder. The overview samples.png that `generate` puts beside its images is no image of it.
        option: The option that gave it, to name in errors.

    Returns:
        The images, and their names: paths in the folder, without the ending.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: For an image that cannot be read or a wrong size, by its name.
    """
    from datasets import Dataset
    from datasets import Image as ImageFeature

    root = Path(folder).expanduser()
    paths = {
        (path.relative_to(root).with_suffix("").as_posix(), path) for path in image_files(root) if path.name != OVERVIEW
    }
    if not paths:
        problem = "holds no images" if root.is_dir() else "is no folder"
        raise FileNotFoundError(f"{option} {str(folder)!r} {problem}: set {option} to a folder of image files.")
    # By name, which two folders have in common, and not by path, which ends differently in both.
    names, files = zip(*sorted(paths), strict=True)
    rows = Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", ImageFeature(decode=False))
    row_names = RowNames(str(folder))
    image_format = image_format_of(config, row_names, rows[0]["image"])
    return ImageRows(rows, "image", row_names, image_format, num_workers=config.num_workers), list(names)


def select_rows(
    config: DataConfig,
    source: DatasetDict,
    option: str,
    notes: dict[str, None],
    kind: str,
    column_of: Callable[[DataConfig, Dataset], str],
) -> tuple[Dataset, RowNames]:
    """The rows that an option names and that have an image or a sound, and what they are called.

    Args:
        config: Options.
        source: All splits.
        option: The option that names a split.
        notes: Takes what is to be said of the rows.
        kind: What the rows hold: "image" or "sound".
        column_of: Finds the column that holds it.

    Raises:
        ValueError: For a wrong split or column, or without any such row.
    """
    held_out = _is_held_out(config, source)
    split = _TRAIN if held_out else getattr(config, option)
    rows = select_split(source, split, option)
    numbers = np.flatnonzero(_is_there(rows, column_of(config, rows)))
    if held_out and len(numbers) == 1:
        raise ValueError(
            f"There is one split only, {split!r}, and one {kind} in it, which cannot be split in two: add more, or "
            f"set data.validation_split to {split}, to validate on the same."
        )
    if len(numbers) < len(rows):
        left_out = len(rows) - len(numbers)
        notes[f"{left_out:,} of {len(rows):,} rows of {split!r} have no {kind} and are left out."] = None
    if held_out:
        notes[
            f"there is one split only, {split!r} ({len(rows):,} rows): a random tenth of it is held out as "
            f"{config.validation_split!r}, the same in every command (data.validation_split)."
        ] = None
        shuffled = np.random.default_rng(0).permutation(numbers)
        share = max(1, len(numbers) // _HELD_OUT)
        numbers = np.sort(shuffled[:share] if option == "validation_split" else shuffled[share:])
    elif len(numbers) == len(rows):
        return rows, RowNames(split)
    if not len(numbers):
        raise ValueError(f"data.{option} {split!r} has no rows with {'an' if kind == 'image' else 'a'} {kind}.")
    return rows.select(numbers), RowNames(split, numbers)


def _is_held_out(config: DataConfig, source: DatasetDict) -> bool:
    """Whether the validation split is a part of the training split, for want of another."""
    usual = (config.train_split, config.validation_split, config.test_split) == (_TRAIN, _VALIDATION, None)
    return usual and list(source) == [_TRAIN]


def _is_there(rows: Dataset, column: str) -> np.ndarray:
    """Which rows have an image or a sound, read from the bits that say so, not from the data."""
    import pyarrow
    from pyarrow import compute

    parts = []
    for part in rows.data.column(column).chunks:
        storage = getattr(part, "storage", part)
        there = storage.is_valid()
        if pyarrow.types.is_struct(storage.type):
            fields = [storage.field(i).is_valid() for i in range(storage.type.num_fields)]
            there = compute.and_(there, functools.reduce(compute.or_, fields))
        parts.append(there.to_numpy(zero_copy_only=False))
    return np.concatenate(parts)


def load_rows(
    config: DataConfig,
    source: DatasetDict,
    rows: Dataset,
    names: RowNames,
    notes: dict[str, None],
    memory_limit: int = MEMORY_LIMIT,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
) -> ImageRows:
    """The images of a split and their classes.

    Args:
        config: Options.
        source: All splits.
        rows: The split.
        names: What errors call its rows.
        notes: Takes what is to be said of it.
        memory_limit: See `ImageRows`.
        augmentation: Random changes.

    Raises:
        ValueError: For a wrong column, label or size; for an image that cannot be read.
    """
    column = image_column(config, rows)
    labels, label_names = read_classes(config.label_column, source, rows, notes)
    rows = as_stored(rows, column)
    image_format = image_format_of(config, names, rows[0][column])
    return ImageRows(
        rows, column, names, image_format, labels, label_names, config.num_workers, memory_limit, augmentation
    )


def as_stored(rows: Any, column: str) -> Any:
    """A `Dataset` or `IterableDataset` that gives images as they are stored, and paths as files."""
    from datasets import Image as ImageFeature

    if isinstance(rows.features[column], ImageFeature) or _kind(rows.features[column]) == "path":
        return rows.cast_column(column, ImageFeature(decode=False))
    return rows


def image_column(config: DataConfig, rows: Dataset) -> str:
    """The column of images, as the options or the types of the columns say.

    Raises:
        ValueError: If there is none, or there are several.
    """
    from datasets import Array2D, Array3D
    from datasets import Image as ImageFeature

    typed = [name for name, kind in rows.features.items() if isinstance(kind, ImageFeature | Array2D | Array3D)]
    files = {name: kind for name in rows.column_names if (kind := _kind(rows.features[name]))}
    if config.image_column is None:
        columns = typed or _columns_of_images(rows, files)
        if len(columns) == 1:
            return columns[0]
        found = f"several image columns: {', '.join(columns)}" if columns else "no image column"
        there = ", ".join(f"{name} ({_described(kind)})" for name, kind in rows.features.items())
        raise ValueError(f"The data set has {found}. Set data.image_column; the columns are {there}. {_READ}")
    if config.image_column not in (*typed, *files):
        raise ValueError(
            f"data.image_column {config.image_column!r} is not an image column. Image columns: "
            f"{', '.join([*typed, *files]) or 'none'}; all columns: {', '.join(rows.column_names)}. {_READ}"
        )
    return config.image_column


def _columns_of_images(rows: Dataset, files: Mapping[str, str]) -> list[str]:
    """Of columns whose types allow for image files those that hold some; where none does, those of bytes.

    Bytes and texts may be anything, unless there is nothing that says it is an image.
    """
    holding = [name for name, kind in files.items() if _holds_image(rows, name, kind)]
    return holding or [name for name, kind in files.items() if kind != "path"]


def _holds_image(rows: Dataset, column: str, kind: str) -> bool:
    """Whether the first of the column's first rows that has something has an image, or the path of one."""
    head = rows.select(range(min(len(rows), LOOKED_AT)))[column]
    value = next((value for value in head if value not in (None, "", {"bytes": None, "path": None})), None)
    if kind == "path":
        return isinstance(value, str) and not is_url(value) and Path(value).suffix.lower() in image_endings()
    try:
        decode_image(value)
    except UnreadableImageError:
        return False
    except (TypeError, FileNotFoundError):
        return isinstance(value, dict)
    return True


def _kind(feature: Any) -> str | None:
    """What image files a column may have: their "bytes", their "path", a "record" of both, or None."""
    from datasets import Value

    if isinstance(feature, dict):
        parts = {name: getattr(feature.get(name), "dtype", None) for name in ("bytes", "path")}
        if parts["bytes"] in _BYTES or (parts["bytes"] in (None, "null") and parts["path"] in _TEXTS):
            return "record"
    dtype = feature.dtype if isinstance(feature, Value) else None
    return "bytes" if dtype in _BYTES else "path" if dtype in _TEXTS else None


def _described(feature: Any) -> str:
    """The type of a column, in a word."""
    return getattr(feature, "dtype", None) or type(feature).__name__


def holds_bytes(feature: Any) -> bool:
    """Whether a column may have the bytes of files, or records of "bytes" and "path", of which nothing is said."""
    return _kind(feature) in ("bytes", "record")


def image_format_of(config: DataConfig, names: RowNames, first: Any) -> ImageFormat:
    """How the images of a split become tensors, as the options and the first of them say.

    Raises:
        ValueError: If the first image is unreadable, or the options do not fit it.
    """
    if not is_encoded(first):
        return _array_format(config, np.asarray(first))
    with names.named(0, first):
        image = decode_image(first, max_pixels=config.max_image_pixels)
    assert isinstance(image, Image.Image)
    height, width, mode = image.height, image.width, image.mode
    resize = config.image_size is not None
    if config.image_size is not None:
        height, width = image_height_width(config.image_size)
    if config.label_map_classes is not None:
        return LabelMapFormat(
            height,
            width,
            1,
            resize=resize,
            max_pixels=config.max_image_pixels,
            num_classes=config.label_map_classes,
        )
    channels = config.num_channels or (1 if mode in GREY_MODES else 3)
    return ImageFormat(
        height,
        width,
        channels,
        resize=resize,
        drop_colour=config.num_channels is not None,
        max_pixels=config.max_image_pixels,
    )


def _array_format(config: DataConfig, first: np.ndarray) -> ImageFormat:
    channels = 1 if first.ndim == 2 else first.shape[2]
    for name, accepted in (("image_size", list(first.shape[:2])), ("num_channels", channels)):
        given = getattr(config, name)
        if given not in (None, accepted, accepted[0] if isinstance(accepted, list) else None):
            raise ValueError(f"data.{name} must be {accepted} or null for images stored as arrays, got {given}.")
    if config.random_crop:
        raise ValueError(
            "data.random_crop has nothing to cut of images stored as arrays, which have their size: set "
            "data.random_resized_crop, or none."
        )
    height, width = first.shape[:2]
    if config.label_map_classes is not None:
        return LabelMapFormat(height, width, channels, num_classes=config.label_map_classes)
    max_value = 1 if first.dtype == np.bool_ else 255
    return ImageFormat(height, width, channels, MAX_GREY_LEVEL if config.name == "digits" else max_value)
