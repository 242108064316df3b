"""Both stages on label maps, through the commands: stripes of classes whose order the tokenizer has to learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline

from hq_tokenizers.cli import main

NUM_CLASSES = 3
DATA = ["--data.name", "imagefolder", "--data.train_split", "train[:96]", "--data.validation_split", "train[96:]"]
CLASSES = ["--data.label_map_classes", str(NUM_CLASSES)]
MODEL = (
    "{preset: sq_vae, network: celebamask, hidden_size: 16, codebook_dim: 8, codebook_size: 16, num_downsampling: 2, "
    "initial_log_concentration: 3}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label_maps")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for index in range(128):
        label_map = np.repeat(rng.integers(0, NUM_CLASSES, 4), 4).astype(np.uint8)
        Image.fromarray(np.tile(label_map, (16, 1))).save(folder / "data" / f"{index:03d}.png")
    data = ["--data.path", str(folder / "data"), *DATA, *CLASSES]
    options = ["--epochs", "40", "--batch_size", "16", "--log_steps", "100", "--validation_steps", "120"]
    main(["train-tokenizer", "--output_dir", str(folder / "tokenizer"), "--model", MODEL, *options, *data])
    main(["encode", "--tokenizer", str(folder / "tokenizer"), "--output_dir", str(folder / "codes"), *data])
    prior = ["--model.hidden_size", "16", "--model.num_hidden_layers", "1", "--model.num_attention_heads", "2"]
    steps = ["--max_steps", "5", "--warmup_steps", "0", "--samples", "4"]
    main(["train-prior", "--codes", str(folder / "codes"), "--output_dir", str(folder / "prior"), *prior, *steps])
    return folder


@pytest.mark.slow
def test_the_tokenizer_learns_the_label_maps(folder):
    report = json.loads((folder / "tokenizer" / "report.json").read_text())
    assert report["test"]["pixel_accuracy"] > 0.9
    assert "mse" not in report["test"]
    model = AutoModel.from_pretrained(folder / "tokenizer").eval()
    files = sorted((folder / "data").iterdir())[96:]
    label_maps = torch.stack([torch.from_numpy(np.asarray(Image.open(file)).copy()).long() for file in files])
    right = (model.decode(model.encode(label_maps)) == label_maps).double().mean().item()
    assert report["test"]["pixel_accuracy"] == pytest.approx(right, abs=1e-9)
    assert not (folder / "tokenizer" / "preprocessor_config.json").exists()


@pytest.mark.slow
def test_generated_label_maps_are_png_of_classes(folder, tmp_path):
    generator = str(folder / "prior" / "generator")
    main(["generate", "--generator", generator, "--output_dir", str(tmp_path), "--num_images", "3"])
    drawn = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("0*.png"))]
    images = AutoModel.from_pretrained(generator).generate(num_images=3, generator=0).images
    assert images.dtype == torch.long
    assert [image.tolist() for image in drawn] == images.tolist()
    with pytest.raises(TypeError, match="hq-generation is for images, this generator makes label maps"):
        pipeline("hq-generation", model=generator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train-tokenizer", "--model", MODEL, *DATA], "The model is one of label maps .* set data.label_map_classes"),
        (
            ["train-tokenizer", "--model", MODEL, *DATA, *CLASSES, "--evaluation_steps", "5"],
            "evaluation_steps is for images",
        ),
        (
            ["train-tokenizer", "--model", "{preset: rsq_vae, network: cifar10}", *DATA, *CLASSES],
            "label maps need the preset sq_vae",
        ),
        (
            ["train-tokenizer", "--model", "{preset: sq_vae, network: cifar10}", *DATA, *CLASSES],
            "set likelihood to 'categorical' or 'vmf'",
        ),
        (
            ["encode", "--tokenizer", "{}/tokenizer", *DATA, "--data.label_map_classes", "5"],
            "16×16 with 5 classes, the tokenizer was trained on 3: set data.label_map_classes to 3",
        ),
        (["encode", "--tokenizer", "{}/tokenizer", *DATA], "data.train_split has 16×16×1, .*label_map_classes to 3"),
    ],
)
def test_what_does_not_fit_is_named(folder, tmp_path, words, message):
    words = [word if word.startswith("{p") else word.replace("{}", str(folder)) for word in words]
    with pytest.raises(SystemExit, match=message):
        main([*words, "--data.path", str(folder / "data"), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
