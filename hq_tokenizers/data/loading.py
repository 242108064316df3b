"""From a `DataConfig` to image splits: which column, which classes, which size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.image_processing_hq import GREY_MODES
from hq_tokenizers.options.data import DataConfig

from .digits import MAX_GREY_LEVEL
from .images import MEMORY_LIMIT, ImageFormat, ImageRows
from .label_maps import LabelMapFormat
from .sources import load_source, select_split

if TYPE_CHECKING:
    from datasets import Dataset

OVERVIEW = "samples.png"


def load_image_splits(
    config: DataConfig, *split_options: str, memory_limit: int = MEMORY_LIMIT
) -> tuple[ImageRows, ...]:
    """The splits that options of a `DataConfig` name, e.g. `load_image_splits(config, "train_split")`.

    Raises:
        FileNotFoundError: For a wrong path.
        ValueError: For a wrong split, column, label or size, naming the accepted values.
    """
    source = load_source(config)
    selected = [select_split(source, getattr(config, name), name) for name in split_options]
    return tuple(_load_rows(config, rows, memory_limit) for rows in selected)


def load_image_folder(config: DataConfig, folder: str | Path, option: str) -> tuple[ImageRows, list[str]]:
    """All images of a folder and its subfolders, by name, without classes.

    Args:
        config: Whose image_size and num_channels apply.
        folder: The folder. The overview samples.png that `generate` puts beside its images is no image of it.
        option: The option that gave it, to name in errors.

    Returns:
        The images, and their names: paths in the folder, without the ending.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
    """
    from datasets import Dataset
    from datasets import Image as ImageFeature

    root = Path(folder).expanduser()
    endings = Image.registered_extensions()
    paths = {
        (path.relative_to(root).with_suffix("").as_posix(), path)
        for path in root.rglob("*")
        if path.suffix.lower() in endings and path.name != OVERVIEW
    }
    if not paths:
        problem = "holds no images" if root.is_dir() else "is no folder"
        raise FileNotFoundError(f"{option} {str(folder)!r} {problem}: set {option} to a folder of image files.")
    # By name, which two folders have in common, and not by path, which ends differently in both.
    names, files = zip(*sorted(paths), strict=True)
    rows = Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", ImageFeature(decode=False))
    return ImageRows(rows, "image", _image_format(config, rows[0]["image"]), num_workers=config.num_workers), list(
        names
    )


def _load_rows(config: DataConfig, rows: Dataset, memory_limit: int) -> ImageRows:
    from datasets import Image as ImageFeature

    column = _image_column(config, rows)
    labels, names = _labels(config, rows)
    if isinstance(rows.features[column], ImageFeature):
        rows = rows.cast_column(column, ImageFeature(decode=False))
    image_format = _image_format(config, rows[0][column])
    return ImageRows(rows, column, image_format, labels, names, config.num_workers, memory_limit)


def _image_column(config: DataConfig, rows: Dataset) -> str:
    from datasets import Array2D, Array3D
    from datasets import Image as ImageFeature

    columns = [name for name, kind in rows.features.items() if isinstance(kind, ImageFeature | Array2D | Array3D)]
    if config.image_column is None:
        if len(columns) == 1:
            return columns[0]
        found = f"several image columns: {', '.join(columns)}" if columns else "no image column"
        raise ValueError(
            f"The data set has {found}. Set data.image_column; the columns are {', '.join(rows.column_names)}."
        )
    if config.image_column not in columns:
        raise ValueError(
            f"data.image_column {config.image_column!r} is not an image column. Image columns: "
            f"{', '.join(columns) or 'none'}; all columns: {', '.join(rows.column_names)}."
        )
    return config.image_column


def _labels(config: DataConfig, rows: Dataset) -> tuple[torch.Tensor | None, list[str] | None]:
    from datasets import ClassLabel

    column = config.label_column
    if column is None:
        if "label" not in rows.column_names:
            return None, None
        column = "label"
    kind = rows.features.get(column)
    if isinstance(kind, ClassLabel):
        names, values = list(kind.names), np.asarray(rows[column][:])
    elif _is_class(kind):
        values = np.asarray(rows[column][:])
        names = [str(label) for label in range(int(max(value or 0 for value in values)) + 1)]
    else:
        accepted = [name for name, other in rows.features.items() if _is_class(other)]
        raise ValueError(
            f"data.label_column {column!r} is not a column of classes (ClassLabel or integers). Columns that are: "
            f"{', '.join(accepted) or 'none'}."
        )
    if any(value is None for value in values):
        # A folder of images without class folders has a column of classes that is empty.
        if config.label_column is None:
            return None, None
        raise ValueError(f"data.label_column {column!r} has rows without a class; set it to null if it was chosen.")
    if values.min() < 0 or values.max() >= len(names):
        raise ValueError(
            f"data.label_column {column!r} holds {values.min()} to {values.max()}; classes go from 0 to "
            f"{len(names) - 1}."
        )
    return torch.from_numpy(values.astype(np.int64)), names


def _is_class(kind: Any) -> bool:
    from datasets import ClassLabel, Value

    return isinstance(kind, ClassLabel) or (isinstance(kind, Value) and "int" in kind.dtype)


def _image_format(config: DataConfig, first: Any) -> ImageFormat:
    if not isinstance(first, dict):
        return _array_format(config, np.asarray(first))
    with Image.open(io.BytesIO(first["bytes"]) if first["bytes"] is not None else first["path"]) as image:
        height, width, mode = image.height, image.width, image.mode
    resize = config.image_size is not None
    if config.image_size is not None:
        height, width = image_height_width(config.image_size)
    if config.label_map_classes is not None:
        return LabelMapFormat(height, width, 1, resize=resize, num_classes=config.label_map_classes)
    channels = config.num_channels or (1 if mode in GREY_MODES else 3)
    return ImageFormat(height, width, channels, resize=resize, drop_colour=config.num_channels is not None)


def _array_format(config: DataConfig, first: np.ndarray) -> ImageFormat:
    channels = 1 if first.ndim == 2 else first.shape[2]
    for name, accepted in (("image_size", list(first.shape[:2])), ("num_channels", channels)):
        given = getattr(config, name)
        if given not in (None, accepted, accepted[0] if isinstance(accepted, list) else None):
            raise ValueError(f"data.{name} must be {accepted} or null for images stored as arrays, got {given}.")
    height, width = first.shape[:2]
    if config.label_map_classes is not None:
        return LabelMapFormat(height, width, channels, num_classes=config.label_map_classes)
    max_value = 1 if first.dtype == np.bool_ else 255
    return ImageFormat(height, width, channels, MAX_GREY_LEVEL if config.name == "digits" else max_value)
