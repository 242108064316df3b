from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import linalg

from hq_tokenizers.evaluation.sound import decibel_figures, spectrogram_pictures, squared_error
from hq_tokenizers.evaluation.sound_sets import SoundDistance
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor

EXTRACTOR = HQFeatureExtractor(feature_size=4, sampling_rate=8000, floor_db=-80.0, mean_db=-40.0, std_db=20.0)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def test_errors_count_real_frames_only() -> None:
    values = torch.randn(2, 1, 4, 3)
    reconstruction = values + torch.tensor([1.0, 2.0, 3.0])
    error, number = squared_error(reconstruction, {"pixel_values": values, "attention_mask": MASK})
    assert error.item() == pytest.approx(4 * (1 + 4 + 9) + 4 * 1, rel=1e-5)
    assert number.item() == 16


def test_decibels_are_units_of_the_standard_deviation() -> None:
    figures = decibel_figures(0.25, EXTRACTOR)
    assert figures == {"mse_db2": 100.0, "rmse_db": 10.0, "rmse": 0.5}


@pytest.mark.parametrize("grid_dims", [1, 2])
def test_pictures_have_low_frequencies_below_and_white_padding(grid_dims: int) -> None:
    extractor = HQFeatureExtractor(**{**EXTRACTOR.to_dict(), "grid_dims": grid_dims})
    decibels = torch.full((2, 4, 3), -80.0)
    decibels[0, 0, 1] = 0.0
    decibels[0, 3, 2] = -40.0
    versions = {"original": extractor.as_images((decibels + 40) / 20), "loud": extractor.as_images(decibels + 200)}
    pictures = spectrogram_pictures(versions, {"attention_mask": MASK}, extractor)
    expected = torch.zeros(2, 1, 4, 3)
    expected[0, 0, 3, 1] = 1.0
    expected[0, 0, 0, 2] = 0.5
    expected[1, :, :, 1:] = 1.0
    torch.testing.assert_close(pictures["original"], expected)
    assert torch.equal(pictures["loud"], torch.ones(2, 1, 4, 3))


class Loudness:
    """Two features of a sound."""

    identity: ClassVar[dict] = {"name": "loudness"}

    def features(self, waveforms, sampling_rate):
        return torch.tensor([[abs(waveform).mean(), waveform.std()] for waveform in waveforms])


def test_too_few_sounds_are_said_to_be_sounds() -> None:
    sounds = [np.random.default_rng(seed).standard_normal(9) for seed in range(6)]
    distance = SoundDistance(Loudness(), 8000, allow_few=False)
    distance.add(sounds[:1], sounds[1:])
    with pytest.raises(ValueError, match="at least 2 sounds, there is 1 among the predictions"):
        distance.result({})
    distance.add(sounds[1:2])
    with pytest.raises(ValueError, match=r"2 predictions are too few sounds .* Add sounds, or set metrics\.allow_few"):
        distance.result({})
    distance.add(sounds[2:3])
    first, second = (
        np.array([[abs(sound).mean(), sound.std()] for sound in side]) for side in (sounds[:3], sounds[1:])
    )
    (mean, covariance), (other, reference) = ((rows.mean(0), np.cov(rows.T)) for rows in (first, second))
    root = linalg.sqrtm(covariance @ reference).real
    expected = ((mean - other) ** 2).sum() + np.trace(covariance + reference - 2 * root)
    assert distance.result({})["frechet_audio_distance"] == pytest.approx(expected, rel=1e-4)
