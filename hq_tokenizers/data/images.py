"""Images as batches of tensors: decoded once into memory where they fit, otherwise by worker processes.

Decoding costs more than a training step of a small tokenizer, so a data set of less than 2 GB is decoded at the start.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import SizeDict

from hq_tokenizers.image_decoding import UnreadableImageError, decode_image, is_encoded
from hq_tokenizers.image_processing_hq import GREY_MODES, HQImageProcessor, convert_pil
from hq_tokenizers.sound_decoding import UnreadableSoundError

from .augmentation import Augmentation, SeededAugmentation, augmentation_seeds
from .batches import evenly
from .workers import decoded_batches

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, torch.Tensor]
MEMORY_LIMIT = 2 * 2**30
HASHED_ROWS = 50_000
_PROCESSOR = HQImageProcessor()
_MOST_NAMED = 20


class BatchSource(Protocol):
    """Anything that gives batches of chosen rows; both training stages read their data through this."""

    def __len__(self) -> int:
        """Number of rows."""

    def batches(self, index_batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[Batch]:
        """The rows of each index tensor, as tensors on `device`."""


@dataclass(frozen=True)
class ImageFormat:
    """How raw images become tensors.

    Args:
        height: Pixels.
        width: Pixels.
        num_channels: 1 or 3.
        max_value: The integer that means 1.0.
        resize: Whether images of another size are resized and cropped; otherwise they are an error.
        drop_colour: With one channel, whether images of colour become grey; otherwise they are an error.
        max_pixels: Height times width up to which a file is decoded; None: Pillow's limit.
    """

    height: int
    width: int
    num_channels: int
    max_value: int = 255
    resize: bool = False
    drop_colour: bool = True
    max_pixels: int | None = None

    def __str__(self) -> str:
        return f"{self.height}×{self.width}×{self.num_channels}"

    def decode(self, raw: Any, augmentation: SeededAugmentation | None = None) -> np.ndarray:
        """uint8 (C, H, W) of an encoded image (its bytes, or {"bytes", "path"}) or an integer array.

        Args:
            raw: The image.
            augmentation: Its random changes, if any.

        Raises:
            FileNotFoundError, UnreadableImageError: As `decode_image` does.
            ValueError: If the size differs from the data set's and resizing is off; for an image of colour where it
                must not be dropped; for an array that is not one of integers from 0 to `max_value`.
        """
        if not is_encoded(raw):
            pixels = self._check_array(np.asarray(raw)).astype(np.uint8)
            resize = augmentation is not None and augmentation.augmentation.crops
        else:
            image = decode_image(raw, max_pixels=self.max_pixels)
            assert isinstance(image, Image.Image)
            pixels = np.asarray(self._convert(image))
            resize = self.resize
        pixels = self._fit(pixels, augmentation) if resize else pixels
        if pixels.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"Found an image of {pixels.shape[0]}×{pixels.shape[1]} pixels among images of {self.height}×"
                f"{self.width}: set data.image_size, for example to {self.height}, to resize them."
            )
        channels_first = pixels.reshape(self.height, self.width, self.num_channels).transpose(2, 0, 1)
        return channels_first if augmentation is None else augmentation.colour(channels_first, self.max_value)

    def to_batch(self, pixels: torch.Tensor) -> torch.Tensor:
        """Decoded images, uint8 (B, C, H, W), as the model's floats in [0, 1]."""
        return pixels.float() / self.max_value

    def _convert(self, image: Image.Image) -> Image.Image:
        self._check_colour(image)
        return convert_pil(image, self.num_channels)

    def _check_array(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind not in "bui" or values.min() < 0 or values.max() > self.max_value:
            raise ValueError(
                f"Images stored as arrays must be integers from 0 to {self.max_value}, found {values.dtype} from "
                f"{values.min()} to {values.max()}."
            )
        return values

    def _check_colour(self, image: Image.Image) -> None:
        if self.num_channels == 1 and not self.drop_colour and image.mode not in GREY_MODES:
            raise ValueError(
                f"Found an image of mode {image.mode} in a set whose first image is grey: set data.num_channels, to 3 "
                "to read all as colour, or to 1 to make all grey."
            )

    def _fit(
        self,
        pixels: np.ndarray,
        augmentation: SeededAugmentation | None = None,
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> np.ndarray:
        """uint8 (H, W) or (H, W, C), scaled until it covers the size, and its centre, or a random part."""
        # Within the values that there are, which cubic interpolation would overshoot.
        channels_first = torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy()) / self.max_value
        size = SizeDict(height=self.height, width=self.width)
        if augmentation is not None and augmentation.augmentation.crops:
            fitted = augmentation.crop(channels_first, size, resampling)
        else:
            fitted = _PROCESSOR.fit(channels_first, size, resampling)
        return fitted.mul(self.max_value).round().to(torch.uint8).numpy().transpose(1, 2, 0)


@dataclass(frozen=True)
class RowNames:
    """What errors call the rows of a split.

    Args:
        split: The split, as the user wrote it.
        numbers: The number of each row in that split, where some were left out.
    """

    split: str
    numbers: Sequence[int] | np.ndarray | None = None

    def name(self, index: int, raw: Any) -> str:
        """The file of a row, or its number in the split, counted from 0, with the name that is stored beside bytes.

        Args:
            index: Index of the row.
            raw: Its image.
        """
        path = raw.get("path") if isinstance(raw, dict) else None
        if path is not None and raw.get("bytes") is None and os.path.isabs(path):
            return str(path)
        number = index if self.numbers is None else self.numbers[index]
        return f"Row {number} of {self.split!r}" + (f" ({path})" if path else "")

    @contextmanager
    def named(self, index: int, raw: Any) -> Iterator[None]:
        """Puts the name of a row before what is said about its image."""
        try:
            yield
        except (FileNotFoundError, ValueError) as error:
            kind = UnreadableImageError if isinstance(error, FileNotFoundError) else type(error)
            name = self.name(index, raw)
            raise kind(str(error) if name in str(error) else f"{name}: {error}") from error


class ImageRows:
    """One split of images.

    Args:
        rows: A `datasets` split.
        image_column: Its column of images.
        names: What errors call its rows.
        image_format: How to decode them.
        labels: LongTensor (N,) of classes, or None.
        label_names: Names of the classes, or None.
        num_workers: Decoding processes, used when the images do not fit in memory.
        memory_limit: Bytes up to which the decoded images are kept in memory.
        augmentation: Random changes for training. With those that start from the file images are not kept in memory.
    """

    def __init__(
        self,
        rows: Dataset,
        image_column: str,
        names: RowNames,
        image_format: ImageFormat,
        labels: torch.Tensor | None = None,
        label_names: list[str] | None = None,
        num_workers: int = 0,
        memory_limit: int = MEMORY_LIMIT,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
    ):
        self.image_format = image_format
        self.augmentation = augmentation
        self.labels = labels
        self.label_names = label_names
        self._lazy = LazyRows(rows, image_column, names, image_format, "images")
        self._num_workers = num_workers
        size = rows.num_rows * image_format.num_channels * image_format.height * image_format.width
        keep = size <= memory_limit and not augmentation.needs_decoding
        self.images = self._decode_all() if keep else None

    def __len__(self) -> int:
        return len(self._lazy)

    def sha256(self) -> str:
        """Hash of the images, wherever they lie: a run that is continued has to find them again.

        Of images in memory it is that of their number, format and all decoded pixels. Of others, where reading
        everything could take longer than an epoch, it is that of their number, format and the encoded bytes of up to
        50,000 of them, spread evenly.
        """
        form = self.image_format
        digest = hashlib.sha256(f"{len(self)} × {form}, of at most {form.max_value}".encode())
        if self.images is not None:
            digest.update(self.images.numpy().data)
        else:
            for raw in self._lazy.some_encoded(HASHED_ROWS):
                digest.update(hashlib.sha256(raw).digest())
        return digest.hexdigest()

    def batches(
        self, index_batches: Sequence[torch.Tensor], device: torch.device, noise: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Batches {"pixel_values": float (B, C, H, W) in [0, 1], "labels": (B,) when there are classes}.

        The pixel values of label maps are their classes, long (B, H, W).

        Args:
            index_batches: Rows of each batch.
            device: Where batches go.
            noise: Seed of the run and number of the epoch, which decide the random changes of images; None changes
                none.

        Raises:
            ValueError: For an image that is unreadable or does not fit, by its name.
        """
        # Copied once per call, so that on an accelerator no image crosses the bus during an epoch.
        labels = None if self.labels is None else self.labels.to(device)
        for indices, pixels in zip(index_batches, self._pixels(index_batches, device, noise), strict=True):
            if noise is not None:
                pixels = self.augmentation.flip(pixels, augmentation_seeds(noise, indices))
            batch = {"pixel_values": self.image_format.to_batch(pixels)}
            if labels is not None:
                batch["labels"] = labels[indices.to(device, non_blocking=True)]
            yield batch

    def _decode_all(self) -> torch.Tensor:
        form = self.image_format
        images = torch.empty(len(self), form.num_channels, form.height, form.width, dtype=torch.uint8)
        target = images.numpy()
        for position, pixels in enumerate(self._lazy.decode_each()):
            target[position] = pixels
        return images

    def _pixels(
        self, index_batches: Sequence[torch.Tensor], device: torch.device, noise: tuple[int, int] | None
    ) -> Iterable[torch.Tensor]:
        if self.images is not None:
            images = self.images.to(device)
            return (images[indices.to(device, non_blocking=True)] for indices in index_batches)
        rows = self._lazy if noise is None else _AugmentedRows(self._lazy, self.augmentation, noise)
        loader = decoded_batches(rows, index_batches, self._num_workers, pin_memory=torch.accelerator.is_available())
        return (pixels.to(device, non_blocking=True) for pixels in loader)


def encoded_bytes(raw: Any) -> bytes:
    """The bytes of an image or a sound as it is stored: of its file, or of an array."""
    if isinstance(raw, bytes):
        return raw
    if not isinstance(raw, dict):
        return np.ascontiguousarray(raw).tobytes()
    return raw["bytes"] if raw.get("bytes") is not None else Path(raw["path"]).read_bytes()


class RawFormat(Protocol):
    """How raw images or sounds become arrays."""

    def decode(self, raw: Any, *changes: Any) -> np.ndarray:
        """The array of one row."""


class LazyRows(torch.utils.data.Dataset):
    """Decodes a row when it is asked for it.

    Args:
        rows: A `datasets` split.
        column: Its column of raw images or sounds.
        names: What errors call its rows.
        form: How to decode them.
        kind: What they are, in the plural.
    """

    def __init__(self, rows: Dataset, column: str, names: RowNames, form: RawFormat, kind: str):
        self.rows = rows.select_columns([column])
        self.column = column
        self.names = names
        self.form = form
        self.kind = kind

    def __len__(self) -> int:
        return self.rows.num_rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.decode(index).copy())

    def raw(self, index: int) -> Any:
        """What the column holds."""
        return self.rows[index][self.column]

    def decode(self, index: int, *changes: Any) -> np.ndarray:
        """The array of a row; `changes` are what else its format's `decode` takes."""
        return self._decode(index, self.raw(index), *changes)

    def _decode(self, index: int, raw: Any, *changes: Any) -> np.ndarray:
        with self.names.named(index, raw):
            return self.form.decode(raw, *changes)

    def some_encoded(self, number: int) -> Iterator[bytes]:
        """The bytes of up to `number` rows, spread evenly."""
        for part in self.rows.select(evenly(len(self), number)).iter(1000):
            yield from map(encoded_bytes, part[self.column])

    def decode_each(self) -> Iterator[np.ndarray]:
        """The arrays of all rows.

        Raises:
            UnreadableImageError, UnreadableSoundError: After the last one, naming all that cannot be read, so that they
                need not be repaired one by one.
        """
        unreadable: list[ValueError] = []
        rows = (raw for part in self.rows.iter(1000) for raw in part[self.column])
        for position, raw in enumerate(rows):
            try:
                yield self._decode(position, raw)
            except (UnreadableImageError, UnreadableSoundError) as error:
                unreadable.append(error)
        if len(unreadable) == 1:
            raise unreadable[0]
        if unreadable:
            first = "; ".join(map(str, unreadable[:_MOST_NAMED]))
            rest = f"; and {len(unreadable) - _MOST_NAMED} more" if len(unreadable) > _MOST_NAMED else ""
            raise type(unreadable[0])(f"{len(unreadable):,} of {len(self):,} {self.kind} cannot be read: {first}{rest}")


class _AugmentedRows(torch.utils.data.Dataset):
    """Rows with the random changes of an epoch, but for mirroring."""

    def __init__(self, rows: LazyRows, augmentation: Augmentation, noise: tuple[int, int]):
        self.rows = rows
        self.augmentation = augmentation
        self.noise = noise

    def __getitem__(self, index: int) -> torch.Tensor:
        (seed,) = augmentation_seeds(self.noise, torch.tensor([index])).tolist()
        return torch.from_numpy(self.rows.decode(index, self.augmentation.with_noise(seed)).copy())
