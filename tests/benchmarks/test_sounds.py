"""The comparison of tokenizers and the listening classifier, on a handful of sounds."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from hq_tokenizers import HQFeatureExtractor, HQGeneratorModel, RQPriorConfig, RQPriorModel, SQVAEModel
from hq_tokenizers.models.presets import sq_vae
from hq_tokenizers.sound_decoding import encode_wav

SMALL = {"network": "speech", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8, "recurrent_size": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Low and high tones, soft and loud ones by speaker."""
    root = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for split, number in (("train", 64), ("test", 48)):
        waves = [
            (0.1 + 0.4 * (index // 2 % 2)) * np.sin(np.arange(generator.integers(800, 1600)) * (0.2 + index % 2))
            for index in range(number)
        ]
        table = {
            "audio": [{"bytes": encode_wav(samples, 8000), "path": None} for samples in waves],
            "label": ["low", "high"] * (number // 2),
            "speaker": ["ann", "ann", "bob", "bob"] * (number // 4),
        }
        parquet.write_table(pa.table(table), root / f"{split}.parquet")
    sound = {"speaker_column": "speaker", "sampling_rate": 8000, "hop_length": 80, "win_length": 200}
    sound |= {"num_mel_bands": 16, "mean_db": -40.0, "std_db": 20.0}
    return {"name": "parquet", "path": str(root), "label_column": "label", "sound": sound}


def test_tokenizers_of_sound_are_compared_in_decibels(load_script, run_script, data, tmp_path) -> None:
    options = {
        "name": "small",
        "output_dir": str(tmp_path / "runs"),
        "report_dir": str(tmp_path / "report"),
        "epochs": 1,
        "seeds": [0],
        "batch_size": 16,
        "data": data,
        "systems": {"RQ-VAE L=2": {"preset": "rq_vae", "num_levels": 2, **SMALL}},
    }
    run_script(load_script("compare_tokenizers"), options)
    (path,) = (tmp_path / "report" / "small").iterdir()
    record = json.loads(path.read_text())
    assert record["partial_mse"][-1] == pytest.approx(record["test"]["mse"], rel=1e-4)
    assert record["partial_mse"][0] != record["partial_mse"][1]
    table = (tmp_path / "report" / "small.md").read_text()
    assert "RMSE (dB), MSE (dB²)" in table
    assert f"{record['test']['rmse_db']:.2f}, {record['test']['mse_db2']:.2f}" in table


def test_a_classifier_hears_what_is_real_and_what_is_drawn(load_script, run_script, data, tmp_path) -> None:
    torch.manual_seed(0)
    tokenizer = SQVAEModel(sq_vae("speech", image_size=[1, 16], num_channels=16, num_speakers=2, **_fields())).eval()
    prior = RQPriorConfig(
        code_layout=tokenizer.code_layout([1, 24]).to_dict(),
        num_classes=2,
        id2label={0: "low", 1: "high"},
        num_speakers=2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    generator = HQGeneratorModel.from_sub_models(tokenizer, RQPriorModel(prior).eval())
    generator.save_pretrained(tmp_path / "generator")
    front_end = HQFeatureExtractor(16, 8000, 80, 200, mean_db=-40.0, std_db=20.0, grid_dims=1, pad_to_multiple_of=2)
    front_end.save_pretrained(tmp_path / "generator")
    options = {
        "generator": str(tmp_path / "generator"),
        "data": data,
        "samples_per_class": 3,
        "epochs": 12,
        "grid": str(tmp_path / "grid.png"),
        "sounds": str(tmp_path / "sounds"),
        "output": str(tmp_path / "result.json"),
    }
    run_script(load_script("sound_accuracy"), options)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_samples"] == 6
    assert result["classes"]["real"] > 0.9
    assert set(result["speakers"]) == {"real", "reconstructed", "generated", "converted_target", "converted_source"}
    # An untrained generator is not heard as asked.
    assert result["classes"]["generated"] < 0.9
    assert (tmp_path / "grid.png").is_file()
    assert len(list((tmp_path / "sounds").glob("*.wav"))) == 6


def _fields() -> dict:
    return {name: value for name, value in SMALL.items() if name != "network"}
