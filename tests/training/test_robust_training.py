"""Warm-up without quantisation and re-estimated codebooks, through the training command's own code."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.diagnostics import Finding
from hq_tokenizers.models.presets import robust_vq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.quantization.vector_codebook import VectorCodebook
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.checkpoints import list_checkpoints
from hq_tokenizers.training.loop import TrainingLoop
from hq_tokenizers.training.tokenizer import train_tokenizer
from hq_tokenizers.training.tokenizer_setup import check_warmup

SCHEDULE = {"warmup_epochs": 2, "reestimation_epochs": 2, "reservoir_size": 300}
SIZE = {"hidden_size": 8, "codebook_dim": 4}
MODEL = {"preset": "robust_vq_vae", "network": "digits", "codebook_size": 16, **SIZE, **SCHEDULE}
RESIDUAL = {
    "model_type": "hq_vae",
    "code_groups": ["stride 2: 16 x 2"],
    "quantizer": "vq",
    "codebook_update": "ema",
    "shared_codebook": True,
    "restart_threshold": 0.5,
    "bottleneck_batch_norm": True,
    **SIZE,
    **SCHEDULE,
}
STOCHASTIC = {"preset": "sq_vae_2", "network": "digits", "codebook_size": 16, **SIZE, **SCHEDULE}


def _config(folder, model=MODEL, **options):
    data = DataConfig(train_split="train[:200]", validation_split="test[:50]")
    options = {"batch_size": 20, "epochs": 5, "log_steps": 5, "checkpoint_steps": 5, "keep_checkpoints": 20} | options
    return TokenizerTrainingConfig(data=data, output_dir=str(folder), model=dict(model), **options)


@pytest.mark.parametrize("model", [MODEL, RESIDUAL, STOCHASTIC], ids=["gradient", "residual EMA", "SQ-VAE-2"])
def test_a_run_cut_anywhere_ends_as_if_it_had_not_been(tmp_path, model, monkeypatch):
    whole = train_tokenizer(_config(tmp_path / "whole", model, ema_decay=0.9))
    save = TrainingLoop._save

    def cut(loop):
        save(loop)
        if loop.step in (10, 15, 25, 30):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "_save", cut)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(_config(tmp_path / "cut", model, ema_decay=0.9))
    assert train_tokenizer(_config(tmp_path / "cut", model, ema_decay=0.9))["test"] == whole["test"]
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_what_was_learned_of_the_old_codebook_is_forgotten(tmp_path, monkeypatch, capsys):
    """The optimiser's moments go, and the average begins with the new codes."""
    start, seen = TrainingLoop._start_epoch, []

    def record(loop, tracker, epoch):
        (weight,) = [m.weight for m in loop.model.modules() if isinstance(m, VectorCodebook)]
        before = weight.detach().clone()
        start(loop, tracker, epoch)
        replaced = not torch.equal(weight, before)
        (average,) = [m.weight for m in loop.average.model.modules() if isinstance(m, VectorCodebook)]
        others = [p for p in loop.model.parameters() if p is not weight and p in loop.optimizer.state]
        seen.append((replaced, weight in loop.optimizer.state, torch.equal(weight, average), len(others) > 5))

    monkeypatch.setattr(TrainingLoop, "_start_epoch", record)
    train_tokenizer(_config(tmp_path, ema_decay=0.99))
    # Per epoch: replaced, the codebook has moments, it is the average's, the other parameters have moments.
    replaced, kept = (True, False, True, True), (False, True, False, True)
    assert seen[2:] == [replaced, replaced, kept]
    assert [entry[0] for entry in seen[:2]] == [False, False]
    printed = capsys.readouterr().out
    assert [f"Epoch {epoch}: codebooks replaced" in printed for epoch in range(5)] == [False, False, True, True, False]


def test_variances_that_stood_still_begin_anew(tmp_path, monkeypatch):
    """Of 20 steps without a gradient Adam would know a second moment of zero, and step too far."""
    start, seen = TrainingLoop._start_epoch, []

    def record(loop, tracker, epoch):
        known = loop.model.quantizer.variance.log_variance in loop.optimizer.state
        start(loop, tracker, epoch)
        seen.append((known, loop.model.quantizer.variance.log_variance in loop.optimizer.state))

    monkeypatch.setattr(TrainingLoop, "_start_epoch", record)
    model = {"preset": "sq_vae", "recipe": "paper", "network": "digits", "codebook_size": 16, **SIZE, **SCHEDULE}
    train_tokenizer(_config(tmp_path, model))
    assert seen == [(False, False), (True, True), (True, False), (True, True), (True, True)]


