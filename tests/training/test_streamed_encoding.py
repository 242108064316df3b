from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.models.presets import sq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.training.encoding import _Encoder, encode_images


def png(rng):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path, number, seed):
    rng = np.random.default_rng(seed)
    columns = {
        "image": [{"bytes": png(rng), "path": None} for _ in range(number)],
        "label": rng.integers(0, 4, number),
        "text": ["a word"] * number,
    }
    parquet.write_table(pa.table(columns), path, row_group_size=10)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    model = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8)).eval()
    with torch.no_grad():
        latents, _ = model.encoder(torch.rand(64, 1, 8, 8))
        vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
        model.quantizer.codebook.weight.copy_(vectors[torch.linspace(0, len(vectors) - 1, 8).long()])
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config(tmp_path, tokenizer):
    """Of 75 images in batches of 2; a part has 32 of them."""
    (tmp_path / "files").mkdir()
    for index, (name, number) in enumerate((("train-0", 40), ("train-1", 35), ("test", 12))):
        write(tmp_path / "files" / f"{name}.parquet", number, index)
    data = DataConfig(name="parquet", path=str(tmp_path / "files"), streaming=True, num_workers=0)
    return EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes"), batch_size=2, data=data)


def hashes(folder):
    encoded = EncodedImages.load(folder)
    return encoded.label_names, {name: rows.sha256() for name, rows in encoded.splits.items()}


def test_a_stream_gives_the_codes_of_the_same_rows_read_whole(tmp_path, config):
    encode_images(config)
    encode_images(replace(config, output_dir=str(tmp_path / "whole"), data=replace(config.data, streaming=False)))
    assert hashes(tmp_path / "codes") == hashes(tmp_path / "whole")
    train = EncodedImages.load(tmp_path / "codes").splits["train"]
    assert len(train) == 75
    assert len(train.codes.unique()) > 2
    first = replace(config, data=replace(config.data, max_validation_images=5, test_split="test"))
    encode_images(first)
    splits = EncodedImages.load(tmp_path / "codes").splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 75, "validation": 5, "test": 5}


@pytest.mark.parametrize(("batches", "left"), [(10, 82), (16, 66), (40, 44), (60, 28), (77, 6)])
def test_an_interrupted_stream_goes_on(tmp_path, config, monkeypatch, batches, left):
    """Two views of 38 batches each: parts end after 16, 32 and 38."""
    config = replace(config, views=2, data=replace(config.data, horizontal_flip=True, num_workers=2))
    encode_images(replace(config, output_dir=str(tmp_path / "whole")))
    encode_batch, done = _Encoder._encode_batch, []

    def interrupted(encoder, *arguments):
        done.append(arguments)
        if len(done) == batches + 1:
            raise KeyboardInterrupt
        return encode_batch(encoder, *arguments)

    monkeypatch.setattr(_Encoder, "_encode_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_images(config)
    before = len(done)
    encode_images(config)
    assert len(done) - before == left
    assert hashes(tmp_path / "codes") == hashes(tmp_path / "whole")
    codes = EncodedImages.load(tmp_path / "codes").splits["train"]
    assert torch.equal(codes.labels[:75], codes.labels[75:])
    assert not torch.equal(codes.codes[:75], codes.codes[75:])


def test_a_stream_of_other_files_is_not_gone_on_with(tmp_path, config, monkeypatch):
    encode_batch, done = _Encoder._encode_batch, []

    def interrupted(encoder, *arguments):
        done.append(arguments)
        if len(done) == 20:
            raise KeyboardInterrupt
        return encode_batch(encoder, *arguments)

    monkeypatch.setattr(_Encoder, "_encode_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_images(config)
    write(tmp_path / "files" / "train-2.parquet", 5, seed=7)
    with pytest.raises(ValueError, match=r"unfinished codes of another call \(train_stream_sha256 was"):
        encode_images(config)


def test_classes_by_text_are_refused_and_none_are_read_where_none_are_wanted(tmp_path, config):
    with pytest.raises(ValueError, match=r"data\.label_column 'text' holds no classes .*none means no classes"):
        encode_images(replace(config, data=replace(config.data, label_column="text")))
    encode_images(replace(config, data=replace(config.data, label_column="none")))
    encoded = EncodedImages.load(tmp_path / "codes")
    assert encoded.label_names is None
    assert encoded.splits["train"].labels is None


def test_classes_of_folders_keep_their_names(tmp_path, config):
    rng = np.random.default_rng(0)
    for number in range(24):
        split, kind = ("test", "cat") if number > 20 else ("train", ("cat", "dog")[number % 2])
        path = tmp_path / "folder" / split / kind / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(rng))
    (tmp_path / "folder" / "test" / "dog").mkdir()
    (tmp_path / "folder" / "test" / "dog" / "99.png").write_bytes(png(rng))
    data = replace(config.data, name="imagefolder", path=str(tmp_path / "folder"))
    encode_images(replace(config, data=data))
    encode_images(replace(config, output_dir=str(tmp_path / "whole"), data=replace(data, streaming=False)))
    assert hashes(tmp_path / "codes") == hashes(tmp_path / "whole")
    assert EncodedImages.load(tmp_path / "codes").label_names == ["cat", "dog"]
