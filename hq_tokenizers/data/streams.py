"""Images that are read from beginning to end: data sets too large to be prepared on disk, of a length nobody knows.

A process reads the parts (files, or groups of them) that are its own, in another order in every pass, block by block of
`shuffle_buffer` images, and shuffles each block. Where a block began, how many of its images were given, and a hash of
all that were is the whole state: who continues reads the block again, and finds out whether it is the same.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hq_tokenizers.randomness import hashed_seeds

from .augmentation import Augmentation
from .batches import share_of_batch
from .images import Batch, ImageFormat, RowNames, encoded_bytes
from .workers import decoded_batches

if TYPE_CHECKING:
    from datasets import IterableDataset

MAX_PARTS = 1024
STEPS_OF_AN_EPOCH = 1000
"""What happens once an epoch happens every so many steps, since a stream has no epochs that are known."""


class StreamState(NamedTuple):
    """Where a process is.

    Args:
        passes: Passes over its parts before this one.
        part: Parts of this pass before that in which the block begins.
        row: Rows of it before the block.
        used: Images of the block that were given.
        before: Hash of all images that were given before the block.
        seen: Hash of all images that were given.
    """

    passes: int = 0
    part: int = 0
    row: int = 0
    used: int = 0
    before: bytes = bytes(32)
    seen: bytes = bytes(32)


class StreamedRow(NamedTuple):
    """Place of a part in the order that parts are read in, number of a row in the part, its raw image and its class."""

    place: int
    number: int
    raw: Any
    label: Any


class StreamedImage(NamedTuple):
    """An image as it is stored, what errors call it, its class, the seed of its random changes, the state after it."""

    raw: Any
    names: RowNames
    row: int
    label: Any
    seed: int
    state: StreamState


@dataclass(frozen=True)
class ImageStream:
    """The training split as a stream.

    Args:
        dataset: An `IterableDataset`.
        column: Its column of raw images.
        split: Its name, for errors.
        image_format: How to decode them.
        files: What the data are, line by line, for the hash: names and sizes of files.
        parts: Those of `num_parts` parts of the data set that are the split.
        num_parts: Parts that the data set is divided into, at most its number of shards.
        shuffle_buffer: Images of a block.
        augmentation: Random changes.
        num_workers: Decoding processes.
        label_column: Its column of classes, which are read where they are wanted; or None.
        label_names: Names of the classes, or None where the column has numbers, of which the largest is not known yet.
    """

    dataset: IterableDataset
    column: str
    split: str
    image_format: ImageFormat
    files: tuple[str, ...]
    parts: tuple[int, ...]
    num_parts: int
    shuffle_buffer: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    num_workers: int = 0
    label_column: str | None = None
    label_names: list[str] | None = None

    def sha256(self) -> str:
        """Hash of the files' names and sizes and of the format; that of the images is in every checkpoint."""
        form = self.image_format
        lines = [f"stream of {form}, of at most {form.max_value}", f"{self.parts} of {self.num_parts}", *self.files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read(
        self, state: StreamState, seed: int, num_processes: int = 1, process_index: int = 0
    ) -> Generator[StreamedImage, None, None]:
        """The images of a process from a state on, without end.

        Args:
            state: Where to begin.
            seed: Of the order.
            num_processes: Processes; where there are fewer parts, each takes every so many rows of all of them.
            process_index: This process.

        Raises:
            ValueError: If the images that a state says were given are others now, or there are none.
        """
        enough = len(self.parts) >= num_processes
        parts = self.parts[process_index::num_processes] if enough else self.parts
        share = (1, 0) if enough else (num_processes, process_index)
        while True:
            order = np.random.default_rng((seed, process_index, state.passes)).permutation(parts).tolist()
            is_empty = (state.part, state.row) == (0, 0)
            with closing(self._rows(order, state.part, state.row, *share)) as rows:
                while block := list(islice(rows, self.shuffle_buffer)):
                    is_empty = False
                    seen = yield from self._shuffled(block, order, state, (seed, process_index))
                    state = StreamState(state.passes, block[-1].place, block[-1].number + 1, 0, seen, seen)
            if is_empty:
                raise ValueError(f"data.train_split {self.split!r} has no rows with an image for every process.")
            state = StreamState(state.passes + 1, before=state.seen, seen=state.seen)

    def in_order(self, state: StreamState, seed: int) -> Generator[StreamedImage, None, None]:
        """The images of one pass in the order in which they are stored, from a place on; all of them, for any process.

        Args:
            state: Where to begin; what was used of a block and the hashes do not count.
            seed: Of the random changes, which are those that `read` gives an image in the pass of the same number.
        """
        order = list(self.parts)
        with closing(self._rows(order, state.part, state.row, 1, 0)) as rows:
            for row in rows:
                after = StreamState(state.passes, row.place, row.number + 1)
                yield self._image(row, order, seed, after)

    def _image(self, row: StreamedRow, order: list[int], seed: int, after: StreamState) -> StreamedImage:
        part = order[row.place]
        (noise,) = hashed_seeds(seed, after.passes, part, row.number).tolist()
        return StreamedImage(row.raw, RowNames(f"{self.split}, part {part}"), row.number, row.label, noise, after)

    def _rows(
        self, order: list[int], first: int, skipped: int, step: int, offset: int
    ) -> Generator[StreamedRow, None, None]:
        for place in range(first, len(order)):
            part = self.dataset.shard(self.num_parts, order[place], contiguous=False)
            with closing(iter(part.skip(skipped) if skipped else part)) as rows:
                for number, row in enumerate(rows, start=skipped):
                    raw = row[self.column]
                    if number % step == offset and is_there(raw):
                        yield StreamedRow(place, number, raw, row.get(self.label_column))
            skipped = 0

    def _shuffled(
        self, block: list[StreamedRow], order: list[int], state: StreamState, seeds: tuple[int, int]
    ) -> Generator[StreamedImage, None, bytes]:
        """The images of a block that were not given yet; returns the hash of all that were, in the end."""
        begin = state.passes, state.part, state.row
        shuffled = np.random.default_rng((*seeds, *begin)).permutation(len(block)).tolist()
        seen = state.before
        for used, index in enumerate(shuffled, start=1):
            seen = hashlib.sha256(seen + hashlib.sha256(encoded_bytes(block[index].raw)).digest()).digest()
            if used > state.used:
                yield self._image(block[index], order, seeds[0], StreamState(*begin, used, state.before, seen))
            elif used == state.used:
                self._check_seen(seen, state)
        if state.used > len(block):
            self._check_seen(b"", state)
        return seen

    def _check_seen(self, seen: bytes, state: StreamState) -> None:
        if seen != state.seen:
            raise ValueError(
                f"The files of data.train_split {self.split!r} hold other images, or in another order, than when this "
                "run read them: put them back, or choose another output_dir."
            )


class StreamFeed:
    """Batches of a stream, from where it is on.

    Args:
        stream: The stream.
        batch_size: Images per optimiser step, over all processes and accumulation steps.
        seed: Of the order and the random changes.
        num_parts: Accumulation steps.
        num_processes: Processes.
        process_index: This process.

    Raises:
        ValueError: If a batch does not split evenly.
    """

    steps_per_epoch = STEPS_OF_AN_EPOCH

    def __init__(
        self,
        stream: ImageStream,
        batch_size: int,
        seed: int,
        num_parts: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.stream = stream
        self.seed = seed
        self.num_parts = num_parts
        self.processes = num_processes, process_index
        self.share = share_of_batch(batch_size, num_parts, num_processes)
        self.state = StreamState()

    def epochs(self, step: int) -> float | None:
        """Not known."""
        return None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What to give `load_state_dict` to continue after the batches that were taken."""
        numbers, hashes = self.state[:4], self.state[4:]
        return {
            "position": torch.tensor(numbers),
            "hashes": torch.from_numpy(np.frombuffer(b"".join(hashes), np.uint8).copy()),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Goes to where another one was."""
        passes, part, row, used = state["position"].tolist()
        before, seen = (hashed.numpy().tobytes() for hashed in state["hashes"].chunk(2))
        self.state = StreamState(passes, part, row, used, before, seen)

    def rest_of_epoch(self, step: int, device: torch.device) -> Generator[Batch, None, None]:
        """This process's next batches, part by part, up to a step that is a multiple of `steps_per_epoch`.

        Raises:
            ValueError: For an image that is unreadable or does not fit, by its name.
        """
        stream = self.stream
        number = (self.steps_per_epoch - step % self.steps_per_epoch) * self.num_parts
        after: deque[tuple[StreamState, np.ndarray]] = deque()
        with closing(stream.read(self.state, self.seed, *self.processes)) as images:
            # This process reads, others decode what they are handed: the order and the state are as simple as without.
            decoded = decoded_batches(
                StreamDecoder(stream.image_format, stream.augmentation),
                self._take(images, number, after),
                stream.num_workers,
                pin_memory=torch.accelerator.is_available(),
            )
            with closing(decoded):
                for pixels in decoded:
                    self.state, seeds = after.popleft()
                    flipped = stream.augmentation.flip(pixels.to(device, non_blocking=True), seeds)
                    yield {"pixel_values": stream.image_format.to_batch(flipped)}

    def _take(
        self, images: Iterator[StreamedImage], number: int, after: deque[tuple[StreamState, np.ndarray]]
    ) -> Iterator[list[StreamedImage]]:
        """So many batches; the state after each and its images' seeds go to `after`."""
        for _ in range(number):
            batch = list(islice(images, self.share))
            after.append((batch[-1].state, np.array([image.seed for image in batch], np.uint64)))
            yield batch


class StreamDecoder(torch.utils.data.Dataset):
    """Decodes the images that it is handed as indices."""

    def __init__(self, image_format: ImageFormat, augmentation: Augmentation):
        self.image_format = image_format
        self.augmentation = augmentation

    def __getitem__(self, image: StreamedImage) -> torch.Tensor:
        with image.names.named(image.row, image.raw):
            pixels = self.image_format.decode(image.raw, self.augmentation.with_noise(image.seed))
        return torch.from_numpy(pixels.copy())


def is_there(raw: Any) -> bool:
    """Whether a row has an image, by what its column holds."""
    if isinstance(raw, dict):
        return any(value is not None for value in raw.values())
    return raw is not None and not (isinstance(raw, str) and raw == "")
