"""Sound in, log-mel spectrograms out, and back: the one place for the front end of models of sound.

A spectrogram is handed to a model as an image: (B, 1, bands, frames) on two-dimensional grids, (B, bands, 1, frames),
bands as channels, on one-dimensional ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.audio_utils import mel_filter_bank, window_function
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

from .sound_decoding import check_batch, decode_sound, is_waveform

Vocoder = Callable[[torch.Tensor], torch.Tensor]
_MOMENTUM = 0.99
_SMALLEST_STD = 1e-3


class HQFeatureExtractor(SequenceFeatureExtractor):
    """Prepares sounds for tokenizers of sound, and turns their output into sounds.

    The log-mel spectrogram in decibels (Slaney's filters, as librosa has them), from `floor_db` on, normalised:
    (dB − mean_db) / std_db. Levels are absolute, so that a segment of a sound has the values that it has in the whole.

    Args:
        feature_size: Mel bands.
        sampling_rate: Samples per second; sounds of another rate are resampled.
        hop_length: Samples from one frame to the next.
        win_length: Samples of the Hann window.
        n_fft: Samples of the Fourier transform, in whose middle the window lies; None: the next power of two.
        min_frequency: Lower end of the lowest band in Hz.
        max_frequency: Upper end of the highest band in Hz; None: half the sampling rate.
        power: 2.0 adds powers within a band, 1.0 amplitudes, as the SQ-VAE paper's speech code does.
        preemphasis: Coefficient c of x_t − c x_{t−1}, 0.97 in that code; None for none.
        floor_db: The smallest value; silence has it.
        mean_db: Mean of the training data.
        std_db: Standard deviation of the training data.
        grid_dims: Of the model: 2, or 1 for bands as channels.
        pad_to_multiple_of: Frames are padded to a multiple of this, the stride of the model.
        padding_value: Normalised value of padded frames.
        **kwargs: Other settings of transformers' feature extractors.

    Raises:
        ValueError: For a window longer than the transform, fewer than two bands, or no spread to divide by.

    Examples:
        >>> import numpy as np
        >>> from hq_tokenizers import HQFeatureExtractor
        >>> extractor = HQFeatureExtractor(sampling_rate=8000, hop_length=80, win_length=200, pad_to_multiple_of=4)
        >>> inputs = extractor([np.zeros(8000, np.float32), np.zeros(4000, np.float32)], sampling_rate=8000)
        >>> inputs["pixel_values"].shape, inputs["attention_mask"].sum(1).tolist()
        (torch.Size([2, 1, 80, 104]), [101, 51])
    """

    model_input_names = ["pixel_values", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        hop_length: int = 160,
        win_length: int = 400,
        n_fft: int | None = None,
        min_frequency: float = 0.0,
        max_frequency: float | None = None,
        power: float = 2.0,
        preemphasis: float | None = None,
        floor_db: float = -80.0,
        mean_db: float = 0.0,
        std_db: float = 1.0,
        grid_dims: int = 2,
        pad_to_multiple_of: int = 1,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.hop_length = hop_length
        self.win_length = win_length
        self.n_fft = 2 ** (win_length - 1).bit_length() if n_fft is None else n_fft
        self.min_frequency = min_frequency
        self.max_frequency = sampling_rate / 2 if max_frequency is None else max_frequency
        self.power = power
        self.preemphasis = preemphasis
        self.floor_db = floor_db
        self.mean_db = mean_db
        self.std_db = std_db
        self.grid_dims = grid_dims
        self.pad_to_multiple_of = pad_to_multiple_of
        self.check()
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=1 + self.n_fft // 2,
            num_mel_filters=feature_size,
            min_frequency=min_frequency,
            max_frequency=self.max_frequency,
            sampling_rate=sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.window = window_function(win_length, "hann", frame_length=self.n_fft)

    def check(self) -> None:
        """Raises a ValueError for settings that do not go together."""
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} must be at most n_fft {self.n_fft}.")
        if self.feature_size < 2:
            raise ValueError(f"feature_size must be at least 2 bands, got {self.feature_size}.")
        if not self.std_db >= _SMALLEST_STD:
            raise ValueError(f"std_db must be at least {_SMALLEST_STD} dB, got {self.std_db}.")
        if self.power not in (1.0, 2.0):
            raise ValueError(f"power must be 1.0 (amplitudes) or 2.0 (powers), got {self.power!r}.")
        if self.grid_dims not in (1, 2):
            raise ValueError(f"grid_dims must be 1 or 2, got {self.grid_dims!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings, as they are saved."""
        return {name: value for name, value in super().to_dict().items() if name not in ("mel_filters", "window")}

    @property
    def frames_per_second(self) -> float:
        """Frames per second of sound."""
        return self.sampling_rate / self.hop_length

    def suits(self, config: PreTrainedConfig) -> bool:
        """Whether a model of sound has been made for spectrograms of this form."""
        bands = self.feature_size
        height = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        expected = (1, bands) if self.grid_dims == 1 else (bands, 1)
        return (config.grid_dims, height, config.num_channels) == (self.grid_dims, *expected)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Spectrograms of one sound or a list of them.

        Args:
            raw_speech: Samples (n,), a path, the bytes of a sound file, what `datasets` has in an `Audio` column; or a
                list of them.
            sampling_rate: Of samples that do not say it; None: that of the extractor.
            padding: True or "longest" pads to the longest of the batch, "max_length" to `max_length`, in both cases
                rounded up to the model's stride.
            max_length: Frames.
            truncation: Whether longer sounds are cut to `max_length`.
            pad_to_multiple_of: Instead of the extractor's.
            return_tensors: "pt" or "np".
            **kwargs: As `SequenceFeatureExtractor.pad` takes them.

        Returns:
            "pixel_values", float32 (B, 1, bands, W), or (B, bands, 1, W) with `grid_dims=1`; "attention_mask" (B, W),
            1 for frames of a sound and 0 for padding.

        Raises:
            ValueError: For an empty list or an empty sound.
        """
        sounds = raw_speech if _is_batch(raw_speech) else [raw_speech]
        if not len(sounds):
            raise ValueError("There are no sounds to process: the list is empty.")
        waveforms = [decode_sound(sound, self.sampling_rate, sampling_rate) for sound in sounds]
        padded = self.pad(
            BatchFeature({"pixel_values": [self.spectrogram(waveform).T for waveform in waveforms]}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of or self.pad_to_multiple_of,
            return_tensors="np",
            **kwargs,
        )
        bands_last = np.asarray(padded["pixel_values"], np.float32)
        padded["pixel_values"] = self.as_images(bands_last.transpose(0, 2, 1))
        return padded.convert_to_tensors(return_tensors) if return_tensors else padded

    def spectrogram(self, waveform: np.ndarray) -> np.ndarray:
        """The normalised spectrogram of samples (n,): float32 (bands, 1 + ⌊n / hop_length⌋)."""
        decibels = self.decibels(waveform)
        return ((decibels - self.mean_db) / self.std_db).astype(np.float32)

    def decibels(self, waveform: np.ndarray) -> np.ndarray:
        """The spectrogram of samples (n,) in dB, before it is normalised: float32 (bands, 1 + ⌊n / hop_length⌋)."""
        samples = torch.from_numpy(np.asarray(waveform, np.float32))
        if self.preemphasis is not None:
            samples = torch.cat([samples[:1], samples[1:] - self.preemphasis * samples[:-1]])
        filters = torch.as_tensor(self.mel_filters, dtype=torch.float32)
        bands = filters.T @ self._stft(samples).abs() ** self.power
        return (20 / self.power * bands.clamp_min(10.0 ** (self.floor_db * self.power / 20)).log10()).numpy()

    def _stft(self, samples: torch.Tensor) -> torch.Tensor:
        """(n,) → complex (n_fft / 2 + 1, 1 + ⌊n / hop_length⌋); silence before and after the sound."""
        window = torch.as_tensor(self.window, dtype=torch.float32, device=samples.device)
        return torch.stft(samples, self.n_fft, self.hop_length, window=window, pad_mode="constant", return_complex=True)

    def as_images(self, spectrograms: Any) -> Any:
        """Spectrograms (B, bands, W), arrays or tensors, as the model takes them."""
        return spectrograms[:, :, None] if self.grid_dims == 1 else spectrograms[:, None]

    def to_decibels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Spectrograms of a model, in dB: (B, 1, bands, W) or (B, bands, 1, W) → float32 (B, bands, W)."""
        spectrograms = pixel_values.detach().float().squeeze(2 if self.grid_dims == 1 else 1)
        return spectrograms * self.std_db + self.mean_db

    def to_waveforms(
        self,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        vocoder: Vocoder | None = None,
        num_iterations: int = 60,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """Sounds of spectrograms.

        Args:
            pixel_values: As a model gives them.
            attention_mask: (B, W); frames that are 0 make no sound.
            vocoder: Maps log-mel spectrograms in dB, float32 (1, bands, W), to samples (1, n) or (n,) at the sampling
                rate. None: the Griffin-Lim algorithm.
            num_iterations: Of the Griffin-Lim algorithm.
            seed: Of its first phases.

        Returns:
            A float32 array (n,) per item, on the CPU.
        """
        waveforms = []
        for index, decibels in enumerate(self.to_decibels(pixel_values)):
            if attention_mask is not None:
                decibels = decibels[:, attention_mask[index].bool()]
            if vocoder is None:
                samples = self._griffin_lim(decibels, num_iterations, seed)
            else:
                samples = vocoder(decibels[None]).reshape(-1)
            waveforms.append(samples.detach().float().cpu().numpy())
        return waveforms

    def _griffin_lim(self, decibels: torch.Tensor, num_iterations: int, seed: int) -> torch.Tensor:
        """Samples whose spectrogram is (bands, W), by the fast Griffin-Lim algorithm (Perraudin et al., 2013)."""
        device = decibels.device
        filters = torch.as_tensor(self.mel_filters, dtype=torch.float32, device=device)
        bands = 10 ** (decibels * self.power / 20)
        # Least squares, and nothing below zero.
        magnitudes = (torch.linalg.pinv(filters.T) @ bands).clamp_min(0) ** (1 / self.power)
        window = torch.as_tensor(self.window, dtype=torch.float32, device=device)
        length = max(1, (decibels.shape[-1] - 1) * self.hop_length)

        def invert(angles: torch.Tensor) -> torch.Tensor:
            return torch.istft(magnitudes * angles, self.n_fft, self.hop_length, window=window, length=length)

        phases = torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        angles = torch.polar(torch.ones_like(magnitudes), 2 * torch.pi * phases)
        previous = torch.zeros_like(angles)
        for _ in range(num_iterations):
            rebuilt = self._stft(invert(angles))
            angles = rebuilt - _MOMENTUM / (1 + _MOMENTUM) * previous
            angles, previous = angles / angles.abs().clamp_min(1e-16), rebuilt
        samples = invert(angles)
        return samples if self.preemphasis is None else _deemphasis(samples, self.preemphasis)


def _deemphasis(samples: torch.Tensor, coefficient: float) -> torch.Tensor:
    """The inverse of the filter x_t − coefficient · x_{t−1}."""
    from scipy.signal import lfilter

    return torch.from_numpy(lfilter([1.0], [1.0, -coefficient], samples.cpu().double().numpy())).to(samples)


def _is_batch(sounds: Any) -> bool:
    """Whether these are several sounds: a list of anything but numbers, or an array of two axes."""
    if isinstance(sounds, Sequence) and not isinstance(sounds, str | bytes | bytearray | memoryview):
        return not is_waveform(sounds)
    check_batch(sounds)
    return isinstance(sounds, np.ndarray | torch.Tensor) and sounds.ndim > 1
