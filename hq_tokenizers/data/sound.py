"""Sounds as batches of spectrograms with a mask: kept in memory where they fit, otherwise made by worker processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.sound_decoding import decode_sound

from .batches import evenly
from .images import HASHED_ROWS, MEMORY_LIMIT, Batch, LazyRows, RowNames
from .workers import decoded_batches

if TYPE_CHECKING:
    from datasets import Dataset

MODEL_INPUTS = ("pixel_values", "attention_mask", "speaker_ids")
_SURVEYED = 1000
_FULL_SCALE, _CLIPPED_SHARE = 0.999, 1e-3
_SILENT_PEAK = 1e-4


def model_inputs(batch: Batch) -> Batch:
    """What of a batch, of images or of sounds, a tokenizer's `forward` takes."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


@dataclass(frozen=True)
class SpectrogramFormat:
    """How raw sounds become spectrograms in dB.

    Args:
        extractor: The front end.
    """

    extractor: HQFeatureExtractor

    def __str__(self) -> str:
        settings = {
            name: value for name, value in self.extractor.to_dict().items() if name not in ("mean_db", "std_db")
        }
        return f"spectrograms, {settings}"

    def decode(self, raw: Any) -> np.ndarray:
        """Float32 (bands, frames) in dB.

        Raises:
            FileNotFoundError, UnreadableSoundError: As `decode_sound` does.
        """
        return self.extractor.decibels(decode_sound(raw, self.extractor.sampling_rate))


@dataclass(frozen=True)
class Survey:
    """What up to 1,000 sounds of a split, spread evenly, are like.

    Args:
        seen: How many were looked at.
        seconds: Their mean length.
        silent: How many have no sample above 1e-4 of full scale (−80 dB).
        clipped: How many have at least one sample in 1,000 at full scale.
    """

    seen: int
    seconds: float
    silent: int
    clipped: int

    @classmethod
    def of(cls, rows: LazyRows, sampling_rate: int) -> Survey:
        """Looks at the sounds of rows."""
        numbers = evenly(len(rows), _SURVEYED)
        seconds, silent, clipped = 0.0, 0, 0
        for number in numbers:
            with rows.names.named(number, raw := rows.raw(number)):
                samples = np.abs(decode_sound(raw, sampling_rate))
            seconds += len(samples) / sampling_rate
            silent += bool(samples.max() < _SILENT_PEAK)
            clipped += bool((samples >= _FULL_SCALE).mean() >= _CLIPPED_SHARE)
        return cls(len(numbers), seconds / len(numbers), silent, clipped)

    def notes(self, split: str) -> list[str]:
        """What there is to say about them."""
        found = {
            "silent (no sample above −80 dB)": self.silent,
            "clipped (one sample in 1,000 at full scale, or more)": self.clipped,
        }
        return [
            f"{number:,} of {self.seen:,} sounds of {split!r} are {what}." for what, number in found.items() if number
        ]


