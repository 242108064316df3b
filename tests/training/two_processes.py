"""Run by torchrun: trains, resumes, evaluates and encodes in two processes, and writes what each process has."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.validation import evaluate_tokenizer
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import AdversarialConfig, EncodeConfig, TokenizerTrainingConfig
from hq_tokenizers.processes import create_accelerator, main_process_does
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.residual_variance import ResidualVariance, level_moments
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.training.encoding import _Encoder, encode_images
from hq_tokenizers.training.loop import TrainingLoop
from hq_tokenizers.training.tokenizer import train_tokenizer

MODEL = {
    "preset": "sq_vae",
    "network": "digits",
    "hidden_size": 8,
    "codebook_dim": 4,
    "codebook_size": 8,
    "bottleneck_gradient": "straight_through",
    "codebook_update": "ema",
    "restart_threshold": 0.5,
    "variance_update": "residual",
}


SIZES = {name: MODEL[name] for name in ("network", "hidden_size", "codebook_dim", "codebook_size")}
LEVELS = {"preset": "rsq_vae", "num_levels": 2, **SIZES}
DIRECTIONS = {"preset": "sq_vae", "quantizer": "vmf", **SIZES}


def step_of_averages(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (32, 3), what is left over of them, and codes of 5, one of which nobody uses."""
    generator = torch.Generator().manual_seed(step)
    latents, left = torch.randn(2, 32, 3, generator=generator)
    return latents, left, torch.randint(0, 4, (32,), generator=generator)


def follow_averages(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Three steps of which this process sees its part."""
    averages, variance = MovingAverages(5, 3, decay=0.8, restart_threshold=0.0), ResidualVariance(1, factor=0.3)
    averages.start(torch.ones(5, 3))
    codes = averages.total
    for step in range(3):
        latents, left, indices = (rows[rank::processes] for rows in step_of_averages(step))
        averages.observe(latents, indices)
        codes = averages.end_of_part()
        variance.observe(level_moments(latents, left).unsqueeze(0))
    return {"codes": codes, **averages.state_dict(), **variance.state_dict()}


def encode_with_interruption(folder: Path, data: DataConfig) -> None:
    """Leaves a first part of two processes, of 32 rows, twice; goes on with one of them."""
    config = EncodeConfig(
        tokenizer=str(folder / "parts"),
        output_dir=str(folder / "interrupted"),
        batch_size=1,
        soft_targets=3,
        views=2,
        data=replace(data, horizontal_flip=True),
    )
    encode_batch = _Encoder._encode_batch
    done = []

    def interrupted(encoder, *arguments):
        done.append(arguments)
        if len(done) == 20:
            raise KeyboardInterrupt
        return encode_batch(encoder, *arguments)

    _Encoder._encode_batch = interrupted
    try:
        encode_images(config)
    except KeyboardInterrupt:
        _Encoder._encode_batch = encode_batch
    main_process_does(lambda: shutil.copytree(folder / "interrupted", folder / "left") and None)
    encode_images(replace(config, output_dir=str(folder / "interrupted")))


def main(folder: Path) -> None:
    accelerator = create_accelerator()
    models = []
    run = TrainingLoop.run

    def run_and_keep(loop):
        models.append(run(loop))
        return models[-1]

    TrainingLoop.run = run_and_keep
    data = DataConfig(train_split="train[:64]")

    def train(name, steps, model=MODEL):
        options = {"max_steps": steps, "ema_decay": 0.5, "gradient_accumulation": 2, "checkpoint_steps": 2}
        if name.startswith("against"):
            adversarial = AdversarialConfig(start_step=3, discriminator_warmup_steps=2, num_layers=1, hidden_size=4)
            options |= {"adversarial": adversarial, "schedule": "constant"}
        return train_tokenizer(
            TokenizerTrainingConfig(output_dir=str(folder / name), batch_size=16, model=model, data=data, **options)
        )

    train("whole", 6)
    train("parts", 3)
    report = train("parts", 6)
    rank = accelerator.process_index
    train("against_whole", 6)
    train("against_parts", 3)
    train("against_parts", 6)
    train("levels", 3, LEVELS)
    train("directions", 3, DIRECTIONS)
    names = ("whole", "first", "parts", "against_whole", "against_first", "against_parts", "levels", "directions")
    for name, model in zip(names, models, strict=True):
        save_file(model.state_dict(), folder / f"{name}-{rank}.safetensors")
    save_file(follow_averages(rank, accelerator.num_processes), folder / f"averages-{rank}.safetensors")
    (held_out,) = load_image_splits(DataConfig(), "validation_split")
    figures = evaluate_tokenizer(models[2], held_out, 16, accelerator)
    (folder / f"figures-{rank}.json").write_text(json.dumps([accelerator.num_processes, figures, report["test"]]))
    try:
        with lock_folder("output_dir", folder / "held"):
            train("held", 1)
    except BlockingIOError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))
    encode_images(
        EncodeConfig(
            tokenizer=str(folder / "parts"),
            output_dir=str(folder / "codes"),
            batch_size=20,
            soft_targets=3,
            data=data,
        )
    )
    encode_with_interruption(folder, data)
    # Gloo's threads may still hold tensors: at interpreter shutdown that can abort the process.
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
