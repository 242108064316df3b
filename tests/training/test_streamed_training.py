from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.tokenizer import train_tokenizer

MODEL = {"preset": "sq_vae", "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}


def write(path, number, seed):
    rng = np.random.default_rng(seed)
    images = []
    for pixels in rng.integers(0, 256, (number, 8, 8), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    parquet.write_table(pa.table({"image": images}), path, row_group_size=10)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for index, name in enumerate(("train-0", "train-1", "test")):
        write(folder / f"{name}.parquet", 25, index)
    return folder


def train(files, output_dir, steps, **options):
    data = DataConfig(
        name="parquet", path=str(files), streaming=True, shuffle_buffer=16, num_workers=0, max_validation_images=9
    )
    options = {"model": MODEL, "batch_size": 8, "checkpoint_steps": 2, "log_steps": 3, **options}
    return train_tokenizer(TokenizerTrainingConfig(output_dir=str(output_dir), data=data, max_steps=steps, **options))


def test_a_run_on_a_stream_continues_to_the_bit_over_the_end_of_a_pass(tmp_path, files):
    report = train(files, tmp_path / "whole", 10)
    for steps in (3, 7, 10):
        train(files, tmp_path / "parts", steps)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert report["epochs"] is None
    assert report["test"]["num_images"] == 9
    assert not any("epoch" in record for record in read_history(tmp_path / "whole"))


def test_a_run_is_not_continued_on_other_files(tmp_path, files):
    train(files, tmp_path / "run", 2, schedule="constant")
    write(files / "train-2.parquet", 5, seed=7)
    with pytest.raises(ValueError, match="made from other data: training_images_sha256 was"):
        train(files, tmp_path / "run", 4, schedule="constant")


def test_codebooks_that_are_estimated_in_epochs_are_refused(tmp_path, files):
    model = {**MODEL, "preset": "robust_vq_vae"}
    with pytest.raises(ValueError, match="which a stream does not have"):
        train(files, tmp_path / "run", 4, model=model)