class SoundRows:
    """One split of sounds; a `BatchSource`.

    Args:
        rows: A `datasets` split.
        column: Its column of sounds.
        names: What errors call its rows.
        extractor: The front end; all splits share it.
        labels: LongTensor (N,) of classes, or None.
        label_names: Names of the classes, or None.
        speakers: LongTensor (N,), or None.
        speaker_names: Names of the speakers, or None.
        num_workers: Decoding processes, used when the spectrograms do not fit in memory.
        memory_limit: Bytes up to which the spectrograms are kept in memory.
    """

    def __init__(
        self,
        rows: Dataset,
        column: str,
        names: RowNames,
        extractor: HQFeatureExtractor,
        labels: torch.Tensor | None = None,
        label_names: list[str] | None = None,
        speakers: torch.Tensor | None = None,
        speaker_names: list[str] | None = None,
        num_workers: int = 0,
        memory_limit: int = MEMORY_LIMIT,
    ):
        self.extractor = extractor
        self.labels = labels
        self.label_names = label_names
        self.speakers = speakers
        self.speaker_names = speaker_names
        self._lazy = LazyRows(rows, column, names, SpectrogramFormat(extractor), "sounds")
        self._num_workers = num_workers
        self.survey = Survey.of(self._lazy, extractor.sampling_rate)
        size = len(self) * self.survey.seconds * extractor.frames_per_second * extractor.feature_size * 4
        self.spectrograms: list[torch.Tensor] | None = None
        """In dB, (bands, frames) each; None where they do not fit in memory."""
        if size <= memory_limit:
            self.spectrograms = list(map(torch.from_numpy, self._lazy.decode_each()))

    def __len__(self) -> int:
        return len(self._lazy)

    def waveform(self, index: int) -> np.ndarray:
        """The samples (n,) of a sound."""
        with self._lazy.names.named(index, raw := self._lazy.raw(index)):
            return decode_sound(raw, self.extractor.sampling_rate)

    @property
    def longest(self) -> int | None:
        """Frames of the longest sound; None where it is not known without reading all."""
        return None if self.spectrograms is None else max(values.shape[-1] for values in self.spectrograms)

    def model_fields(self, segment_frames: int | None) -> dict[str, Any]:
        """Fields of a tokenizer's configuration that these sounds decide.

        Args:
            segment_frames: Frames of a training segment; None takes the longest sound, rounded up to whole positions.

        Raises:
            ValueError: If segments are no whole positions, or the longest sound is not known.
        """
        extractor, stride = self.extractor, self.extractor.pad_to_multiple_of
        if segment_frames is not None and segment_frames % stride:
            raise ValueError(
                f"data.sound.segment_frames must be a multiple of the model's stride {stride}, got {segment_frames}: "
                f"use {round_up(segment_frames, stride)}."
            )
        longest = segment_frames or self.longest
        if longest is None:
            raise ValueError("The sounds do not fit in memory: set data.sound.segment_frames to train on segments.")
        bands, frames = extractor.feature_size, round_up(longest, stride)
        one_dimensional = extractor.grid_dims == 1
        fields = {
            "image_size": [1 if one_dimensional else bands, frames],
            "num_channels": bands if one_dimensional else 1,
        }
        return fields if self.speaker_names is None else {**fields, "num_speakers": len(self.speaker_names)}

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the spectrograms in dB; of a thousand where they are not in memory."""
        if self.spectrograms is None:
            values = [torch.from_numpy(self._lazy.decode(number)) for number in evenly(len(self), _SURVEYED)]
        else:
            values = self.spectrograms
        number = sum(value.numel() for value in values)
        mean = sum(value.double().sum().item() for value in values) / number
        variance = sum((value.double() - mean).square().sum().item() for value in values) / number
        return mean, math.sqrt(variance)

    def sha256(self) -> str:
        """Hash of the sounds, as `ImageRows.sha256`: of their spectrograms in memory, else of up to 50,000 files."""
        digest = hashlib.sha256(f"{len(self)} × {self._lazy.form}".encode())
        if self.spectrograms is not None:
            for values in self.spectrograms:
                digest.update(np.ascontiguousarray(values.numpy()).data)
        else:
            for raw in self._lazy.some_encoded(HASHED_ROWS):
                digest.update(hashlib.sha256(raw).digest())
        return digest.hexdigest()

    def batches(self, index_batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[Batch]:
        """Batches of whole sounds, padded to the longest of each.

        Yields:
            {"pixel_values", "attention_mask"} as `HQFeatureExtractor` gives them, "labels" (B,) when there are classes,
            "speaker_ids" (B,) when there are speakers.

        Raises:
            ValueError: For a sound that is unreadable, by its name.
        """
        columns = {"labels": self.labels, "speaker_ids": self.speakers}
        for indices, spectrograms in zip(index_batches, self._decibels(index_batches), strict=True):
            batch = self._padded(spectrograms)
            batch |= {name: column[indices] for name, column in columns.items() if column is not None}
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    def _decibels(self, index_batches: Sequence[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
        if self.spectrograms is not None:
            kept = self.spectrograms
            return ([kept[index] for index in indices.tolist()] for indices in index_batches)
        return decoded_batches(self._lazy, index_batches, self._num_workers, collate_fn=list)

    def _padded(self, spectrograms: Sequence[torch.Tensor]) -> Batch:
        extractor = self.extractor
        lengths = torch.tensor([values.shape[-1] for values in spectrograms])
        width = round_up(int(lengths.max()), extractor.pad_to_multiple_of)
        padded = torch.full((len(spectrograms), extractor.feature_size, width), extractor.padding_value)
        for item, values in enumerate(spectrograms):
            padded[item, :, : values.shape[-1]] = (values - extractor.mean_db) / extractor.std_db
        mask = torch.arange(width) < lengths[:, None]
        return {"pixel_values": extractor.as_images(padded), "attention_mask": mask.long()}


def random_segments(batch: Batch, num_frames: int) -> Batch:
    """A random segment of every sound, by torch's global noise, which checkpoints keep.

    Args:
        batch: Of `SoundRows`.
        num_frames: Frames of a segment; shorter sounds are padded to it.
    """
    values, mask = batch["pixel_values"], batch["attention_mask"]
    missing = max(0, num_frames - values.shape[-1])
    values, mask = F.pad(values, (0, missing)), F.pad(mask, (0, missing))
    room = (mask.sum(1) - num_frames).clamp_min(0)
    first = (torch.rand(len(values), device=values.device) * (room + 1)).long().clamp_max(room)
    frames = first[:, None] + torch.arange(num_frames, device=values.device)
    where = frames[:, None, None].expand(*values.shape[:3], -1)
    return {**batch, "pixel_values": values.gather(-1, where), "attention_mask": mask.gather(1, frames)}


def first_frames(batch: Batch, num_frames: int) -> Batch:
    """The first frames of every sound, padded where it has fewer.

    Args:
        batch: Of `SoundRows`.
        num_frames: Frames of each.
    """
    missing = max(0, num_frames - batch["pixel_values"].shape[-1])
    cut = {name: F.pad(batch[name], (0, missing))[..., :num_frames] for name in ("pixel_values", "attention_mask")}
    return {**batch, **cut}


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple
