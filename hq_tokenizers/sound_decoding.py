"""Sound files, bytes and arrays as mono waveforms of one sampling rate: the one place that decodes sound.

Plain WAV files are read by the standard library. Everything else is left to soundfile or torchcodec, whichever is
installed (the extra `audio`).
"""

from __future__ import annotations

import os
import wave
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import gcd
from numbers import Real
from typing import Any

import numpy as np
import torch

SOUND_ENDINGS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aif", ".aiff", ".au"})

_LARGEST_RATE, _LARGEST_FACTOR = 1_000_000, 48_000
_MOST_CHANNELS = 8


class UnreadableSoundError(ValueError):
    """A file or bytes that are no sound, broken or empty, or in a format for which a package is missing."""


def decode_sound(
    source: Any, sampling_rate: int, source_rate: int | None = None, name: str | None = None
) -> np.ndarray:
    """A sound as float32 (n,): the mean of its channels, in [-1, 1], resampled.

    Args:
        source: A path, bytes of a sound file, the {"bytes", "path"} or {"array", "sampling_rate"} of `datasets`, or
            samples: floats in [-1, 1] or integers, (n,), (channels, n) or (n, channels), of which the longer side is n.
        sampling_rate: Samples per second of the result.
        source_rate: Samples per second of samples that do not say it; None: `sampling_rate`.
        name: What errors call it; by default its path.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableSoundError: If it is no sound, broken or empty, or no installed package reads it.
        TypeError: If it is none of the above.
    """
    shown = name or (f"The sound {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else "The sound")
    if isinstance(source, Mapping) and "array" in source:
        said = source.get("sampling_rate")
        source, source_rate = np.asarray(source["array"]), source_rate if said is None else said
    elif isinstance(source, Mapping) and {"bytes", "path"} & set(source):
        stored = source.get("bytes")
        source = source.get("path") if stored is None else stored
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        samples, source_rate = _read(source, shown)
    elif isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        samples = np.asarray(source.cpu() if isinstance(source, torch.Tensor) else source)
        if samples.ndim == 2 and samples.shape[0] > samples.shape[1]:
            samples = samples.T  # scipy and soundfile have channels last
    else:
        raise TypeError(
            f"{shown} must be a path, the bytes of a sound file, an array of samples, or a dict with one of them as "
            f"'path', 'bytes' or 'array', got {_described(source)}."
        )
    source_rate = sampling_rate if source_rate is None else _checked_rate(source_rate, sampling_rate, shown)
    waveform = resample(_mono(samples, shown), source_rate, sampling_rate)
    if not waveform.size:
        raise UnreadableSoundError(f"{shown} has no samples.")
    if not np.isfinite(waveform).all():
        raise UnreadableSoundError(f"{shown} has samples that are NaN or infinite.")
    return waveform


def _described(source: Any) -> str:
    """The type of what is no sound, of a dict its keys."""
    return f"a dict with {list(source)}" if isinstance(source, Mapping) else type(source).__name__


def check_batch(sounds: Any) -> None:
    """Refuses an array that is one sound with its channels, and not several sounds of a few samples.

    Raises:
        ValueError: For (n, channels), as scipy and soundfile read files.
    """
    shape: tuple[int, ...] = tuple(getattr(sounds, "shape", ()))
    if len(shape) == 2 and shape[1] <= _MOST_CHANNELS < shape[0]:
        raise ValueError(
            f"An array {shape} would be {shape[0]:,} sounds of {shape[1]} samples: if it is one sound with its "
            'channels, give {"array": samples, "sampling_rate": rate}, or their mean.'
        )


def is_waveform(samples: Sequence[Any]) -> bool:
    """Whether a list is one of samples rather than of sounds."""
    return bool(len(samples)) and isinstance(samples[0], Real)


def resample(waveform: np.ndarray, source_rate: int, sampling_rate: int) -> np.ndarray:
    """The same sound at another rate, by a polyphase filter without aliasing: float32 (n,) → float32 (⌈n·new/old⌉,)."""
    if source_rate == sampling_rate or not waveform.size:
        return waveform
    from scipy.signal import resample_poly

    common = gcd(source_rate, sampling_rate)
    return resample_poly(waveform, sampling_rate // common, source_rate // common).astype(np.float32)


def _checked_rate(rate: Any, sampling_rate: int, shown: str) -> int:
    """A rate that a file or a caller states: a damaged header may say anything, and filters grow with it."""
    if rate != rate or not 1 <= rate <= _LARGEST_RATE or int(rate) != rate:
        raise UnreadableSoundError(
            f"{shown} has {rate} samples a second; a whole number from 1 to {_LARGEST_RATE:,} is read."
        )
    rate = int(rate)
    common = gcd(rate, sampling_rate)
    if max(rate, sampling_rate) // common > _LARGEST_FACTOR:
        raise UnreadableSoundError(
            f"{shown} has {rate:,} samples a second, which have no simple ratio to {sampling_rate:,}: resample it "
            "first."
        )
    return rate


def encode_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """The bytes of a 16-bit WAV file of float samples (n,), which are clipped to [-1, 1]."""
    samples = (np.clip(np.asarray(waveform, np.float64), -1, 1) * 32767).round().astype("<i2")
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(samples.tobytes())
    return target.getvalue()


def _mono(samples: np.ndarray, shown: str) -> np.ndarray:
    """Float32 (n,) of samples (n,) or (channels, n) of any type."""
    if samples.dtype.kind == "u":
        samples = samples.astype(np.float32) / 2 ** (8 * samples.itemsize - 1) - 1
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / 2 ** (8 * samples.itemsize - 1)
    elif samples.dtype.kind != "f":
        raise TypeError(f"{shown} must have real samples, got {samples.dtype}.")
    if samples.ndim == 2:
        samples = samples.mean(axis=0)
    if samples.ndim != 1:
        raise ValueError(f"{shown} must have shape (n,), (channels, n) or (n, channels), got {samples.shape}.")
    return np.ascontiguousarray(samples, dtype=np.float32)


def _read(source: Any, shown: str) -> tuple[np.ndarray, int]:
    """Samples (channels, n) and their rate."""
    data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else None
    if data is None and not os.path.isfile(source):
        raise FileNotFoundError(f"{shown}: there is no such file.")
    try:
        return _read_wav(source if data is None else BytesIO(data))
    except (wave.Error, EOFError):
        pass
    opened = os.fspath(source) if data is None else BytesIO(data)
    for read in (_read_by_soundfile, _read_by_torchcodec):
        try:
            return read(opened)
        except ImportError:
            continue
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnreadableSoundError(f"{shown} cannot be read ({reason}): repair it or leave it out.") from error
    raise UnreadableSoundError(
        f"{shown} is no plain WAV file; other formats need soundfile or torchcodec: pip install 'hq_tokenizers[audio]'."
    )


def _read_wav(file: Any) -> tuple[np.ndarray, int]:
    with wave.open(os.fspath(file) if isinstance(file, os.PathLike) else file, "rb") as sound:
        width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
        data = sound.readframes(sound.getnframes())
    data = data[: len(data) // (width * channels) * width * channels]
    if width == 1:
        samples = np.frombuffer(data, np.uint8)
    elif width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4")[:, 0]
    else:
        samples = np.frombuffer(data, f"<i{width}")
    return samples.reshape(-1, channels).T, rate


def _read_by_soundfile(file: Any) -> tuple[np.ndarray, int]:
    import soundfile

    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return samples.T, rate


def _read_by_torchcodec(file: Any) -> tuple[np.ndarray, int]:
    from torchcodec.decoders import AudioDecoder

    samples = AudioDecoder(file.getvalue() if isinstance(file, BytesIO) else file).get_all_samples()
    return samples.data.numpy(), samples.sample_rate
