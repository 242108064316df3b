"""Sounds through the data room: folders, parquet, columns, segments, and what is said about them."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from hq_tokenizers.data.sound import SoundRows, model_inputs, random_segments
from hq_tokenizers.data.sound_loading import feature_extractor, load_sound_splits
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.sound_decoding import UnreadableSoundError, encode_wav

SOUND = {"sampling_rate": 8000, "num_mel_bands": 12, "hop_length": 80, "win_length": 200}


def tone(frequency: float, seconds: float, amplitude: float = 0.3) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(8000 * seconds)) / 8000)


SOUNDS = [tone(200 * (1 + index % 4), 0.1 + 0.02 * index) for index in range(8)]


def columns(sounds=SOUNDS) -> dict:
    return {
        "audio": [None if sound is None else {"bytes": encode_wav(sound, 8000), "path": None} for sound in sounds],
        "label": [index % 2 for index in range(len(sounds))],
        "speaker": ["ann" if index % 3 else "bob" for index in range(len(sounds))],
    }


def load(path, *splits: str, name: str = "parquet", stride: int = 4, memory_limit: int = 2**30, **options):
    sound = {**SOUND, **options.pop("sound", {})}
    config = DataConfig(name=name, path=str(path), **options)
    config.sound = type(config.sound)(**sound)
    extractor = feature_extractor(config, 2, stride)
    measure, splits = config.sound.mean_db is None, splits or ("train_split",)
    return load_sound_splits(config, extractor, *splits, measure=measure, memory_limit=memory_limit)


def all_rows(rows: SoundRows) -> dict[str, torch.Tensor]:
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    return batch


def test_batches_are_normalised_padded_and_masked(write_parquet) -> None:
    path = write_parquet(columns())
    (rows,) = load(path, train_split="train[:100%]", sound={"speaker_column": "speaker"})
    batch = all_rows(rows)
    lengths = [1 + len(sound) // 80 for sound in SOUNDS]
    assert batch["pixel_values"].shape == (8, 1, 12, 28)
    assert batch["attention_mask"].sum(1).tolist() == lengths
    real = batch["pixel_values"][:, 0].transpose(1, 2)[batch["attention_mask"].bool()]
    assert real.mean().item() == pytest.approx(0, abs=1e-4)
    assert real.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert batch["labels"].tolist() == [0, 1] * 4
    assert rows.speaker_names == ["ann", "bob"]
    assert batch["speaker_ids"].tolist() == [1, 0, 0, 1, 0, 0, 1, 0]
    assert set(model_inputs(batch)) == {"pixel_values", "attention_mask", "speaker_ids"}
    expected = rows.extractor([np.round(sound * 32767) / 32768 for sound in SOUNDS])
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-4)
    assert rows.model_fields(None) == {"image_size": [12, 28], "num_channels": 1, "num_speakers": 2}
    assert rows.model_fields(16)["image_size"] == [12, 16]
    with pytest.raises(ValueError, match=r"multiple of the model's stride 4, got 18: use 20"):
        rows.model_fields(18)


def test_sounds_that_do_not_fit_in_memory_are_the_same(write_parquet) -> None:
    path = write_parquet(columns())
    (kept,) = load(path, train_split="train[:100%]")
    (lazy,) = load(path, train_split="train[:100%]", memory_limit=0, num_workers=0)
    assert kept.spectrograms is not None
    assert lazy.spectrograms is None
    assert (lazy.extractor.mean_db, lazy.extractor.std_db) == (kept.extractor.mean_db, kept.extractor.std_db)
    first, second = all_rows(kept), all_rows(lazy)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match=r"set data\.sound\.segment_frames"):
        lazy.model_fields(None)
    assert kept.sha256() != lazy.sha256()


def test_folders_of_sounds_have_classes_and_a_held_out_tenth(tmp_path, capsys) -> None:
    for index, sound in enumerate(SOUNDS):
        file = tmp_path / "sounds" / ("low" if index % 4 < 2 else "high") / f"{index}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_wav(sound, 8000))
    (tmp_path / "sounds" / "low" / "notes.txt").write_text("no sound")
    train, held_out = load(tmp_path / "sounds", "train_split", "validation_split", name="audiofolder")
    assert (len(train), len(held_out)) == (7, 1)
    assert train.label_names == ["high", "low"]
    assert train.extractor is held_out.extractor
    assert "held out as 'test'" in capsys.readouterr().out


def test_silence_clipping_and_rows_without_a_sound_are_said(write_parquet, capsys) -> None:
    sounds = [*SOUNDS, np.zeros(800), tone(200, 0.1, amplitude=3.0), None]
    (rows,) = load(write_parquet(columns(sounds)), train_split="train[:100%]")
    assert len(rows) == 10
    said = capsys.readouterr().out
    assert "1 of 11 rows of 'train[:100%]' have no sound and are left out" in said
    assert "1 of 10 sounds of 'train[:100%]' are silent" in said
    assert "1 of 10 sounds of 'train[:100%]' are clipped" in said


def test_what_cannot_be_read_is_named(write_parquet) -> None:
    broken = columns()
    broken["audio"][3]["bytes"] = b"no sound"
    with pytest.raises(UnreadableSoundError, match=r"Row 3 of 'train\[:100%\]': "):
        load(write_parquet(broken), train_split="train[:100%]")


def test_columns_are_found_and_refused(write_parquet) -> None:
    two = columns() | {"second": columns()["audio"]}
    path = write_parquet(two)
    with pytest.raises(ValueError, match=r"several columns of sounds: audio, second"):
        load(path, train_split="train[:100%]")
    (rows,) = load(path, train_split="train[:100%]", sound={"audio_column": "second"})
    assert len(rows) == 8
    with pytest.raises(ValueError, match=r"'label' is no column of sounds"):
        load(path, train_split="train[:100%]", sound={"audio_column": "label"})
    with pytest.raises(ValueError, match=r"data\.sound\.speaker_column 'nobody' is no column"):
        load(path, train_split="train[:100%]", sound={"audio_column": "second", "speaker_column": "nobody"})


def test_a_given_normalisation_is_kept(write_parquet) -> None:
    (rows,) = load(write_parquet(columns()), train_split="train[:100%]", sound={"mean_db": -40, "std_db": 20})
    assert (rows.extractor.mean_db, rows.extractor.std_db) == (-40, 20)
    with pytest.raises(ValueError, match="go together"):
        load("anywhere", sound={"mean_db": -40})


def test_random_segments_are_pieces_of_the_sounds() -> None:
    values = torch.arange(40.0).expand(3, 1, 2, 40).clone()
    mask = (torch.arange(40) < torch.tensor([40, 20, 6])[:, None]).long()
    seen = set()
    for _ in range(300):
        batch = random_segments({"pixel_values": values, "attention_mask": mask, "labels": torch.arange(3)}, 8)
        segments = batch["pixel_values"]
        assert segments.shape == (3, 1, 2, 8)
        assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 8, [1] * 6 + [0, 0]]
        for item, length in enumerate((40, 20)):
            first = int(segments[item, 0, 0, 0])
            assert 0 <= first <= length - 8
            assert torch.equal(segments[item, 0, 1], torch.arange(first, first + 8.0))
        assert torch.equal(segments[2, 0, 0], torch.arange(8.0))
        seen.add(int(segments[1, 0, 0, 0]))
    assert seen == set(range(13))
    wide = random_segments({"pixel_values": values, "attention_mask": mask}, 64)
    assert wide["attention_mask"].sum(1).tolist() == [40, 20, 6]
    assert not wide["pixel_values"][..., 40:].any()


def test_spoken_digits(data_folder) -> None:
    table = parquet.read_table(data_folder / "fsdd-test.parquet").to_pylist()
    (rows,) = load(
        data_folder, "validation_split", files={"test": "fsdd-test.parquet"}, sound={"speaker_column": "speaker"}
    )
    assert len(rows) == 300
    assert len(rows.speaker_names) == 6
    (batch,) = rows.batches([torch.arange(5)], torch.device("cpu"))
    assert batch["labels"].tolist() == [row["label"] for row in table[:5]]
    assert batch["attention_mask"].sum(1).tolist() == [1 + row["num_frames"] // 80 for row in table[:5]]
