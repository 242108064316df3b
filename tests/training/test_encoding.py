from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoModel

from hq_tokenizers.data.config import DataConfig
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.presets import sq_vae
from hq_tokenizers.priors import RQPriorConfig
from hq_tokenizers.training.config import EncodeConfig
from hq_tokenizers.training.encoding import encode_images


def _tokenizer(folder, **fields):
    AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8, **fields)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def never_encoding(monkeypatch):
    def fail(*arguments):
        raise AssertionError("encoded before everything was checked")

    monkeypatch.setattr("hq_tokenizers.training.encoding._encode_rows", fail)


@pytest.mark.parametrize("size", [16, [16, 8]])
def test_images_of_another_size_are_refused(tmp_path, never_encoding, size):
    tokenizer = _tokenizer(tmp_path / "tokenizer", image_size=size)
    with pytest.raises(
        ValueError, match=r"images of 8×8 pixels, the tokenizer was trained on 16×.*set data\.image_size"
    ):
        encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes")))


@pytest.mark.parametrize(("labels", "strange"), [([0, 1, 2], "2"), ([3, 1], "3")])
def test_classes_that_the_training_split_lacks_are_refused(tmp_path, never_encoding, labels, strange):
    from datasets import Array2D, Dataset, Features, Value

    features = Features({"image": Array2D((8, 8), "uint8"), "label": Value("int64")})
    for split, classes in (("train", [0, 1, 1]), ("test", labels)):
        images = [np.zeros((8, 8), np.uint8)] * len(classes)
        rows = Dataset.from_dict({"image": images, "label": classes}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    files: dict = {"train": "train.parquet", "test": "test.parquet"}
    data = DataConfig(name="parquet", path=str(tmp_path), files=files)
    config = EncodeConfig(tokenizer=_tokenizer(tmp_path / "tokenizer"), output_dir=str(tmp_path / "codes"), data=data)
    with pytest.raises(
        ValueError, match=rf"data\.validation_split has images of the classes {strange}, which .* 0, 1\."
    ):
        encode_images(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"data\.validation_split has no classes"),
        ({"label_names": ["0", "2", "1", *"3456789"]}, r"classes 2, 1, which .*, or under another number"),
    ],
)
def test_classes_of_the_splits_have_to_agree(tmp_path, never_encoding, monkeypatch, change, message):
    def load(*arguments):
        train, validation = load_image_splits(*arguments)
        vars(validation).update(change)
        return train, validation

    monkeypatch.setattr("hq_tokenizers.training.encoding.load_image_splits", load)
    with pytest.raises(ValueError, match=message):
        encode_images(EncodeConfig(tokenizer=_tokenizer(tmp_path / "tokenizer"), output_dir=str(tmp_path / "codes")))


def test_what_is_no_tokenizer_is_named(tmp_path):
    config = EncodeConfig(tokenizer=str(tmp_path / "nothing"), output_dir=str(tmp_path / "codes"))
    with pytest.raises(ValueError, match=r"tokenizer '.*nothing' is neither .*`train-tokenizer` writes one"):
        encode_images(config)
    RQPriorConfig().save_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match="holds a model of type rq_prior, but a tokenizer is needed"):
        encode_images(replace(config, tokenizer=str(tmp_path / "prior")))
    folder = tmp_path / "weightless"
    sq_vae("digits").save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer '.*weightless': the tokenizer cannot be loaded"):
        encode_images(replace(config, tokenizer=str(folder)))
