"""Tokenizers of sound through the command that trains tokenizers of images."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.reading import options_from_dict
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.sound_decoding import encode_wav
from hq_tokenizers.training.checkpoints import list_checkpoints
from hq_tokenizers.training.tokenizer import train_tokenizer

SMALL = {"hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
IMAGES = {"preset": "rsq_vae", "network": "fsdd", "num_levels": 2, **SMALL}
SPEECH = {"preset": "sq_vae", "network": "speech", "variance_type": "IV", "recurrent_size": 6, **SMALL}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """24 training and 6 test sounds of 0.1 to 0.3 seconds, of two speakers."""
    root = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for split, number in (("train", 24), ("test", 6)):
        waves = [
            0.3 * np.sin(np.arange(generator.integers(800, 2400)) * generator.uniform(0.1, 1.5)) for _ in range(number)
        ]
        table = {
            "audio": [{"bytes": encode_wav(samples, 8000), "path": None} for samples in waves],
            "speaker": ["ann", "bob"] * (number // 2),
        }
        parquet.write_table(pa.table(table), root / f"{split}.parquet")
    return root


def config(folder, sounds, model, **options) -> TokenizerTrainingConfig:
    sound = {
        "sampling_rate": 8000,
        "hop_length": 80,
        "win_length": 200,
        "num_mel_bands": 16,
        **options.pop("sound", {}),
    }
    values = {
        "output_dir": str(folder),
        "batch_size": 4,
        "epochs": 2,
        "log_steps": 2,
        "checkpoint_steps": 5,
        "model": model,
        "data": {"name": "parquet", "path": str(sounds), "sound": sound},
        **options,
    }
    return options_from_dict(TokenizerTrainingConfig, values)


@pytest.mark.parametrize(
    ("model", "sound"),
    [(IMAGES, {"segment_frames": 16}), (SPEECH, {"speaker_column": "speaker"})],
    ids=["images", "speech"],
)
def test_a_run_ends_with_a_model_and_its_front_end(tmp_path, sounds, model, sound) -> None:
    report = train_tokenizer(config(tmp_path, sounds, model, sound=sound))
    tokenizer, extractor = AutoModel.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.suits(tokenizer.config)
    assert tokenizer.config.modality == "sound"
    # The figures of the report, over whole sounds one by one, without the loop.
    error = number = 0
    counts = torch.zeros(tokenizer.code_layout().num_levels, 8)
    for index, row in enumerate(parquet.read_table(sounds / "test.parquet").to_pylist()):
        inputs = extractor(row["audio"])
        speakers = {"speaker_ids": torch.tensor([index % 2])} if "speaker_column" in sound else {}
        with torch.no_grad():
            output = tokenizer(**inputs, **speakers)
        frames = int(inputs["attention_mask"].sum())
        error += (output.reconstruction - inputs["pixel_values"])[..., :frames].square().sum().item()
        number += 16 * frames
        for level, codes in enumerate(tokenizer.code_levels(output.codes, inputs["attention_mask"])):
            counts[level] += torch.bincount(codes.flatten(), minlength=8)
    figures = report["test"]
    assert figures["mse"] == pytest.approx(error / number, rel=1e-3)
    assert figures["mse_db2"] == pytest.approx(figures["mse"] * extractor.std_db**2)
    assert figures["rmse_db"] == pytest.approx(figures["mse_db2"] ** 0.5)
    assert figures["active_codes"] == (counts > 0).sum(1).tolist()
    assert "psnr" not in figures
    rate = tokenizer.code_layout().bits_per_image * 100 / tokenizer.config.image_size[1]
    assert report["bits_per_second"] == pytest.approx(rate)
    assert (tmp_path / "reconstructions.png").is_file()
    # The command `evaluate` finds the same, with the front end of the folder whatever the options of sounds say.
    judged = evaluate(
        EvaluateConfig(
            tokenizer=str(tmp_path),
            output_dir=str(tmp_path / "evaluation"),
            data=config(tmp_path, sounds, model, sound={**sound, "num_mel_bands": 3}).data,
            batch_size=4,
        )
    )["results"]
    for name in ("mse", "mse_db2", "rmse_db"):
        assert judged["reconstruction"][name] == pytest.approx(figures[name], rel=1e-4)
    assert judged["codebook_usage"]["perplexity"] == pytest.approx(figures["perplexity"])
    if "partial" in judged:
        assert judged["partial"]["mse_db2"][-1] == judged["reconstruction"]["mse_db2"]
        assert len(set(judged["partial"]["mse_db2"])) == 2
    assert (tmp_path / "evaluation" / "reconstructions.png").is_file()
    assert {"mse", "loss"} <= read_history(tmp_path)[0].keys()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["std_db"] == extractor.std_db


def test_an_interrupted_run_goes_on_with_the_same_segments(tmp_path, sounds) -> None:
    options = {"sound": {"segment_frames": 8}, "schedule": "constant"}
    train_tokenizer(config(tmp_path / "whole", sounds, IMAGES, max_steps=10, **options))
    train_tokenizer(config(tmp_path / "parts", sounds, IMAGES, max_steps=5, **options))
    assert [int(path.name.rpartition("-")[2]) for path in list_checkpoints(tmp_path / "parts")] == [5]
    train_tokenizer(config(tmp_path / "parts", sounds, IMAGES, max_steps=10, **options))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_options_that_do_not_go_together_are_refused(tmp_path, sounds) -> None:
    with pytest.raises(ValueError, match="multiple of the model's stride 4"):
        train_tokenizer(config(tmp_path, sounds, IMAGES, sound={"segment_frames": 10}))
    with pytest.raises(ValueError, match="choose a network of sounds"):
        train_tokenizer(config(tmp_path, sounds, {"preset": "sq_vae", "network": "digits"}))
    flipped = config(tmp_path, sounds, IMAGES)
    flipped.data.horizontal_flip = True
    with pytest.raises(ValueError, match=r"data\.horizontal_flip is for images"):
        train_tokenizer(flipped)
    with pytest.raises(ValueError, match="of sounds the error in dB"):
        train_tokenizer(config(tmp_path, sounds, IMAGES, evaluation_steps=5))
    with pytest.raises(ValueError, match=r"model\.num_channels is 3, but the data say 1"):
        train_tokenizer(config(tmp_path, sounds, {**IMAGES, "num_channels": 3}))
