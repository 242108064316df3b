"""How sounds become spectrograms, for tokenizers of sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from hq_tokenizers.checks import Count, Name, Range, check_fields

Decibels = Annotated[float, Range(-300, 300)]
Hertz = Annotated[float, Range(0, 1e6)]


@dataclass(kw_only=True)
class SoundConfig:
    """Options of sounds, which a model of sound (model.modality) is trained on.

    Raises:
        ValueError: If a number is out of its range, or only one of mean and standard deviation is given.
    """

    audio_column: Annotated[
        Name | None,
        "column of the sounds (as `datasets` marks them, or bytes of sound files); null finds the only one. Rows "
        "without a sound are left out; a sound that is broken or unreadable is refused by name",
    ] = None
    speaker_column: Annotated[
        Name | None,
        "column of the speakers (names, integers, texts), of whom the decoder is then told; null tells it nothing",
    ] = None
    sampling_rate: Annotated[
        Annotated[int, Range(100, 1_000_000)], "samples per second; sounds of another rate are resampled"
    ] = 16000
    num_mel_bands: Annotated[Annotated[int, Range(2, 4096)], "mel bands of the spectrogram"] = 80
    hop_length: Annotated[Count, "samples from one frame to the next"] = 160
    win_length: Annotated[Count, "samples of the Hann window"] = 400
    n_fft: Annotated[Count | None, "samples of the Fourier transform; null: the next power of two"] = None
    min_frequency: Annotated[Hertz, "lower end of the lowest band in Hz"] = 0.0
    max_frequency: Annotated[Hertz | None, "upper end of the highest band in Hz; null: half the sampling rate"] = None
    power: Annotated[Literal[1, 2], "2 adds powers within a band, 1 amplitudes"] = 2
    preemphasis: Annotated[
        Annotated[float, Range(0, 1)] | None, "coefficient c of the filter x_t − c x_{t−1}; null for none"
    ] = None
    floor_db: Annotated[Decibels, "smallest value of the spectrogram in dB, that of silence"] = -80.0
    mean_db: Annotated[Decibels | None, "what is subtracted from the spectrogram; null: the training sounds' mean"] = (
        None
    )
    std_db: Annotated[
        Annotated[float, Range(0.001, 300)] | None,
        "what it is divided by; null: the training sounds' standard deviation",
    ] = None
    segment_frames: Annotated[
        Count | None,
        "train on a random segment of so many frames of every sound, shorter sounds are padded; null takes whole "
        "sounds. Validation always does",
    ] = None

    def __post_init__(self) -> None:
        check_fields(self, prefix="data.sound.")
        if (self.mean_db is None) != (self.std_db is None):
            raise ValueError("data.sound.mean_db and data.sound.std_db go together: set both, or none.")
