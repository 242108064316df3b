"""Sounds, and spans of time, as users write them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from hq_tokenizers.checks import is_list
from hq_tokenizers.sound_decoding import check_batch, decode_sound, is_waveform

_ARRAYS = (np.ndarray, torch.Tensor)


def is_single_sound(audio: Any) -> bool:
    """Whether this is one sound rather than several.

    Sounds are paths, bytes, samples of one axis, and the {"bytes", "path"}, {"array", "sampling_rate"} or {"audio",
    "sampling_rate"} of `datasets` and pipelines.
    """
    if isinstance(audio, _ARRAYS):
        return audio.ndim == 1
    if isinstance(audio, (list, tuple)):
        return is_waveform(audio)
    return isinstance(audio, (str, os.PathLike, bytes, bytearray, memoryview, Mapping))


def decode_sounds(audio: Any, sampling_rate: int) -> Iterator[np.ndarray]:
    """One sound, or the sounds of a list, column, batch or stream, as float32 samples (n,), one by one.

    Args:
        audio: As users write them.
        sampling_rate: Samples per second of the results, and of samples that do not say it.

    Raises:
        TypeError: If it is neither, or an item is no single sound.
        FileNotFoundError: If a path leads to no file.
        ValueError: For an array of one sound with its channels.
        UnreadableSoundError: If a sound is broken or empty, by its index.
    """
    if is_single_sound(audio):
        yield _decode(audio, sampling_rate, "audio")
        return
    for index, item in enumerate(_items(audio)):
        if not is_single_sound(item):
            raise TypeError(f"audio[{index}] must be a single sound, got {type(item).__name__}.")
        yield _decode(item, sampling_rate, f"audio[{index}]")


def _items(audio: Any) -> Iterable[Any]:
    check_batch(audio)
    if is_list(audio) or isinstance(audio, (*_ARRAYS, Iterator, torch.utils.data.Dataset)):
        return audio
    raise TypeError(f"audio is a sound (path, bytes, samples) or a list of sounds, got {type(audio).__name__}.")


def _decode(sound: Any, sampling_rate: int, name: str) -> np.ndarray:
    if isinstance(sound, Mapping) and "audio" in sound:
        sound = {"array": sound["audio"], "sampling_rate": sound.get("sampling_rate")}
    shown = f"{name} ({sound})" if isinstance(sound, (str, os.PathLike)) else name
    return decode_sound(sound, sampling_rate, name=shown)


def mark_spans(spans: Any, frames_per_second: float, num_frames: int) -> torch.Tensor:
    """Which frames spans of time touch: BoolTensor (num_frames,); frame i is the time from i to i + 1 of them.

    Args:
        spans: A pair (start, end) in seconds, or a list of such.
        frames_per_second: Frames per second.
        num_frames: Frames of the sound.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there is none, or one ends before it starts, starts outside of the sound or is not finite.
    """
    pairs = [spans] if is_list(spans) and len(spans) == 2 and all(isinstance(end, Real) for end in spans) else spans
    if not is_list(pairs) or not all(is_list(pair) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"spans is a pair (start, end) in seconds, or a list of such, got {spans!r}.")
    if not len(pairs):
        raise ValueError("spans is empty: name at least one span of time.")
    seconds = num_frames / frames_per_second
    marked = torch.zeros(num_frames, dtype=torch.bool)
    for start, end in pairs:
        if not 0 <= start < end < math.inf or start >= seconds:
            raise ValueError(
                f"A span (start, end) must start within the {seconds:.2f} s of the sound, and end later, got "
                f"{(start, end)}."
            )
        # 0.29 s at 100 frames a second is frame 29, whatever the product is rounded to.
        first = math.floor(start * frames_per_second + 1e-6)
        marked[first : max(first + 1, math.ceil(end * frames_per_second - 1e-6))] = True
    return marked