def test_validations_before_anything_is_quantised_decide_nothing(tmp_path, monkeypatch, capsys):
    judged = []
    judge = TrainingLoop._judge

    def record(loop, *arguments):
        judged.append(loop.step)
        judge(loop, *arguments)

    monkeypatch.setattr(TrainingLoop, "_judge", record)
    train_tokenizer(_config(tmp_path, keep_best=True, validation_steps=5, epochs=4))
    assert judged == [25, 30, 35, 40]
    assert "warning" not in capsys.readouterr().out.split("Epoch 2: codebooks replaced")[0]


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ({"epochs": 2}, {}, "epochs is 2, but the model quantises nothing in its first 2 epochs"),
        ({"max_steps": 20}, {}, r"has 20 steps, but the model quantises nothing in its first 2 epochs \(20 steps\)"),
        ({"max_steps": 15}, {}, "has 15 steps"),
        ({}, {"reservoir_size": 10}, "reservoir_size must be at least the 16 codes"),
    ],
)
def test_a_run_whose_codebook_would_stay_random_is_refused(tmp_path, options, model, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(_config(tmp_path, MODEL | model, **options))
    assert not list_checkpoints(tmp_path)


@pytest.mark.parametrize("warmup_epochs", [1, 2])
@pytest.mark.parametrize(("num_processes", "refused"), [(1, False), (2, True)])
def test_only_what_the_first_process_sees_in_an_epoch_counts(num_processes, refused, warmup_epochs):
    """20 images of 16 positions: 320 vectors, 160 for each of two processes, however long the warm-up."""
    rows = load_image_splits(DataConfig(train_split="train[:20]"), "train_split")[0]
    model = AutoModel.from_config(
        robust_vq_vae("digits", codebook_size=200, warmup_epochs=warmup_epochs, hidden_size=8)
    )
    config = _config("unused", epochs=3)
    with pytest.raises(ValueError, match=r"200 codes cannot be .* the 160 vectors") if refused else nullcontext():
        check_warmup(config, model, rows, num_processes)


def test_every_grid_needs_vectors_for_its_own_codes_only(tmp_path):
    groups = {"code_groups": ["stride 8: 4", "stride 2: 256"], "warmup_epochs": 1, "restart_threshold": 0.0}
    with pytest.raises(ValueError, match="reservoir_size must be at least the 256 codes"):
        train_tokenizer(_config(tmp_path, RESIDUAL | groups | {"reservoir_size": 200}, epochs=2))
    report = train_tokenizer(_config(tmp_path, RESIDUAL | groups | {"reservoir_size": 1000}, epochs=2))
    assert report["codebook_sizes"] == [4, 256]


def test_too_few_images_for_a_batch_are_called_that(tmp_path):
    with pytest.raises(ValueError, match="batch_size"):
        train_tokenizer(_config(tmp_path, batch_size=500))


def test_a_collapse_is_reported_again_after_it_was_mended(tmp_path, monkeypatch, capsys):
    """And a record says how many codes are used, of each level."""
    findings = iter([["collapsed"], ["collapsed"], [], ["collapsed"], []])

    def diagnose(config, sizes, figures):
        return [Finding((0,), symptom, "", "", {}) for symptom in next(findings)]

    monkeypatch.setattr("hq_tokenizers.training.tokenizer.diagnose", diagnose)
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.EARLY_STEPS", 0)
    sq_vae = {"preset": "sq_vae", "network": "digits", "codebook_size": 16, **SIZE}
    train_tokenizer(_config(tmp_path, sq_vae, epochs=4))
    assert capsys.readouterr().out.count("warning: Level 1: collapsed") == 2
    (record, *_) = [record for record in read_history(tmp_path) if record["split"] == "validation"]
    assert record["usage"] == pytest.approx([record["perplexity"][0] / 16])
    assert record["dead_rate"] == pytest.approx([1 - record["active_codes"][0] / 16])


def test_a_codebook_that_really_collapses_is_named_with_level_cause_and_remedy(tmp_path, monkeypatch, capsys):
    """Codes far from every latent vector, learned by gradient alone, are never chosen."""
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.EARLY_STEPS", 0)
    model = {"preset": "vq_vae", "network": "digits", "codebook_size": 64, "codebook_update": "gradient", **SIZE}
    report = train_tokenizer(_config(tmp_path, model | {"codebook_init_std": 30.0}, epochs=2))
    assert report["test"]["usage"][0] < 0.1
    printed = capsys.readouterr().out
    assert "warning: Level 1: collapsed" in printed
    assert "Likely cause: codes that are never nearest" in printed
    assert "Try: --model.codebook_update ema --model.restart_threshold 1" in printed
    assert [finding["symptom"] for finding in report["findings"]] == ["collapsed"]
