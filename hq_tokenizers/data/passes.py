"""Batches of whole passes over a split in its own order, from any batch on: what `encode` reads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .augmentation import Augmentation
from .batches import validation_batches
from .classes import MAX_CLASSES, NO_CLASSES
from .images import Batch, ImageRows
from .sound import SoundRows
from .streams import ImageStream, StreamDecoder, StreamedImage, StreamState
from .workers import decoded_batches


class Position(NamedTuple):
    """Between two batches of a pass.

    Args:
        batches: How many were before.
        rows: Rows of these.
        part: Of a stream, place of the part in which it goes on.
        row: Of a stream, row of that part.
    """

    batches: int = 0
    rows: int = 0
    part: int = 0
    row: int = 0


class PassBatch(NamedTuple):
    """A batch, and where in its pass it ends."""

    batch: Batch
    end: Position


@dataclass(frozen=True)
class Processes:
    """How many processes share the batches, and which of them this is."""

    number: int = 1
    index: int = 0


def build_passes(
    data: ImageRows | SoundRows | ImageStream, batch_size: int, views: int = 1, seed: int = 0
) -> RowPasses | StreamPasses:
    """Passes over a split.

    Args:
        data: The split.
        batch_size: Rows of a batch; the last of a pass may have fewer.
        views: How many passes there are to be. In one the images are as they are; of several, pass k changes them as
            epoch k of a training with the seed does.
        seed: Of the random changes.
    """
    changes = seed if views > 1 else None
    if isinstance(data, ImageStream):
        return StreamPasses(data, batch_size, changes)
    return RowPasses(data, batch_size, changes)


class RowPasses:
    """Passes over rows.

    Args:
        rows: The split.
        batch_size: Rows of a batch.
        seed: Of random changes; None changes nothing.
    """

    def __init__(self, rows: ImageRows | SoundRows, batch_size: int, seed: int | None = None) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed

    @property
    def num_rows(self) -> int | None:
        """Rows of a pass."""
        return len(self.rows)

    def batches(
        self, number: int, first: Position, device: torch.device, processes: Processes
    ) -> Generator[PassBatch, None, None]:
        """This process's share of the batches of a pass: of those from `first` on, every so many.

        Args:
            number: Number of the pass.
            first: Where to begin.
            device: Where batches go.
            processes: Who shares them.

        Raises:
            ValueError: For a row that is unreadable or does not fit, by its name.
        """
        shares = validation_batches(len(self.rows), self.batch_size)[first.batches :][
            processes.index :: processes.number
        ]
        if isinstance(self.rows, ImageRows):
            noise = None if self.seed is None else (self.seed, number)
            batches = self.rows.batches(shares, device, noise)
        else:
            batches = self.rows.batches(shares, device)
        done = itertools.count(first.batches + processes.index + 1, processes.number)
        for count, rows, batch in zip(done, shares, batches, strict=False):
            yield PassBatch(batch, Position(count, int(rows[-1]) + 1))


class StreamPasses:
    """Passes over a stream: every process reads all of it, and decodes its share.

    Args:
        stream: The split.
        batch_size: Rows of a batch.
        seed: Of random changes; None changes nothing.
    """

    num_rows: int | None = None
    """Not known."""

    def __init__(self, stream: ImageStream, batch_size: int, seed: int | None = None) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.seed = seed

    def batches(
        self, number: int, first: Position, device: torch.device, processes: Processes
    ) -> Generator[PassBatch, None, None]:
        """As `RowPasses.batches`.

        Raises:
            ValueError: Also for a row without a class, where there are classes.
        """
        form = self.stream.image_format
        augmentation = Augmentation() if self.seed is None else self.stream.augmentation
        taken: deque[tuple[Position, np.ndarray, torch.Tensor | None]] = deque()
        state = StreamState(number, first.part, first.row)
        with closing(self.stream.in_order(state, self.seed or 0)) as images:
            decoded = decoded_batches(
                StreamDecoder(form, augmentation),
                self._take(images, first, processes, taken),
                self.stream.num_workers,
                pin_memory=torch.accelerator.is_available(),
            )
            with closing(decoded):
                for pixels in decoded:
                    end, seeds, labels = taken.popleft()
                    flipped = augmentation.flip(pixels.to(device, non_blocking=True), seeds)
                    batch = {"pixel_values": form.to_batch(flipped)}
                    yield PassBatch(batch if labels is None else {**batch, "labels": labels.to(device)}, end)

    def _take(
        self,
        images: Iterator[StreamedImage],
        first: Position,
        processes: Processes,
        taken: deque[tuple[Position, np.ndarray, torch.Tensor | None]],
    ) -> Iterator[list[StreamedImage]]:
        """This process's batches; where each ends, the seeds and the classes of its images go to `taken`."""
        rows = first.rows
        for count in itertools.count():
            batch = list(itertools.islice(images, self.batch_size))
            if not batch:
                return
            rows += len(batch)
            if count % processes.number == processes.index:
                state = batch[-1].state
                end = Position(first.batches + count + 1, rows, state.part, state.row)
                seeds = np.array([image.seed for image in batch], np.uint64)
                taken.append((end, seeds, self._labels(batch)))
                yield batch

    def _labels(self, images: list[StreamedImage]) -> torch.Tensor | None:
        if self.stream.label_column is None:
            return None
        names = self.stream.label_names
        number = MAX_CLASSES if names is None else len(names)
        for image in images:
            if image.label is None or not 0 <= image.label < number:
                raise ValueError(
                    f"{image.names.name(image.row, image.raw)} has the class {image.label} in the column "
                    f"{self.stream.label_column!r}; classes go from 0 to {number - 1}. Set data.label_column to "
                    f"another column, or to {NO_CLASSES} for no classes."
                )
        return torch.tensor([image.label for image in images])
