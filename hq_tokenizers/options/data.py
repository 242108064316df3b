"""Which images to train on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Literal

from hq_tokenizers.checks import Count, ImageSize, Length, Name, Range, check_fields, did_you_mean
from hq_tokenizers.options.sound import SoundConfig

FILE_NAMES = ("imagefolder", "audiofolder", "parquet", "webdataset")
"""Names of data that lie at `path`."""
_ENDINGS = {".parquet": "parquet", ".tar": "webdataset"}
"""What a path alone means, unless a folder of images."""


@dataclass(kw_only=True)
class DataConfig:
    """Options of the image data.

    Raises:
        ValueError: If the name needs a path that is not given, or a size is impossible.
    """

    name: Annotated[
        Name,
        '"digits" (embedded, 8×8 grey, no network), "imagefolder" (what a path alone means), "audiofolder", "parquet", '
        '"webdataset" (tar files), or the id of a data set on the Hub',
    ] = "digits"
    path: Annotated[
        Name | None, "folder of the images, parquet or tar files, or a pattern such as data/train-*.parquet"
    ] = None
    files: Annotated[
        Annotated[dict[Name, Name | Annotated[list[Name], Length(1, 100_000)]], Length(1, 1000)] | None,
        "patterns inside `path` per split, as {train: train-*.parquet, test: test.parquet}; null goes by file names",
    ] = None
    train_split: Annotated[Name, 'split to train on; slices such as "train[:50000]" or "train[:90%]" work'] = "train"
    validation_split: Annotated[
        Name,
        "split to validate on while training; where the data have one split only, a random tenth of train is held out "
        "as test, the same in every command",
    ] = "test"
    test_split: Annotated[Name | None, "split for the figures of the report; null uses validation_split"] = None
    image_column: Annotated[
        Name | None,
        "column of the images (images, arrays, or bytes of image files); null finds the only one. Rows without an "
        "image are left out; an image that is broken or unreadable is refused by name",
    ] = None
    label_column: Annotated[
        Name | None,
        'column of the classes: names, integers, texts or other whole numbers; null takes "label" when it holds '
        'names or integers, "none" means no classes',
    ] = None
    image_size: Annotated[
        ImageSize | None,
        "resize (shorter side, then centre crop) to this size, an integer or [height, width]; null keeps the size",
    ] = None
    num_channels: Annotated[Literal[1, 3] | None, "1 converts to grey, 3 to colour; null takes the first image's"] = (
        None
    )
    label_map_classes: Annotated[
        Annotated[int, Range(2, 256)] | None,
        "the images are label maps, whose pixels are that many classes from 0 on; null: they are images",
    ] = None
    max_image_pixels: Annotated[
        Annotated[int, Range(1, 2**40)] | None,
        "height times width up to which an image is decoded, so that a small file cannot fill the memory; null takes "
        "Pillow's limit, 89,478,485",
    ] = None
    sound: SoundConfig = field(default_factory=SoundConfig)
    horizontal_flip: Annotated[bool, "mirror half of the training images at random"] = False
    random_crop: Annotated[
        bool,
        "cut training images to image_size at a random place instead of the centre, after the shorter side is scaled",
    ] = False
    random_resized_crop: Annotated[
        Annotated[list[Annotated[float, Range(0, 1, above=True)]], Length(2, 2)] | None,
        "cut a random part out of every training image, of a share of its area in this range, such as [0.5, 1.0], and "
        "of 3:4 to 4:3, and scale it to image_size; null does not",
    ] = None
    color_jitter: Annotated[
        Annotated[list[Annotated[float, Range(0, 10)]], Length(4, 4)] | None,
        "largest random changes of brightness, contrast, saturation and hue of training images, such as "
        "[0.2, 0.2, 0.2, 0.05]; hue at most 0.5; null changes none",
    ] = None
    num_workers: Annotated[
        int,
        Range(0, 1024),
        "processes that decode images when the decoded data set exceeds 2 GB of memory, or is streamed",
    ] = 2
    streaming: Annotated[
        bool,
        "read the training images from beginning to end without preparing them on disk: in train-tokenizer again and "
        "again, which needs max_steps; in encode once for every view",
    ] = False
    shuffle_buffer: Annotated[
        Count,
        "images of a stream that are read before they are shuffled, by every process; they stay in memory as files",
    ] = 1000
    max_validation_images: Annotated[
        Count, "with streaming: how many of the first images of the validation and the test split count"
    ] = 2048

    @property
    def random_changes(self) -> list[str]:
        """The options that are set and change training images at random."""
        names = ("horizontal_flip", "random_crop", "random_resized_crop", "color_jitter")
        return [name for name in names if getattr(self, name) not in (False, None)]

    def __post_init__(self) -> None:
        check_fields(self, prefix="data.")
        hint = did_you_mean(self.name, ("digits", *FILE_NAMES), cutoff=0.8)
        if hint and self.name not in ("digits", *FILE_NAMES):
            raise ValueError(f"data.name {self.name!r} is no kind of files and no USER/NAME of the Hub. {hint}")
        if self.name in FILE_NAMES and self.path is None:
            raise ValueError(f'data.name "{self.name}" needs data.path: the folder or files of the data.')
        if self.name == "digits" and self.path is not None:
            self.name = _ENDINGS.get(PurePath(self.path).suffix, "imagefolder")
        if self.name == "digits" and self.files:
            raise ValueError("data.files is set but data.name is digits, the embedded set: set data.path.")
        if self.label_map_classes is not None and self.num_channels is not None:
            raise ValueError("data.num_channels is for images; label maps (data.label_map_classes) have no channels.")
        self._check_augmentation()
        self._check_streaming()

    def _check_augmentation(self) -> None:
        crops = [name for name in ("random_crop", "random_resized_crop") if getattr(self, name)]
        if len(crops) == 2:
            raise ValueError("data.random_crop and data.random_resized_crop are two ways to cut: set one of them.")
        if crops and self.image_size is None:
            raise ValueError(f"data.{crops[0]} needs data.image_size, the size that images are cut to.")
        if self.random_resized_crop is not None and self.random_resized_crop[0] > self.random_resized_crop[1]:
            raise ValueError(f"data.random_resized_crop must be [smallest, largest], got {self.random_resized_crop}.")
        if self.color_jitter is None:
            return
        if self.label_map_classes is not None:
            raise ValueError(
                "data.color_jitter is for images; the values of label maps (data.label_map_classes) are classes, which "
                "it would change: leave it out."
            )
        if self.color_jitter[3] > 0.5:
            raise ValueError(f"data.color_jitter: hue, the last, is at most 0.5, got {self.color_jitter[3]}.")

    def _check_streaming(self) -> None:
        if self.streaming and self.name == "digits":
            raise ValueError("data.streaming is for data on disk or on the Hub; the digits are embedded: leave it out.")
        for name in ("shuffle_buffer", "max_validation_images"):
            if not self.streaming and getattr(self, name) != getattr(DataConfig, name):
                raise ValueError(
                    f"data.{name} is for streams: set data.streaming true, or leave it out. Slices such as "
                    'data.validation_split "test[:1000]" select images without streaming.'
                )
