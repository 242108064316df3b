from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.models.presets import hybrid_vae, sq_vae, vq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.priors import RQPriorConfig
from hq_tokenizers.training.encoding import encode_images


def _tokenizer(folder, **fields):
    AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8, **fields)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def never_encoding(monkeypatch):
    def fail(*arguments):
        raise AssertionError("encoded before everything was checked")

    monkeypatch.setattr("hq_tokenizers.training.encoding._Encoder.encode", fail)


@pytest.mark.parametrize("size", [16, [16, 8]])
def test_images_of_another_size_are_refused(tmp_path, never_encoding, size):
    tokenizer, output_dir = _tokenizer(tmp_path / "tokenizer", image_size=size), str(tmp_path / "codes")
    Image.new("L", (12, 12)).save(tmp_path / "a.png")
    data = DataConfig(name="imagefolder", path=str(tmp_path), validation_split="train", test_split="train")
    with pytest.raises(
        ValueError, match=r"images of 12×12 pixels, the tokenizer was trained on 16×.*set data\.image_size"
    ):
        encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=output_dir, data=data))
    # Whoever forgets the options of the data is not sent to resize the digits.
    with pytest.raises(ValueError, match=r"embedded digits, .*default of data\.name.* give data\.name, data\.path"):
        encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=output_dir))


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


def _tiny_hierarchy(folder):
    config = hybrid_vae("digits", hidden_size=8, codebook_dim=4, code_groups=["stride 4: 6", "stride 2: 9, 3"])
    config.initial_log_variance = 0.0
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def test_soft_targets_are_the_likeliest_codes_of_the_posterior(tmp_path):
    tokenizer = _tiny_hierarchy(tmp_path / "tokenizer")
    config = EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes"), soft_targets=4)
    encode_images(config)
    encoded = EncodedImages.load(tmp_path / "codes")
    train, layout = encoded.splits["train"], encoded.layout
    assert encoded.splits["validation"].soft is None
    model = AutoModel.from_pretrained(tokenizer).eval()
    (rows,) = load_image_splits(config.data, "train_split")
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    # By hand, place after place in flattened order: group, position, depth.
    posterior = [level.flatten(1, 2).double().exp() for level in model.posterior(batch["pixel_values"])]
    place, first = 0, 0
    for group in layout.groups:
        for position in range(group.num_positions):
            for depth in range(group.depth):
                expected = posterior[first + depth][:, position]
                width = min(4, expected.shape[-1])
                kept = expected.sort(dim=-1, descending=True).values[:, :width]
                codes, probabilities = train.soft.codes[:, place].long(), train.soft.probabilities[:, place].double()
                torch.testing.assert_close(
                    probabilities[:, :width], kept / kept.sum(-1, keepdim=True), atol=1e-3, rtol=1e-3
                )
                torch.testing.assert_close(expected.gather(1, codes[:, :width]), kept, atol=1e-6, rtol=1e-4)
                assert not probabilities[:, width:].any()
                # The code itself is the likeliest one.
                assert torch.equal(codes[:, 0], train.codes[:, place].long())
                place += 1
        first += group.depth
    assert place == layout.num_codes


def test_soft_targets_of_a_deterministic_tokenizer_are_refused(tmp_path, never_encoding):
    AutoModel.from_config(vq_vae("digits", hidden_size=8, codebook_size=8)).save_pretrained(tmp_path / "vq")
    config = EncodeConfig(tokenizer=str(tmp_path / "vq"), output_dir=str(tmp_path / "codes"), soft_targets=8)
    with pytest.raises(ValueError, match=r"soft_targets is 8, but .*quantizer 'vq', which has no posterior"):
        encode_images(config)
    with pytest.raises(ValueError, match="soft_targets must be an integer from 0 to 16,777,216, got -1"):
        EncodeConfig(soft_targets=-1)


def test_a_folder_of_other_things_is_refused(tmp_path, never_encoding):
    (tmp_path / "images" / "train").mkdir(parents=True)
    config = EncodeConfig(tokenizer=_tokenizer(tmp_path / "tokenizer"), output_dir=str(tmp_path / "images"))
    with pytest.raises(FileExistsError, match=r"output_dir '.*images' holds train, which no `encode` wrote"):
        encode_images(config)


@pytest.mark.slow
def test_a_kill_leaves_the_old_codes_the_new_ones_or_none(tmp_path):
    model = AutoModel.from_pretrained(_tokenizer(tmp_path / "old"))
    # The same codes under other numbers.
    model.quantizer.codebook.weight.data = model.quantizer.codebook.weight.data.flip(0)
    model.save_pretrained(tmp_path / "new")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(Path(__file__).with_name("killed_encoding.py")), str(tmp_path), "20", "5"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert outcomes["complete"] == "new"
    refused = f"FileNotFoundError: '{tmp_path}/codes' holds no complete codes, since an `encode` into it was"
    kinds = [
        "refused" if outcome.startswith(refused) else outcome
        for outcome in (*outcomes["operations"].values(), *outcomes["timed"])
    ]
    assert len(kinds) == 25
    # The moments of the operations reach from the first to the last, so that every outcome occurs.
    assert set(kinds) == {"old", "refused", "new"}
