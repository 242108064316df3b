from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hq_tokenizers.cli.demo import describe, judge_samples, prior_recipe, run_demo, tokenizer_recipe
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.generation import DemoConfig


@pytest.fixture(scope="module")
def splits():
    return load_image_splits(DataConfig(), "train_split", "validation_split")


def _pixels(rows):
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    return batch["pixel_values"]


def test_real_training_digits_are_recognised_as_copies(splits):
    train, held_out = splits
    images = _pixels(train)[:40]
    # Less than half a grey level does not hide a copy.
    judged = judge_samples(images + 0.03, train.labels[:40], train, held_out)
    assert judged["exact_copies"] == 40
    assert judged["nearest_training_digit_of_samples"] == 0
    assert judged["class_accuracy"] > 0.97
    assert judged["num_samples"] == 40


def test_new_and_wrong_digits(splits):
    train, held_out = splits
    images = _pixels(held_out)
    judged = judge_samples(images, (held_out.labels + 1) % 10, train, held_out)
    assert judged["exact_copies"] == 0
    assert judged["distinct_samples"] == 297
    assert judged["class_accuracy"] < 0.03
    assert judged["nearest_training_digit_of_samples"] == judged["nearest_training_digit_of_held_out_digits"]
    assert judged["classifier_accuracy_on_held_out_digits"] > 0.9
    # One digit's distance by hand.
    real = _pixels(train).flatten(1) * 16
    distances = [(digit.flatten() * 16 - real).square().mean(1).sqrt().min() for digit in images]
    assert judged["nearest_training_digit_of_samples"] == pytest.approx(torch.stack(distances).mean().item(), rel=1e-4)


def test_repeated_samples_are_counted_once(splits):
    train, held_out = splits
    images = _pixels(held_out)[:1].repeat(5, 1, 1, 1)
    assert judge_samples(images, held_out.labels[:1].repeat(5), train, held_out)["distinct_samples"] == 1


def test_the_whole_path_and_that_it_is_not_walked_twice(tmp_path, monkeypatch, capsys):
    """The demonstration with recipes cut to a few steps."""

    def short(recipe):
        def shortened(output_dir: Path, seed: int):
            config = recipe(output_dir, seed)
            config.max_steps = 4
            return config

        return shortened

    monkeypatch.setattr("hq_tokenizers.cli.demo.tokenizer_recipe", short(tokenizer_recipe))
    monkeypatch.setattr("hq_tokenizers.cli.demo.prior_recipe", short(prior_recipe))
    monkeypatch.setattr("hq_tokenizers.cli.demo.SAMPLES_PER_CLASS", 3)
    config = DemoConfig(output_dir=str(tmp_path / "demo"))
    report = run_demo(config)
    names = {"tokenizer", "codes", "prior", "generator", "samples.png", "reconstructions.png", "report.json"}
    assert {path.name for path in (tmp_path / "demo").iterdir()} == names
    assert describe(report, tmp_path / "demo") in capsys.readouterr().out
    assert report["samples"]["num_samples"] == 30
    again = run_demo(config)
    assert again == report
    assert "Continuing" not in capsys.readouterr().out
