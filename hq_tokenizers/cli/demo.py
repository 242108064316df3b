"""The demonstration: both training stages on scikit-learn's digits, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hq_tokenizers.data.digits import MAX_GREY_LEVEL
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.nearest_images import nearest_difference
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.generation import DemoConfig
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig, TokenizerTrainingConfig
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.reports import write_report
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.prior import save_generator, train_prior
from hq_tokenizers.training.tokenizer import pictures, train_tokenizer

SAMPLES_PER_CLASS = 50
_FIRST_SAMPLE_SEED = 1_000_000


def tokenizer_recipe(output_dir: Path, seed: int) -> TokenizerTrainingConfig:
    """SQ-VAE with a 4×4 grid of codes.

    The variance starts low and has no floor: it has a fiftieth of the steps of the paper's recipes to anneal in.
    """
    return TokenizerTrainingConfig(
        output_dir=str(output_dir / "tokenizer"),
        seed=seed,
        model={
            "preset": "sq_vae",
            "network": "digits",
            "codebook_dim": 8,
            "variance_floor": 0.0,
            "initial_log_variance": 0.0,
        },
        epochs=50,
        learning_rate=3e-3,
        schedule="cosine",
        validation_steps=230,
        checkpoint_steps=230,
    )


def prior_recipe(output_dir: Path, seed: int) -> PriorTrainingConfig:
    """A small transformer; of 1,500 digits it would learn more than their likeness, hence dropout and few epochs."""
    return PriorTrainingConfig(
        output_dir=str(output_dir / "prior"),
        codes=str(output_dir / "codes"),
        seed=seed,
        model={
            "model_type": "rq_prior",
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "dropout": 0.2,
        },
        batch_size=50,
        epochs=25,
        learning_rate=1e-3,
        validation_steps=150,
        checkpoint_steps=150,
    )


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Runs the demonstration, or what is left of it, and returns its report."""
    threads = torch.get_num_threads()
    # Tensors of 8×8 images are so small that sharing them among threads costs more than it gives.
    torch.set_num_threads(1)
    try:
        create_accelerator()
        with lock_folder("output_dir", config.output_dir):
            return _run(config)
    finally:
        torch.set_num_threads(threads)


def _run(config: DemoConfig) -> dict[str, Any]:
    output_dir = Path(config.output_dir)
    tokenizer = train_tokenizer(tokenizer_recipe(output_dir, config.seed))
    encode_images(
        EncodeConfig(tokenizer=str(output_dir / "tokenizer"), output_dir=str(output_dir / "codes"), data=DataConfig())
    )
    prior = train_prior(prior_recipe(output_dir, config.seed))
    generator = save_generator(str(output_dir / "tokenizer"), str(output_dir / "prior"), output_dir / "generator")
    train, held_out = load_image_splits(DataConfig(), "train_split", "validation_split")
    labels = torch.arange(10).repeat_interleave(SAMPLES_PER_CLASS)
    samples = generator.generate(labels, generator=_FIRST_SAMPLE_SEED + config.seed, batch_size=100).images
    assert samples is not None
    _save_pictures(output_dir, generator, held_out, samples)
    report = {
        "tokenizer": {"held_out": tokenizer["test"], "num_parameters": tokenizer["num_parameters"]},
        "prior": {"held_out": prior["validation"], "num_parameters": prior["num_parameters"]},
        "samples": judge_samples(samples, labels, train, held_out),
    }
    write_report(output_dir, report)
    print(describe(report, output_dir))
    return report


def judge_samples(
    samples: torch.Tensor, labels: torch.Tensor, train: ImageRows, held_out: ImageRows
) -> dict[str, float | int]:
    """Compares sampled digits with real ones.

    Args:
        samples: (N, 1, 8, 8), floats, nominally in [0, 1]; quantised to the 17 grey levels of the real digits.
        labels: (N,) classes that were asked for.
        train: The real training digits; the classifier sees no others.
        held_out: Real digits of other writers.

    Returns:
        "class_accuracy" of a support vector classifier on the samples, "classifier_accuracy_on_held_out_digits",
        "exact_copies" of training digits among the samples, "distinct_samples", and the mean root-mean-square
        difference, in grey levels of 16, to the nearest training digit: "nearest_training_digit_of_samples", and
        "nearest_training_digit_of_held_out_digits" to compare it with.
    """
    from sklearn.svm import SVC

    grey = (samples.float().clamp(0, 1) * MAX_GREY_LEVEL).round()
    real_grey, unseen_grey = _grey(train), _grey(held_out)
    sampled, real, unseen = (images.flatten(1).numpy() for images in (grey, real_grey, unseen_grey))
    assert train.labels is not None
    assert held_out.labels is not None
    classifier = SVC().fit(real, train.labels.numpy())
    copies = {row.tobytes() for row in real}
    return {
        "num_samples": len(samples),
        "class_accuracy": float(classifier.score(sampled, labels.numpy())),
        "classifier_accuracy_on_held_out_digits": float(classifier.score(unseen, held_out.labels.numpy())),
        "exact_copies": sum(row.tobytes() in copies for row in sampled),
        "distinct_samples": len({row.tobytes() for row in sampled}),
        "nearest_training_digit_of_samples": nearest_difference(grey, real_grey),
        "nearest_training_digit_of_held_out_digits": nearest_difference(unseen_grey, real_grey),
    }


def describe(report: dict[str, Any], output_dir: Path) -> str:
    """The report in words."""
    held_out, samples = report["tokenizer"]["held_out"], report["samples"]
    prior = report["prior"]["held_out"]
    return "\n".join(
        [
            f"tokenizer, on {held_out['num_images']} held-out digits: MSE {held_out['mse']:.4f} per pixel, PSNR "
            f"{held_out['psnr']:.1f} dB, perplexity {held_out['perplexity'][0]:.1f}",
            f"prior, on the same: {prior['bits_per_code']:.2f} bits per code "
            f"(a histogram of the codes needs {prior['unigram_bits_by_level'][0]:.2f})",
            f"{samples['num_samples']} sampled digits: {samples['class_accuracy']:.1%} are read as the class that was "
            f"asked for, by a classifier that reads {samples['classifier_accuracy_on_held_out_digits']:.1%} of the "
            "real held-out digits",
            f"{samples['exact_copies']} of them are exact copies of training digits; from the nearest training digit, "
            f"they differ by {samples['nearest_training_digit_of_samples']:.2f} grey levels of 16 (real held-out "
            f"digits: {samples['nearest_training_digit_of_held_out_digits']:.2f})",
            f"generator: {output_dir / 'generator'}; pictures: {output_dir / 'samples.png'}, "
            f"{output_dir / 'reconstructions.png'}; figures: {output_dir / 'report.json'}",
        ]
    )


def _grey(rows: ImageRows) -> torch.Tensor:
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    return batch["pixel_values"] * MAX_GREY_LEVEL


def _save_pictures(output_dir: Path, generator: HQGeneratorModel, held_out: ImageRows, samples: torch.Tensor) -> None:
    # One column per class.
    columns = samples.unflatten(0, (10, SAMPLES_PER_CLASS)).transpose(0, 1)[:10].flatten(0, 1)
    names = list(generator.config.id2label.values())  # type: ignore[union-attr]
    save_png(image_grid(columns, columns=10, titles=names), output_dir / "samples.png")
    held_out_pictures = pictures(generator.image_tokenizer, held_out, torch.device("cpu"))
    save_png(held_out_pictures, output_dir / "reconstructions.png")
