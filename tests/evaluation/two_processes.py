"""Run by torchrun: evaluates in two processes; the main one writes the reports."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import six_pixel_network

from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.evaluation import networks
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, MetricConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.training.tokenizer import train_tokenizer


def subjects(folder: Path, name: str) -> dict[str, dict]:
    """Options of each evaluation."""
    kept = str(folder / f"{name}-kept")
    return {
        "tokenizer": {"tokenizer": str(folder / "tokenizer")},
        "generator": {"generator": str(folder / "generator"), "num_images": 21, "images_dir": kept},
        "images": {"images": kept, "reference": kept, "pairs": True},
    }


def run(folder: Path, name: str) -> None:
    """Evaluates every subject."""
    networks.inception_network = six_pixel_network
    for subject, options in subjects(folder, name).items():
        evaluate(
            EvaluateConfig(
                output_dir=str(folder / f"{name}-{subject}"),
                data=DataConfig(validation_split="test[:40]"),
                metrics=MetricConfig(lpips=None),
                batch_size=4,
                **options,
            )
        )


def train(folder: Path, name: str, evaluation_steps: int | None) -> None:
    """Trains a robust VQ-VAE, whose processes collect latent vectors of their own."""
    model = {"preset": "robust_vq_vae", "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
    train_tokenizer(
        TokenizerTrainingConfig(
            output_dir=str(folder / name),
            model={**model, "warmup_epochs": 1, "reestimation_epochs": 2},
            data=DataConfig(train_split="train[:64]", validation_split="test[:40]"),
            metrics=MetricConfig(lpips=None) if evaluation_steps else MetricConfig(),
            batch_size=16,
            epochs=3,
            evaluation_steps=evaluation_steps,
        )
    )


if __name__ == "__main__":
    accelerator = create_accelerator()
    run(Path(sys.argv[1]), "two")
    train(Path(sys.argv[1]), "judged", 3)
    train(Path(sys.argv[1]), "unjudged", None)
    # Gloo's threads may still hold tensors: at interpreter shutdown that can abort the process.
    accelerator.end_training()
