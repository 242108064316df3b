from __future__ import annotations

import wave
from io import BytesIO

import numpy as np
import pytest
import torch

from hq_tokenizers.sound_decoding import UnreadableSoundError, decode_sound, encode_wav, resample

RATE = 8000


def wav(samples: bytes, width: int, channels: int = 1, rate: int = RATE) -> bytes:
    target = BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)
    return target.getvalue()


@pytest.mark.parametrize(
    ("width", "samples"),
    [
        (1, bytes([0, 128, 192])),
        (2, np.array([-(2**15), 0, 2**14], "<i2").tobytes()),
        (3, b"\x00\x00\x80" + b"\x00\x00\x00" + b"\x00\x00\x40"),
        (4, np.array([-(2**31), 0, 2**30], "<i4").tobytes()),
    ],
)
def test_samples_of_every_width_are_fractions_of_full_scale(width: int, samples: bytes) -> None:
    np.testing.assert_allclose(decode_sound(wav(samples, width), RATE), [-1, 0, 0.5], atol=1e-6)


def test_every_way_to_give_a_sound_gives_the_same(tmp_path) -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 500).astype("<i2")
    data = wav(samples.tobytes(), 2)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    expected = samples / 2**15
    array = expected.astype(np.float32)
    for source in (
        *(data, path, str(path), samples, array, torch.from_numpy(array), {"bytes": data, "path": None}),
        *({"bytes": None, "path": str(path)}, {"array": array, "sampling_rate": RATE}),
    ):
        decoded = decode_sound(source, RATE)
        assert decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, expected, atol=1e-7)


def test_channels_are_averaged() -> None:
    samples = np.array([[1000, 3000], [-2000, 2000]], "<i2")
    np.testing.assert_allclose(decode_sound(wav(samples.tobytes(), 2, channels=2), RATE) * 2**15, [2000, 0], atol=1e-3)


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy, lambda a: {"array": a, "sampling_rate": RATE}])
def test_channels_are_the_shorter_side_of_an_array(of) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 9)).astype(np.float32)
    for each in (samples, np.ascontiguousarray(samples.T)):
        np.testing.assert_allclose(decode_sound(of(each), RATE), (samples[0] + samples[1]) / 2, atol=1e-7)


def test_a_file_of_one_frame_has_its_channels_averaged() -> None:
    samples = np.array([[1000, 3000]], "<i2")
    np.testing.assert_allclose(decode_sound(wav(samples.tobytes(), 2, channels=2), RATE) * 2**15, [2000], atol=1e-3)


def test_a_tone_keeps_its_frequency_and_what_would_alias_goes() -> None:
    seconds = np.arange(16000) / 16000
    low, high = (np.sin(2 * np.pi * frequency * seconds).astype(np.float32) for frequency in (440, 7000))
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    converted = resample(low, 16000, 8000)
    assert converted.shape == (8000,)
    np.testing.assert_allclose(converted[200:-200], expected[200:-200], atol=0.01)
    assert np.abs(resample(high, 16000, 8000)[200:-200]).max() < 0.05
    np.testing.assert_allclose(decode_sound({"array": low, "sampling_rate": 16000}, 8000), converted)


def test_what_is_written_is_read() -> None:
    samples = np.array([0.5, -0.25, 2.0, -2.0], np.float32)
    np.testing.assert_allclose(decode_sound(encode_wav(samples, RATE), RATE), [0.5, -0.25, 1, -1], atol=1e-4)


def test_what_is_no_sound_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'nowhere.wav'.*no such file"):
        decode_sound("nowhere.wav", RATE)
    with pytest.raises(UnreadableSoundError, match=r"Row 3 (is no plain WAV file|cannot be read)"):
        decode_sound(b"RIFF, almost", RATE, name="Row 3")
    with pytest.raises(UnreadableSoundError, match="no samples"):
        decode_sound(wav(b"", 2), RATE)
    with pytest.raises(UnreadableSoundError, match="NaN"):
        decode_sound(np.array([np.nan], np.float32), RATE)
    with pytest.raises(TypeError, match=r"an array of samples, or a dict .*, got int"):
        decode_sound(3, RATE)
    with pytest.raises(TypeError, match=r"'path', 'bytes' or 'array', got a dict with \['raw', 'sampling_rate'\]"):
        decode_sound({"raw": np.zeros(8), "sampling_rate": RATE}, RATE)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        decode_sound(np.zeros((2, 2, 2), np.float32), RATE)


@pytest.mark.parametrize("rate", [0, 7001, 73_537, 0x7F001F40])
def test_a_header_is_not_believed_everything(rate: int) -> None:
    """Filters grow with the ratio of the rates: seconds to hours for a kilobyte."""
    damaged = bytearray(encode_wav(np.zeros(500, np.float32), 8000))
    damaged[24:28] = rate.to_bytes(4, "little")
    if rate == 7001:
        assert decode_sound(bytes(damaged), RATE).shape == (-(-500 * RATE // 7001),)
        return
    with pytest.raises(UnreadableSoundError, match=rf"Row 3 has {rate:,} samples a second|Row 3 has {rate} samples"):
        decode_sound(bytes(damaged), RATE, name="Row 3")


def test_rates_of_arrays() -> None:
    samples = np.zeros(80, np.float32)
    assert decode_sound({"array": samples, "sampling_rate": RATE / 2}, RATE).shape == (160,)
    assert decode_sound({"array": samples}, RATE).shape == (80,)
    for rate in (RATE + 0.5, float("nan"), -1, 0):
        with pytest.raises(UnreadableSoundError, match="a whole number from 1"):
            decode_sound({"array": samples, "sampling_rate": rate}, RATE)


@pytest.mark.parametrize("ending", ["FLAC", "OGG", "AIFF"])
def test_what_is_no_wav_file_is_read_by_soundfile(tmp_path, ending: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.stack([np.sin(np.arange(1600) * 0.05), np.zeros(1600)], axis=1) / 2
    path = tmp_path / f"sound.{ending.lower()}"
    soundfile.write(path, samples, 16000, format=ending)
    expected = resample(samples.mean(1).astype(np.float32), 16000, RATE)
    for source in (path, path.read_bytes(), {"bytes": path.read_bytes(), "path": None}):
        decoded = decode_sound(source, RATE)
        assert decoded.shape == (800,)
        np.testing.assert_allclose(decoded[20:-20], expected[20:-20], atol=0.03 if ending == "OGG" else 1e-3)
    with pytest.raises(UnreadableSoundError, match="cannot be read"):
        decode_sound(path.read_bytes()[:20], RATE, name="Row 3")


def test_wav_files_of_floats_are_read_by_soundfile(tmp_path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.array([0.5, -0.25, 0.125], np.float32)
    soundfile.write(tmp_path / "floats.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(decode_sound(tmp_path / "floats.wav", RATE), samples)
