"""Which images to train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(kw_only=True)
class DataConfig:
    """Options of the image data.

    Raises:
        ValueError: If the name needs a path that is not given, or a size is impossible.
    """

    name: Annotated[
        str, '"digits" (embedded, 8×8 grey, no network), "imagefolder", "parquet", or the id of a data set on the Hub'
    ] = "digits"
    path: Annotated[str | None, "folder of the images or parquet files, or a pattern such as data/train-*.parquet"] = (
        None
    )
    files: Annotated[
        dict[str, str | list[str]] | None,
        "patterns inside `path` per split, as {train: train-*.parquet, test: test.parquet}; null goes by file names",
    ] = None
    train_split: Annotated[str, 'split to train on; slices such as "train[:50000]" or "train[:90%]" work'] = "train"
    validation_split: Annotated[str, "split to validate on while training"] = "test"
    test_split: Annotated[str | None, "split for the figures of the report; null uses validation_split"] = None
    image_column: Annotated[str | None, "column of the images; null finds the only image column"] = None
    label_column: Annotated[str | None, 'column of the classes; null takes "label" when there is one'] = None
    image_size: Annotated[
        int | list[int] | None,
        "resize (shorter side, then centre crop) to this size, an integer or [height, width]; null keeps the size",
    ] = None
    num_channels: Annotated[int | None, "1 converts to grey, 3 to colour; null takes the first image's"] = None
    label_map_classes: Annotated[
        int | None, "the images are label maps, whose pixels are that many classes from 0 on; null: they are images"
    ] = None
    horizontal_flip: Annotated[bool, "mirror half of the training images at random"] = False
    num_workers: Annotated[int, "processes that decode images when the decoded data set exceeds 2 GB of memory"] = 2

    def __post_init__(self) -> None:
        if self.name in ("imagefolder", "parquet") and self.path is None:
            raise ValueError(f'data.name "{self.name}" needs data.path: the folder or files of the images.')
        if self.name == "digits" and (self.path or self.files):
            raise ValueError(
                "data.path is set but data.name is digits, the embedded set: set data.name to imagefolder or parquet."
            )
        if self.label_map_classes is not None:
            self._check_label_maps()
        if self.num_channels not in (None, 1, 3):
            raise ValueError(f"data.num_channels must be 1 (grey) or 3 (colour), got {self.num_channels}.")
        sizes = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if sizes is not None and (len(sizes) not in (1, 2) or min(sizes) < 1):
            raise ValueError(f"data.image_size must be an integer or [height, width], at least 1: {self.image_size}.")

    def _check_label_maps(self) -> None:
        if not 2 <= self.label_map_classes <= 256:  # type: ignore[operator]
            raise ValueError(f"data.label_map_classes must lie between 2 and 256, got {self.label_map_classes}.")
        if self.num_channels is not None:
            raise ValueError("data.num_channels is for images; label maps (data.label_map_classes) have no channels.")
