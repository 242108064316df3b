"""Evaluation in the middle of training: its figures are those of the command, and training does not notice."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hq_tokenizers.cli import main
from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, FeatureConfig, MetricConfig
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig, TokenizerTrainingConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.checkpoints import list_checkpoints, read_state
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.tokenizer import train_tokenizer

MODEL = {"preset": "hybrid_vae", "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}


def _train(folder, **options):
    data = DataConfig(train_split="train[:200]", validation_split="test[:40]", horizontal_flip=True)
    metrics = MetricConfig(lpips=None) if "evaluation_steps" in options else MetricConfig()
    options = {"batch_size": 20, "max_steps": 12, "metrics": metrics, "data": data, **options}
    train_tokenizer(TokenizerTrainingConfig(output_dir=str(folder), model=MODEL, **options))
    return [record for record in read_history(folder) if record["split"] == "evaluation"]


def _weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def noisy_network(monkeypatch, six_pixels):
    """A feature network that uses up noise."""
    from hq_tokenizers.evaluation import networks

    network = networks.inception_network()
    call = type(network).__call__

    def noisy(network, images):
        torch.rand(3)
        return call(network, images)

    monkeypatch.setattr(type(network), "__call__", noisy)


def test_a_judged_run_learns_what_an_unjudged_one_does_and_resumes(tmp_path, noisy_network):
    assert _train(tmp_path / "unjudged") == []
    judged = _train(tmp_path / "judged", evaluation_steps=5)
    _train(tmp_path / "parts", evaluation_steps=2, max_steps=7)
    parts = _train(tmp_path / "parts", evaluation_steps=5)
    assert [record["step"] for record in judged] == [5, 10, 12]
    assert [record["step"] for record in parts] == [2, 4, 6, 7, 10, 12]
    for name in ("judged", "parts"):
        weights, others = _weights(tmp_path / "unjudged"), _weights(tmp_path / name)
        assert [key for key in weights if not torch.equal(weights[key], others[key])] == [], name
    for early, late in zip(judged[1:], parts[-2:], strict=True):
        assert late == early


def test_figures_are_those_of_the_command_and_are_drawn(tmp_path, six_pixels, monkeypatch):
    panels = []
    from hq_tokenizers.reporting import figures

    lines = figures._lines
    monkeypatch.setattr(
        figures, "_lines", lambda history, name, split: panels.append((name, split)) or lines(history, name, split)
    )
    (record,) = _train(tmp_path / "run", evaluation_steps=100, ema_decay=0.5)
    report = evaluate(
        EvaluateConfig(
            tokenizer=str(tmp_path / "run"),
            output_dir=str(tmp_path / "report"),
            data=DataConfig(validation_split="test[:40]"),
            metrics=MetricConfig(lpips=None),
        )
    )["results"]
    assert record["frechet_distance"] == pytest.approx(report["rfid"]["frechet_distance"], rel=1e-4)
    assert record["ssim"] == pytest.approx(report["reconstruction"]["ssim"], rel=1e-4)
    assert record["mse_by_levels"] == pytest.approx(report["partial"]["mse"], rel=1e-4)
    assert set(record) == {*("step", "epoch", "split", "frechet_distance", "ssim", "mse_by_levels", "psnr_by_levels")}
    assert ("frechet_distance", "evaluation") in panels
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        # Loss, MSE, Fréchet distance, MSE of the first levels, perplexity, perplexity / K, active codes, share of dead
        # codes, entropy, variance, energies left over and of latents and codes, rates in all and by level: 500 × 400
        # pixels each, four in a row.
        assert picture.size == (4 * 500, 4 * 400)


def test_mistakes_come_before_training(tmp_path, six_pixels, no_weights):
    with pytest.raises(OSError, match="not to be had"):
        _train(tmp_path / "run", evaluation_steps=5, metrics=MetricConfig(lpips=None, features="inception"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="evaluation_steps must be an integer from 1"):
        TokenizerTrainingConfig(evaluation_steps=-1)
    with pytest.raises(ValueError, match="evaluation_steps needs evaluation_reference"):
        PriorTrainingConfig(evaluation_steps=3)


def test_samples_of_a_prior_in_training(tmp_path, six_pixels, tokenizer_dir, six_pixel_images, write_images):
    write_images(tmp_path / "real", six_pixel_images[0])
    data = DataConfig(train_split="train[:60]", validation_split="test[:20]")
    encode_images(EncodeConfig(tokenizer=str(tokenizer_dir), output_dir=str(tmp_path / "codes"), data=data))

    def train(name, **options):
        config = {
            "codes": tmp_path / "codes",
            "output_dir": tmp_path / name,
            "max_steps": 6,
            "batch_size": 20,
            "warmup_steps": 0,
        }
        model = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
        words = [
            word
            for key, value in (config | {"learning_rate": 0.05} | options).items()
            for word in (f"--{key}", str(value))
        ]
        main(["train-prior", *words, "--model", model, "--generation", "{temperature: 0.8}", "--samples", "10"])

    train("unjudged")
    asked = {"evaluation_steps": 4, "evaluation_reference": tmp_path / "real", "evaluation_images": 25, "seed": 0}
    train("judged", **asked)
    weights = _weights(tmp_path / "unjudged"), _weights(tmp_path / "judged")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    judged = [record for record in read_history(tmp_path / "judged") if record["split"] == "evaluation"]
    assert [record["step"] for record in judged] == [4, 6]
    report = evaluate(
        EvaluateConfig(
            generator=str(tmp_path / "judged" / "generator"),
            reference=str(tmp_path / "real"),
            num_images=25,
            output_dir=str(tmp_path / "report"),
        )
    )
    assert judged[-1]["frechet_distance"] == pytest.approx(report["results"]["fid"]["frechet_distance"], rel=1e-9)
    assert judged[0]["frechet_distance"] != pytest.approx(judged[-1]["frechet_distance"], rel=1e-6)


def _codes_of(tokenizer, path, folder):
    """Codes that claim to come from a tokenizer at a path."""
    layout = tokenizer.code_layout()
    rows = {name: CodeRows(torch.zeros(20, layout.num_codes).int()) for name in ("train", "validation")}
    EncodedImages(layout, rows, str(path), weights_sha256(tokenizer)).save(folder)
    return str(folder)


def test_a_prior_is_not_judged_without_the_tokenizer(tmp_path, tokenizer):
    from hq_tokenizers.training.prior import train_prior

    codes = _codes_of(tokenizer, "gone", tmp_path / "codes")
    config = PriorTrainingConfig(codes=codes, evaluation_steps=3, evaluation_reference="nowhere")
    with pytest.raises(ValueError, match="tokenizer 'gone' is neither the folder of a tokenizer"):
        train_prior(config)


def test_samples_of_another_size_than_the_reference_are_refused(
    tmp_path, six_pixels, tokenizer, tokenizer_dir, write_images
):
    from hq_tokenizers.training.prior import train_prior

    write_images(tmp_path / "real", torch.zeros(9, 1, 16, 16, dtype=torch.uint8))
    config = PriorTrainingConfig(
        codes=_codes_of(tokenizer, tokenizer_dir, tmp_path / "codes"),
        output_dir=str(tmp_path / "prior"),
        evaluation_steps=3,
        evaluation_reference=str(tmp_path / "real"),
        evaluation_images=9,
    )
    with pytest.raises(
        ValueError, match=r"images have 8×8 pixels, those to compare with 16×16: give evaluation_reference"
    ):
        train_prior(config)
    config.evaluation_reference = "nowhere"
    with pytest.raises(FileNotFoundError, match="evaluation_reference 'nowhere' is no folder: set evaluation_ref"):
        train_prior(config)


def test_options_for_evaluations_that_are_never_made(tmp_path):
    from hq_tokenizers.training.prior import train_prior

    with pytest.raises(ValueError, match=r"Only evaluations need metrics\.lpips, and evaluation_steps is null"):
        _train(tmp_path / "run", metrics=MetricConfig(lpips=None))
    assert not (tmp_path / "run").exists()
    unused = {"evaluation_reference": "real", "evaluation_images": 9, "metrics": FeatureConfig(features="squeezenet")}
    named = r"metrics\.features, evaluation_reference, evaluation_images, and"
    with pytest.raises(ValueError, match=f"Only evaluations need {named} evaluation_steps is null"):
        train_prior(PriorTrainingConfig(codes="gone", **unused))


def test_an_evaluation_that_an_interruption_took_is_made_up_once(tmp_path, six_pixels, monkeypatch):
    from hq_tokenizers.training import tokenizer

    whole = _train(tmp_path / "whole", evaluation_steps=5)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "evaluation_figures", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "parts", evaluation_steps=5, checkpoint_steps=5)
    assert _train(tmp_path / "parts", evaluation_steps=5, checkpoint_steps=5) == whole
    assert [record["step"] for record in whole] == [5, 10, 12]
    assert _train(tmp_path / "parts", evaluation_steps=5, checkpoint_steps=5) == whole


def test_a_failing_evaluation_costs_no_training(tmp_path, six_pixels, monkeypatch):
    from hq_tokenizers.training import tokenizer

    def fail(*arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(tokenizer, "evaluation_figures", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        _train(tmp_path, evaluation_steps=5, checkpoint_steps=5)
    assert read_state(list_checkpoints(tmp_path)[-1])["step"] == 5


def test_missing_packages_are_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"torchmetrics and torch_fidelity: pip install 'hq_tokenizers\[metrics\]'"):
        _train(tmp_path / "run", evaluation_steps=5)
    assert not (tmp_path / "run").exists()
