from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.soft_codes import SoftCodes
from hq_tokenizers.evaluation.validation import evaluate_prior, unigram_entropies
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.models.presets import sq_vae
from hq_tokenizers.options.training import PriorTrainingConfig
from hq_tokenizers.priors import RQPriorConfig, RQPriorModel
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.figures import image_grid
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.prior import _sample_grid, train_prior, train_prior_and_save_generator

MODEL = {"model_type": "rq_prior", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.0}
MASKED = {**MODEL, "model_type": "masked_prior"}
LAYOUT = CodeLayout((CodeGroup(1, 2, (4,)), CodeGroup(2, 1, (3, 5))))


def _rows(number: int, seed: int) -> CodeRows:
    """Levels 1 and 2 are the class; level 0 is noise over 4 codes with shares 1/2, 1/4, 1/8, 1/8."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (number,), generator=noise)
    free = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])[torch.randint(8, (number, 2), generator=noise)]
    copies = labels[:, None].repeat(1, 4)
    return CodeRows(torch.cat([free, copies], 1).int(), labels)


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    EncodedImages(LAYOUT, {"train": _rows(400, 0), "validation": _rows(200, 1)}, "nowhere", "-", ["a", "b", "c"]).save(
        folder
    )
    return folder


def _config(codes, folder, **options):
    options = {"model": MODEL, "batch_size": 40, "epochs": 20, "warmup_steps": 5, "learning_rate": 5e-3, **options}
    return PriorTrainingConfig(codes=str(codes), output_dir=str(folder), **options)


@pytest.fixture(scope="module")
def trained(codes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    return folder, train_prior(_config(codes, folder, generation={"temperature": 0.5}))


def test_the_known_distribution_is_learned(trained):
    """The classes decide levels 1 and 2; level 0 has 1.75 bits, whatever came before."""
    _, report = trained
    figures = report["validation"]
    assert figures["bits_per_code_by_level"][1] < 0.1
    assert figures["bits_per_code_by_level"][2] < 0.1
    assert figures["bits_per_code_by_level"][0] == pytest.approx(1.75, abs=0.25)
    assert figures["unigram_bits_by_level"] == pytest.approx([1.75, math.log2(3), math.log2(3)], abs=0.05)


def test_the_folder_loads_with_names_and_sampling_settings(trained):
    folder, _ = trained
    prior = AutoModel.from_pretrained(folder)
    assert prior.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert prior.generation_config.temperature == 0.5
    assert prior.config.layout == LAYOUT
    sampled = prior.eval().generate(torch.tensor([0, 1, 2]), num_images=5, generator=0)
    assert sampled.levels()[1][:, 0, 0].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert (folder / "curves.png").is_file()
    assert json.loads((folder / "report.json").read_text())["code_layout"] == str(LAYOUT)


def test_figures_agree_with_log_prob(codes, trained):
    folder, report = trained
    encoded = EncodedImages.load(codes)
    prior = AutoModel.from_pretrained(folder).eval()
    rows = encoded.splits["validation"]
    expected = -prior.log_prob(LAYOUT.unflatten(rows.codes.long()), rows.labels).mean().item()
    figures = evaluate_prior(prior, encoded, "validation", 33, create_accelerator())
    assert figures["bits_per_image"] == pytest.approx(expected / math.log(2), rel=1e-5)
    assert figures["loss"] == pytest.approx(expected / LAYOUT.num_codes, rel=1e-5)
    per_level = zip(figures["nats_per_code_by_level"], (2, 2, 2), strict=True)
    assert sum(nats * number for nats, number in per_level) == pytest.approx(expected, rel=1e-5)
    assert figures["loss"] == pytest.approx(report["validation"]["loss"], rel=1e-5)


def test_figures_of_a_masked_prior_depend_on_the_images_only(codes, tmp_path):
    train_prior(_config(codes, tmp_path, max_steps=1, model={**MODEL, "model_type": "masked_prior"}))
    encoded, prior = EncodedImages.load(codes), AutoModel.from_pretrained(tmp_path).eval()
    rows = encoded.splits["validation"]
    codes_of_split = LAYOUT.unflatten(rows.codes.long())
    expected = -prior.log_prob_of_split(codes_of_split, rows.labels, range(len(rows)), len(rows)).double().mean(0)
    for batch_size in (7, 33):
        figures = evaluate_prior(prior, encoded, "validation", batch_size, create_accelerator())
        assert figures["nats_per_code_by_level"] == pytest.approx((expected / 2).tolist(), rel=1e-5)


def test_unigram_entropies_by_hand():
    layout = CodeLayout((CodeGroup(1, 2, (4, 2)),))
    rows = CodeRows(torch.tensor([[0, 0, 1, 0], [2, 0, 3, 0]]))
    assert unigram_entropies(rows, layout) == pytest.approx([math.log(4), 0.0])


@pytest.mark.parametrize("model_type", ["rq_prior", "contextual_prior"])
def test_a_resumed_run_is_bit_equal(codes, tmp_path, model_type):
    options = {
        "model": {**MODEL, "model_type": model_type, "dropout": 0.2},
        "schedule": "constant",
        "ema_decay": 0.9,
        "checkpoint_steps": 3,
    }
    train_prior(_config(codes, tmp_path / "whole", **options, max_steps=14))
    train_prior(_config(codes, tmp_path / "parts", **options, max_steps=7))
    train_prior(_config(codes, tmp_path / "parts", **options, max_steps=14))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_unconditional(codes, tmp_path):
    train_prior(_config(codes, tmp_path, conditional=False, max_steps=2))
    prior = AutoModel.from_pretrained(tmp_path)
    assert prior.config.num_classes == 0
    assert [r["step"] for r in read_history(tmp_path)] == [2, 2]


def test_sample_grid_with_the_tokenizer(tmp_path):
    tokenizer = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    layout, rows = tokenizer.code_layout(), CodeRows(torch.randint(8, (20, 16)).int())
    for name, digest in (("codes", weights_sha256(tokenizer)), ("stale", "0")):
        splits = {"train": rows, "validation": rows}
        EncodedImages(layout, splits, str(tmp_path / "tokenizer"), digest).save(tmp_path / name)
    train_prior(_config(tmp_path / "codes", tmp_path / "prior", max_steps=1, batch_size=10, samples=16))
    with Image.open(tmp_path / "prior" / "samples.png") as picture:
        assert picture.width == 8 * (64 + 2) + 2
    with pytest.raises(ValueError, match="encode the images again"):
        train_prior(_config(tmp_path / "stale", tmp_path / "other", max_steps=1, batch_size=10))


@pytest.mark.parametrize(("number", "columns"), [(2, 8), (3, 6), (10, 10), (12, 8)])
def test_samples_have_the_names_of_their_classes(tmp_path, number, columns):
    """A column has one class where there are few."""
    names = [f"class {n}" for n in range(number)]
    tokenizer = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8)).eval()
    layout = tokenizer.code_layout().to_dict()
    config = RQPriorConfig(code_layout=layout, id2label=dict(enumerate(names)), num_classes=len(names), hidden_size=32)
    prior = RQPriorModel(config).eval()
    options = PriorTrainingConfig(codes="codes", output_dir=str(tmp_path), samples=8)
    grid = _sample_grid(prior, tokenizer, options, EncodedImages(prior.config.layout, {}, "tokenizer", ""))
    labels = [index % len(names) for index in range(columns)]
    images = tokenizer.decode(prior.generate(torch.tensor(labels), generator=0))
    expected = image_grid(images, columns, [names[label] for label in labels])
    assert np.array_equal(grid, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {**MODEL, "hiden_size": 8}}, "Did you mean model.hidden_size"),
        ({"model": {"model_type": "gpt2"}}, "Accepted: rq_prior"),
        ({"model": {**MODEL, "num_classes": 7}}, "model.num_classes is 7, but the data say 3"),
        ({"generation": {"temperature": -1}}, "generation: temperature must be .*, got -1"),
        ({"generation": {"temprature": 1}}, "generation: temprature=1 means nothing to a prior over codes"),
        ({"generation": {"top_p": [0.9, 0.8]}}, r"generation: top_p lists 2 values .*, the layout has 3 levels"),
        ({"generation": {"num_steps": 4}}, "generation: num_steps=4 is a setting of masked_prior models"),
        (
            {"generation": {"guidance_scale": 2.0}, "conditional": False},
            "generation: guidance_scale=2.0 needs a ",
        ),
        (
            {"generation": {"cache_implementation": "static"}, "model": MASKED},
            "generation: cache_implementation='static' is a setting of rq_prior models",
        ),
        (
            {"generation": {"num_steps": [4, 4]}, "model": MASKED},
            r"generation: num_steps lists 2 values .*, the layout has 3 levels",
        ),
    ],
)
def test_mistakes_are_named_before_the_first_step(codes, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_prior(_config(codes, tmp_path / "prior", **options))
    assert not (tmp_path / "prior").exists()


def test_codes_without_classes_cannot_be_conditional(tmp_path):
    rows = CodeRows(_rows(20, 0).codes)
    EncodedImages(LAYOUT, {"train": rows, "validation": rows}, "nowhere", "-").save(tmp_path / "codes")
    with pytest.raises(ValueError, match="have no labels"):
        train_prior(_config(tmp_path / "codes", tmp_path / "prior", conditional=True))


def test_a_run_is_not_continued_on_other_codes(tmp_path):
    """The same path with other content: a re-trained tokenizer, or other images."""
    options = {"max_steps": 1, "batch_size": 10, "schedule": "constant"}

    def encode(digest, seed, validation_seed=1):
        splits = {"train": _rows(20, seed), "validation": _rows(10, validation_seed)}
        EncodedImages(LAYOUT, splits, "nowhere", digest, ["a", "b", "c"]).save(tmp_path / "codes")

    encode("first", 0)
    train_prior(_config(tmp_path / "codes", tmp_path / "prior", **options))
    encode("second", 0)
    with pytest.raises(ValueError, match=r"tokenizer_sha256 was 'first', is 'second'.*delete"):
        train_prior(_config(tmp_path / "codes", tmp_path / "prior", **options))
    encode("first", 5)
    with pytest.raises(ValueError, match="training_codes_sha256 was"):
        train_prior(_config(tmp_path / "codes", tmp_path / "prior", **options))
    encode("first", 0, validation_seed=6)
    with pytest.raises(ValueError, match="validation_codes_sha256 was"):
        train_prior(_config(tmp_path / "codes", tmp_path / "prior", **options))
    encode("first", 0)
    # Where they lie does not matter.
    (tmp_path / "codes").rename(tmp_path / "moved")
    assert train_prior(_config(f"{tmp_path}/moved/", tmp_path / "prior", **options | {"max_steps": 2}))["steps"] == 2


@pytest.mark.parametrize("samples", [0, 8])
def test_codes_of_images_of_another_size_are_refused(tmp_path, samples):
    tokenizer = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    layout = tokenizer.code_layout((16, 16))
    rows = CodeRows(torch.randint(8, (20, layout.num_codes)).int())
    encoded = EncodedImages(
        layout, {"train": rows, "validation": rows}, str(tmp_path / "tokenizer"), weights_sha256(tokenizer)
    )
    encoded.save(tmp_path / "codes")
    with pytest.raises(ValueError, match=r"images of size 8: encode images of that size \(data\.image_size\)"):
        train_prior(_config(tmp_path / "codes", tmp_path / "prior", max_steps=1, batch_size=10, samples=samples))
    assert not (tmp_path / "prior").exists()


def test_a_tokenizer_that_is_none_is_named(codes, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer '.*nothing' is neither the folder of a tokenizer nor"):
        train_prior(_config(codes, tmp_path / "prior", tokenizer=str(tmp_path / "nothing")))


def test_another_tokenizer_than_that_of_the_codes_is_refused(codes, tmp_path):
    SQVAEModel(sq_vae("digits", codebook_size=4)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"made by other weights than those in .*other': give the tokenizer that made"):
        train_prior(_config(codes, tmp_path / "prior", tokenizer=str(tmp_path / "other")))


def test_a_generator_that_cannot_be_written_is_said(codes, tmp_path, capsys):
    train_prior_and_save_generator(_config(codes, tmp_path / "prior", max_steps=1, samples=0))
    assert "No generator was written: the tokenizer 'nowhere' is not there." in capsys.readouterr().out
    assert not (tmp_path / "prior" / "generator").exists()


def test_a_masked_prior_learns_the_known_distribution_too(codes, tmp_path):
    model = {**MODEL, "model_type": "masked_prior", "num_hidden_layers": 2}
    figures = train_prior(_config(codes, tmp_path, model=model, epochs=40))["validation"]
    # Its likelihood is a bound averaged over orders of decoding: not below the truth, and close to it here.
    assert figures["bits_per_code_by_level"][0] == pytest.approx(1.75, abs=0.3)
    assert max(figures["bits_per_code_by_level"][1:]) < 0.3
    sampled = AutoModel.from_pretrained(tmp_path).eval().generate(torch.tensor([0, 1, 2]), num_images=4, generator=0)
    assert sampled.levels()[2].flatten(1).tolist() == [[0, 0]] * 4 + [[1, 1]] * 4 + [[2, 2]] * 4


def test_a_contextual_prior_learns_the_known_distribution_too(codes, tmp_path):
    model = {**MODEL, "model_type": "contextual_prior", "num_hidden_layers": 2}
    config = _config(codes, tmp_path, model=model, epochs=40, generation={"num_draft_steps": 2, "num_revisions": 1})
    figures = train_prior(config)["validation"]
    # A bound averaged over orders of positions, as the masked prior's; depths are exact.
    assert figures["bits_per_code_by_level"][0] == pytest.approx(1.75, abs=0.3)
    assert max(figures["bits_per_code_by_level"][1:]) < 0.3
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.generation_config.num_draft_steps == 2
    sampled = loaded.generate(torch.tensor([0, 1, 2]), num_images=4, generator=0)
    assert sampled.levels()[2].flatten(1).tolist() == [[0, 0]] * 4 + [[1, 1]] * 4 + [[2, 2]] * 4


def test_code_vectors_of_the_tokenizer_as_inputs(codes, tmp_path):
    with pytest.raises(ValueError, match="tokenizer 'nowhere' is neither the folder of a tokenizer"):
        train_prior(_config(codes, tmp_path / "none", model={**MODEL, "input_embeddings": "code_vectors"}))
    torch.manual_seed(0)
    tokenizer = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_dim=3, codebook_size=16))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (codebook,) = tokenizer.codebooks()
    rows = {split: CodeRows(torch.randint(16, (20, 16)).int(), None) for split in ("train", "validation")}
    folder = tmp_path / "codes"
    sha256 = weights_sha256(tokenizer)
    EncodedImages(tokenizer.code_layout(), rows, str(tmp_path / "tokenizer"), sha256, None).save(folder)
    model = {**MODEL, "input_embeddings": "code_vectors"}
    train_prior(_config(folder, tmp_path / "prior", model=model, batch_size=10, max_steps=2, samples=4))
    prior = AutoModel.from_pretrained(tmp_path / "prior")
    torch.testing.assert_close(prior.code_embedding.vectors(0), codebook / codebook.square().mean().sqrt())


def test_soft_targets_of_the_tokenizer(codes, tmp_path):
    """Codes of which a quarter is wrong, and probabilities that know it: the prior learns the probabilities."""
    kept = torch.tensor([0, 1, 2, 3]).expand(400, LAYOUT.num_codes, 4) % torch.tensor([4, 4, 3, 5, 3, 5])[:, None]
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125]).half().expand(kept.shape)
    rows = CodeRows(torch.zeros(400, LAYOUT.num_codes).int(), soft=SoftCodes(kept.int(), shares))
    folder = tmp_path / "codes"
    EncodedImages(LAYOUT, {"train": rows, "validation": replace(rows, soft=None)}, "nowhere", "-").save(folder)
    options = {"max_steps": 60, "model": {**MODEL, "label_smoothing": 0.0}, "learning_rate": 2e-2}
    for name, soft_targets, bits in (("soft", True, [1.0, 0.678, 1.0]), ("hard", False, [0.0, 0.0, 0.0])):
        report = train_prior(_config(folder, tmp_path / name, soft_targets=soft_targets, **options))
        # Validation asks for code 0, to which the probabilities give 1/2, 5/8 (twice, 3 = 0 mod 3) and 1/2.
        assert report["validation"]["bits_per_code_by_level"] == pytest.approx(bits, abs=0.05)


def test_soft_targets_that_were_not_stored_are_asked_for(codes, tmp_path):
    with pytest.raises(ValueError, match=r"soft_targets is true, but .*encode the images again .*--soft_targets 8"):
        train_prior(_config(codes, tmp_path / "prior", soft_targets=True))
    assert not (tmp_path / "prior").exists()
