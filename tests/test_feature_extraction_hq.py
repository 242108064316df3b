"""The front end of sound, against transformers' spectrograms in NumPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel

SETTINGS = {"feature_size": 20, "sampling_rate": 8000, "hop_length": 80, "win_length": 200, "n_fft": 512}


def chirp(seconds: float, rate: int = 8000) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 800 * time) * time)).astype(np.float32)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("preemphasis", [None, 0.97])
def test_spectrograms_are_those_of_transformers(power: float, preemphasis: float | None) -> None:
    sound = chirp(0.5) + 0.01 * np.random.default_rng(0).normal(size=4000).astype(np.float32)
    extractor = HQFeatureExtractor(**SETTINGS, power=power, preemphasis=preemphasis, mean_db=-30.0, std_db=12.0)
    filtered = sound if preemphasis is None else np.append(sound[0], sound[1:] - preemphasis * sound[:-1])
    expected = spectrogram(
        filtered,
        window_function(200, "hann", frame_length=512),
        frame_length=512,
        hop_length=80,
        power=power,
        pad_mode="constant",
        mel_filters=mel_filter_bank(257, 20, 0.0, 4000.0, 8000, norm="slaney", mel_scale="slaney"),
        log_mel="dB",
        mel_floor=1e-30,
        min_value=1e-8 if power == 2 else 1e-4,
    )
    assert expected.shape == (20, 51)
    np.testing.assert_allclose(extractor.decibels(sound), expected, atol=2e-3)
    np.testing.assert_allclose(extractor.spectrogram(sound), (expected + 30) / 12, atol=1e-3)


def test_silence_is_the_floor_and_twice_the_amplitude_6_db_more() -> None:
    extractor = HQFeatureExtractor(**SETTINGS, floor_db=-70.0)
    np.testing.assert_allclose(extractor.decibels(np.zeros(800, np.float32)), -70, atol=1e-4)
    loud, quiet = extractor.decibels(chirp(0.5)), extractor.decibels(chirp(0.5) / 2)
    heard = quiet > -60
    assert heard.sum() > 100
    np.testing.assert_allclose((loud - quiet)[heard], 20 * np.log10(2), atol=1e-3)


def test_batches_are_padded_to_whole_positions_and_masked() -> None:
    extractor = HQFeatureExtractor(**SETTINGS, pad_to_multiple_of=4, mean_db=-40.0, std_db=10.0)
    sounds = [chirp(0.30), chirp(0.15)]
    inputs = extractor(sounds, sampling_rate=8000)
    assert inputs["pixel_values"].shape == (2, 1, 20, 32)
    assert inputs["attention_mask"].tolist() == [[1] * 31 + [0], [1] * 16 + [0] * 16]
    for item, sound in enumerate(sounds):
        own = extractor.spectrogram(sound)
        np.testing.assert_array_equal(inputs["pixel_values"][item, 0, :, : own.shape[1]].numpy(), own)
        assert not inputs["pixel_values"][item, 0, :, own.shape[1] :].any()
    cut = extractor(sounds, padding="max_length", max_length=12, truncation=True, return_tensors="np")
    assert cut["pixel_values"].shape == (2, 1, 20, 12)
    lines = HQFeatureExtractor(**SETTINGS, grid_dims=1)(sounds[0])
    assert lines["pixel_values"].shape == (1, 20, 1, 31)


def test_other_rates_are_resampled() -> None:
    extractor = HQFeatureExtractor(**SETTINGS)
    fast, slow = chirp(0.5, 16000), chirp(0.5, 8000)
    first = extractor(fast, sampling_rate=16000)["pixel_values"][..., 3:-3]
    second = extractor(slow, sampling_rate=8000)["pixel_values"][..., 3:-3]
    loud = second > -20
    assert loud.any()
    assert (first - second)[loud].abs().max() < 1.0


def test_a_segment_has_the_values_that_it_has_in_the_whole() -> None:
    extractor = HQFeatureExtractor(**SETTINGS)
    whole = extractor.decibels(chirp(1.0))
    part = extractor.decibels(chirp(1.0)[1600:4800])
    np.testing.assert_allclose(part[:, 4:-4], whole[:, 20:61][:, 4:-4], atol=1e-2)


def test_saved_with_the_model_and_found_by_name(tmp_path) -> None:
    extractor = HQFeatureExtractor(
        **SETTINGS, mean_db=-33.0, std_db=15.0, grid_dims=1, pad_to_multiple_of=2, preemphasis=0.97, power=1.0
    )
    config = SQVAEConfig(
        modality="sound", grid_dims=1, image_size=[1, 16], num_channels=20, hidden_size=4, num_downsampling=1
    )
    assert extractor.suits(config)
    assert not HQFeatureExtractor(**SETTINGS).suits(config)
    SQVAEModel(config).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    again = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(again) is HQFeatureExtractor
    assert again.to_dict() == extractor.to_dict()
    inputs = again([chirp(0.3), chirp(0.2)])
    torch.testing.assert_close(inputs["pixel_values"], extractor([chirp(0.3), chirp(0.2)])["pixel_values"])
    output = SQVAEModel.from_pretrained(tmp_path)(**inputs)
    assert output.reconstruction.shape == inputs["pixel_values"].shape


@pytest.mark.parametrize("preemphasis", [None, 0.97])
def test_griffin_lim_finds_a_sound_of_the_spectrogram(preemphasis: float | None) -> None:
    extractor = HQFeatureExtractor(**{**SETTINGS, "feature_size": 60}, preemphasis=preemphasis, mean_db=-40, std_db=20)
    sound = chirp(0.4) + 0.02 * np.random.default_rng(0).normal(size=3200).astype(np.float32)
    inputs = extractor([sound, sound[:1600]])
    first, second = extractor.to_waveforms(inputs["pixel_values"], inputs["attention_mask"])
    assert (len(first), len(second)) == (3200, 1600)
    wanted, found = extractor.decibels(sound), extractor.decibels(first)
    assert np.sqrt(np.square(wanted - found).mean()) < 4
    # Noise with the same envelope over all bands would be far from it.
    assert np.sqrt(np.square(wanted - wanted.mean(0)).mean()) > 8


def test_a_vocoder_gets_decibels() -> None:
    extractor = HQFeatureExtractor(**SETTINGS, mean_db=-40.0, std_db=20.0)
    seen = []

    def vocoder(decibels: torch.Tensor) -> torch.Tensor:
        seen.append(decibels)
        return decibels.sum(1)

    inputs = extractor([chirp(0.2), chirp(0.1)])
    sounds = extractor.to_waveforms(inputs["pixel_values"], inputs["attention_mask"], vocoder)
    assert [len(sound) for sound in sounds] == [21, 11]
    np.testing.assert_allclose(seen[1][0].numpy(), extractor.decibels(chirp(0.1)), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"win_length": 1024}, "at most n_fft"),
        ({"feature_size": 1}, "at least 2 bands"),
        ({"std_db": 0.0}, "std_db must be at least"),
        ({"power": 3.0}, "power must be"),
        ({"grid_dims": 3}, "grid_dims must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HQFeatureExtractor(**{**SETTINGS, **settings})


def test_a_list_of_samples_of_any_type_is_one_sound() -> None:
    extractor = HQFeatureExtractor(**SETTINGS)
    samples = chirp(0.1)
    expected = extractor(samples)["pixel_values"]
    for given in (list(samples), samples.tolist(), tuple(samples)):
        assert torch.equal(extractor(given)["pixel_values"], expected)


def test_no_sounds_are_refused() -> None:
    with pytest.raises(ValueError, match="the list is empty"):
        HQFeatureExtractor(**SETTINGS)([])
