from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers import HQVAEModel
from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.sampling import NumberedSamples
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.reading import options_from_dict
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.reporting.figures import image_grid
from hq_tokenizers.training.tokenizer import train_tokenizer

DATA = {"train_split": "train[:200]", "validation_split": "test[:60]"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class FourPixels(torch.nn.Module):
    def forward(self, images):
        return images[:, 0, 2:4, 3:5].flatten(1).float()


@pytest.fixture
def tokenizer(tmp_path):
    """Folder of a tokenizer with hierarchical codes."""
    model = {"preset": "hybrid_vae", "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
    for seed, name in enumerate(("first", "second")):
        config = TokenizerTrainingConfig(
            output_dir=str(tmp_path / "tokenizers" / name),
            max_steps=40,
            learning_rate=0.01,
            seed=seed,
            data=DataConfig(**DATA),
            model=model,
        )
        train_tokenizer(config)
    return tmp_path / "tokenizers" / "first"


@pytest.fixture
def script(load_script, monkeypatch):
    network = FeatureNetwork.from_module(FourPixels(), name="four pixels", resize_filter="none")
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.squeezenet_network", lambda weights: network)
    return load_script("compare_priors")


@pytest.fixture
def options(tmp_path, tokenizer):
    return {
        "name": "small",
        "tokenizers": {"first one": "first"},
        "tokenizer_dir": str(tokenizer.parent),
        "output_dir": str(tmp_path / "runs"),
        "report_dir": str(tmp_path / "report"),
        "training": {"max_steps": 4, "warmup_steps": 0, "samples": 0},
        "priors": {"RQ": {"model_type": "rq_prior", **SMALL}, "masked": {"model_type": "masked_prior", **SMALL}},
        "sampling": {"default": {}, "cold": {"temperature": 0.5}},
        "num_samples": 130,
        "classifier_epochs": 1,
        "data": DATA,
    }


def test_records_grids_and_table(script, run_script, options, tmp_path, monkeypatch):
    run_script(script, options, "--only", "masked")
    run_script(script, options)
    folder = tmp_path / "report" / "small"
    record = json.loads((folder / "first_one-rq.json").read_text())
    assert record["samples"].keys() == {"default", "cold"}
    assert len(record["validation"]["bits_per_code_by_level"]) == 4
    assert min(record["validation"]["unigram_bits_by_level"]) > 0.05
    for figures in record["samples"].values():
        assert figures["provenance"]["num_images"] == 130
        assert figures["provenance"]["feature_network"]["name"] == "four pixels"
        assert figures["provenance"]["reference"]["num_images"] == 60
        assert 0 <= figures["class_accuracy"] <= 1
    assert len(list(folder.glob("*.png"))) == 5
    _, _, *rows = (tmp_path / "report" / "small.md").read_text().splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["unigram", "RQ", "RQ", "masked", "masked"]
    distance = record["samples"]["cold"]["frechet_distance"]
    assert f" | cold | {distance:.2f} (not FID) | " in rows[2]

    def train(config):
        raise AssertionError("trained again")

    monkeypatch.setattr(script, "train_prior_and_save_generator", train)
    run_script(script, options)
    run_script(script, options, "--report_only", "true")
    other_data = DATA | {"validation_split": "test[:50]"}
    for change, message in (
        ({"num_samples": 140}, r"first_one-unigram.json is of a run with num_samples 130.* says 140"),
        ({"classifier_epochs": 0}, "is of a run with classifier_epochs 1"),
        ({"data": other_data}, r"is of a run with data .*test\[:60\].* says .*test\[:50\]"),
        ({"metrics": {"features": "inception"}}, "is of a run with metrics .*squeezenet.* says .*inception"),
        ({"tokenizers": {"first one": "second"}}, "is of a run with tokenizer_folder first, .* says second"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_script(script, options | change)
    for path in folder.glob("*.json"):
        path.unlink()
    with pytest.raises(SystemExit, match=r"made_from\.json is of a run with tokenizer_sha256"):
        run_script(script, options | {"tokenizers": {"first one": "second"}})
    with pytest.raises(SystemExit, match=r"made_from\.json is of a run with validation_split"):
        run_script(script, options | {"data": other_data})


def test_each_prior_is_joined_with_the_tokenizer_of_its_codes(script, run_script, options, tmp_path):
    names = ("first", "second")
    options |= {"tokenizers": {name: name for name in names}, "sampling": {"default": {}}, "classifier_epochs": 0}
    run_script(script, options | {"training": {"max_steps": 1, "warmup_steps": 0, "samples": 0}}, "--only", "RQ")
    hashes = set()
    for name in names:
        tokenizer = HQVAEModel.from_pretrained(tmp_path / "tokenizers" / name).eval()
        folder = tmp_path / "runs" / name
        generator = HQGeneratorModel.from_pretrained(folder / "rq" / "generator")
        record = json.loads((tmp_path / "report" / "small" / f"{name}-rq.json").read_text())
        assert record["tokenizer_sha256"] == weights_sha256(tokenizer) == weights_sha256(generator.image_tokenizer)
        hashes.add(record["tokenizer_sha256"])
        (rows,) = load_image_splits(DataConfig(**DATA), "train_split")
        (batch,) = rows.batches([torch.arange(20)], torch.device("cpu"))
        expected = tokenizer.encode(batch["pixel_values"]).flatten()
        assert torch.equal(EncodedImages.load(folder / "codes").splits["train"].codes[:20].long(), expected)
        histogram = script.unigram_sampler(EncodedImages.load(folder / "codes"), tokenizer)
        grid = image_grid(NumberedSamples(histogram, 0, 0).draw(range(60)).float() / 255, columns=10)
        drawn = Image.open(tmp_path / "report" / "small" / f"{name}-unigram-default.png")
        assert np.array_equal(np.asarray(drawn.convert("RGB")), grid)
    assert len(hashes) == 2


def test_training_options_are_checked_before_any_work(script, run_script, options, tmp_path):
    for training, message in (
        ({"learnin_rate": 1e-3}, "Unknown option 'training.learnin_rate'. Did you mean training.learning_rate"),
        ({"schedule": "linear"}, r"training\.schedule must be one of"),
        ({"learning_rate": "fast"}, r"training\.learning_rate must be a number"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_script(script, options | {"training": training})
    assert not (tmp_path / "runs").exists()


class ReadsThePixel(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.one_hot((255 * images[:, 0, 0, 0]).round().long(), 10)


@pytest.mark.parametrize("offset", [0, 1])
def test_class_accuracy_counts_the_samples_read_as_asked(script, tokenizer, options, monkeypatch, offset):
    monkeypatch.setattr(script, "train_classifier", lambda rows, epochs, seed: ReadsThePixel())
    config = options_from_dict(script.Comparison, options | {"num_samples": 250})

    def paint(labels, generators):
        values = torch.tensor([(label + offset * (label < 3)) / 255 for label in labels])
        return values.view(-1, 1, 1, 1) + torch.zeros(len(labels), 1, 8, 8)

    figures = script.Judge(config)(paint, 10, HQVAEModel.from_pretrained(tokenizer))
    assert figures["class_accuracy"] == pytest.approx(1 - 0.3 * offset)


def test_the_unigram_sampler_draws_from_the_histogram_of_each_level(script):
    layout = CodeLayout((CodeGroup(2, 2, (3, 5)), CodeGroup(2, 3, (4,))))
    level_of_code = layout.level_of_code()
    sizes = torch.tensor(layout.codebook_sizes)[level_of_code]
    # Powers make the codes uneven.
    codes = (torch.rand(50, layout.num_codes, generator=torch.Generator().manual_seed(0)) ** 2 * sizes).to(torch.int32)
    encoded = SimpleNamespace(layout=layout, splits={"train": SimpleNamespace(codes=codes)})
    drawn = []

    class Decoder:
        def decode(self, codes):
            drawn.append(codes.flatten())
            return torch.zeros(len(codes), 1, 8, 8)

    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    script.unigram_sampler(encoded, Decoder())([-1] * 4000, generators)
    (sampled,) = drawn
    for level, size in enumerate(layout.codebook_sizes):
        places = level_of_code == level
        expected = np.bincount(codes[:, places].flatten(), minlength=size) / codes[:, places].numel()
        counts = np.bincount(sampled[:, places].flatten(), minlength=size)
        deviation = np.sqrt(expected * (1 - expected) / counts.sum())
        assert (np.abs(counts / counts.sum() - expected) <= 4.5 * deviation).all()


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"priors": {"codes": {}}}, [], "'codes' and"),
        ({"priors": {"A 1": {}, "a-1": {}}}, [], "'A 1' and 'a-1' would both be the file 'a_1'"),
        ({"priors": {}}, [], "tokenizers or priors is empty"),
        ({}, ["--only", "RQQ"], r"\['RQQ'\]; the priors are RQ"),
    ],
)
def test_what_is_refused(script, run_script, options, changes, words, message):
    with pytest.raises(SystemExit, match=message):
        run_script(script, options | changes, *words)
