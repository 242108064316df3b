from __future__ import annotations

import numpy as np
import pytest
import torch

from hq_tokenizers import HQFeatureExtractor
from hq_tokenizers.pipelines.call_arguments import sample_seeds, stream_seeds
from hq_tokenizers.pipelines.class_labels import resolve_speakers, resolve_speakers_of_sounds
from hq_tokenizers.pipelines.sound_arguments import decode_sounds, is_single_sound, mark_spans
from hq_tokenizers.sound_decoding import encode_wav

WAVE = np.linspace(-0.5, 0.5, 80, dtype=np.float32)
NAMES = {0: "Ann", 1: "bob"}


def test_one_sound_and_several(tmp_path) -> None:
    (tmp_path / "a.wav").write_bytes(data := encode_wav(WAVE, 8000))
    ways = (
        *(WAVE, WAVE.tolist(), torch.from_numpy(WAVE), data, tmp_path / "a.wav", str(tmp_path / "a.wav")),
        *({"audio": WAVE, "sampling_rate": 8000}, {"array": WAVE, "sampling_rate": 8000}, {"bytes": data}),
    )
    for given in ways:
        assert is_single_sound(given)
        (sound,) = decode_sounds(given, 8000)
        np.testing.assert_allclose(sound, WAVE, atol=1e-4)
    for several in (list(ways), np.stack([WAVE] * 2), iter(ways)):
        assert not is_single_sound(several)
        assert all(sound.shape == (80,) for sound in decode_sounds(several, 8000))
    # What says another rate is resampled.
    (sound,) = decode_sounds({"audio": WAVE, "sampling_rate": 4000}, 8000)
    assert sound.shape == (160,)
    with pytest.raises(TypeError, match="audio is a sound"):
        list(decode_sounds(3, 8000))


def test_spans_mark_the_frames_that_they_touch() -> None:
    assert mark_spans((0.015, 0.03), 100, 5).tolist() == [False, True, True, False, False]
    assert mark_spans([(0, 0.01), (0.04, 9)], 100, 5).tolist() == [True, False, False, False, True]
    # However short a span is, and however its product with the rate is rounded.
    assert mark_spans((0.034, 0.036), 100, 5).tolist() == [False, False, False, True, False]
    for frame in range(100):
        assert mark_spans((frame / 100, (frame + 1) / 100), 100, 100).nonzero().tolist() == [[frame]]


@pytest.mark.parametrize("span", [(0.1, float("inf")), (float("nan"), 0.2), (0.2, 0.1), (-0.1, 0.1), (0.5, 0.6)])
def test_spans_that_are_none_are_refused(span) -> None:
    with pytest.raises(ValueError, match=r"must start within the 0\.50 s of the sound, and end later, got \("):
        mark_spans(span, 100, 50)
    with pytest.raises(ValueError, match="spans is empty"):
        mark_spans([], 100, 50)


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_one_sound_with_its_channels_is_not_taken_for_many(of) -> None:
    stereo = np.zeros((400, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"would be 400 sounds of 2 samples: if it is one sound with its channels, give"
    ):
        list(decode_sounds(of(stereo), 8000))
    with pytest.raises(ValueError, match="would be 400 sounds of 2 samples"):
        HQFeatureExtractor(16, 8000, 80, 200)(of(stereo))
    (mean,) = decode_sounds({"audio": of(stereo + np.float32([0.5, 0.1])), "sampling_rate": 8000}, 8000)
    np.testing.assert_allclose(mean, np.full(400, 0.3, np.float32), atol=1e-7)
    assert len(list(decode_sounds(of(np.zeros((2, 400), np.float32)), 8000))) == 2


def test_speakers_are_labels_of_their_own() -> None:
    assert resolve_speakers(["ann", 1, None], NAMES) == [0, 1, -1]
    assert resolve_speakers_of_sounds("bob", 2, NAMES) == [1, 1]
    for given, names, message in (
        ("eve", NAMES, r"Unknown speaker 'eve'; the speakers are 'Ann', 'bob'"),
        (2, NAMES, r"Speaker 2 is out of range: this model has the speakers 0 to 1, and None for no speaker"),
        (0, {}, r"this model knows no speakers, leave speakers out"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_speakers(given, names)
    with pytest.raises(ValueError, match="say who speaks"):
        resolve_speakers(None, NAMES, needed=True)
    with pytest.raises(TypeError, match="A speaker is a name, an integer, or None for no speaker"):
        resolve_speakers(1.5, NAMES)
    # Where none is refused, none is not offered.
    with pytest.raises(ValueError, match=r"the speakers 0 to 1\.$"):
        resolve_speakers(2, NAMES, needed=True)
    with pytest.raises(TypeError, match=r"A speaker is a name or an integer, got 1\.5"):
        resolve_speakers(1.5, NAMES, needed=True)


def test_seeds_of_sounds_are_said_to_be_theirs() -> None:
    for draw in (lambda: sample_seeds(-1, 2, "sounds"), lambda: sample_seeds([0, -1], 2, "sounds")):
        with pytest.raises(ValueError, match=r"; sound i of the call gets seed \+ i"):
            draw()
    with pytest.raises(ValueError, match="; sound i of the call"):
        stream_seeds(-1, "sounds")
