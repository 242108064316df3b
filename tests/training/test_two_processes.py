"""What torchrun starts on a machine without a GPU: two processes, gloo."""

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
from safetensors.torch import load_file

from hq_tokenizers import SQVAEModel
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.validation import evaluate_tokenizer
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.training.encoding import encode_images

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    root = str(SCRIPT.parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_weights_and_statistics_are_equal_in_both_processes(folder):
    for name in ("whole", "first", "parts", "against_whole", "against_parts", "levels", "directions"):
        mine, theirs = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


def test_averages_of_two_processes_are_those_of_all_they_saw(folder):
    """Against the formulas in float64: a code without vectors counts less, and stays."""
    count, total, energy, spread = np.ones(5), np.ones((5, 3)), 1.0, 0.0
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        latents, left = torch.randn(2, 32, 3, generator=generator).double().numpy()
        codes = torch.randint(0, 4, (32,), generator=generator).numpy()
        members = np.eye(5)[codes]
        count = 0.8 * count + 0.2 * members.sum(0)
        total = 0.8 * total + 0.2 * members.T @ latents
        decay = min(0.99, (1 + step) / (10 + step))
        energy = decay * energy + (1 - decay) * np.square(left).mean()
        spread = decay * spread + (1 - decay) * latents.var(axis=0).mean()
    for rank in (0, 1):
        found = load_file(folder / f"averages-{rank}.safetensors")
        np.testing.assert_allclose(found["codes"], total / count[:, None], rtol=1e-4)
        np.testing.assert_allclose(found["energy"], [energy], rtol=1e-5)
        np.testing.assert_allclose(found["spread"], [spread], rtol=1e-5)
        assert int(found["step"]) == 3


def test_a_resumed_adversarial_run_is_bit_equal(folder):
    checkpoints = [folder / name / "checkpoints" / "step-00000006" for name in ("against_whole", "against_parts")]
    for file in sorted(path.name for path in checkpoints[0].glob("*.safetensors")):
        whole, parts = (load_file(checkpoint / file) for checkpoint in checkpoints)
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == [], file
    assert (checkpoints[0] / "discriminator.safetensors").is_file()


@pytest.mark.parametrize("prefix", ["", "against_"])
def test_a_resumed_run_is_bit_equal(folder, prefix):
    names = [f"{prefix}{name}-0.safetensors" for name in ("whole", "first", "parts")]
    whole, first, parts = (load_file(folder / name) for name in names)
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    assert any(not torch.equal(whole[key], first[key]) for key in whole)


def test_a_folder_in_use_is_refused_by_both_processes(folder):
    messages = {(folder / f"refused-{rank}.txt").read_text() for rank in (0, 1)}
    (message,) = messages
    assert f"output_dir '{folder}/held' is in use" in message
    assert not (folder / "held").exists()


def test_evaluation_counts_every_image_once(folder):
    (held_out,) = load_image_splits(DataConfig(), "validation_split")
    model = SQVAEModel.from_pretrained(folder / "parts").eval()
    alone = evaluate_tokenizer(model, held_out, 16, create_accelerator())
    for rank in (0, 1):
        num_processes, figures, in_training = json.loads((folder / f"figures-{rank}.json").read_text())
        assert num_processes == 2
        assert figures["num_images"] == 297
        for name, value in alone.items():
            assert figures[name] == pytest.approx(value, rel=1e-6), name
            assert in_training[name] == figures[name]


def test_encoding_keeps_the_order(folder):
    encoded = EncodedImages.load(folder / "codes")
    model = SQVAEModel.from_pretrained(folder / "parts").eval()
    for split, name in (("train_split", "train"), ("validation_split", "validation")):
        (rows,) = load_image_splits(DataConfig(train_split="train[:64]"), split)
        (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
        assert torch.equal(encoded.splits[name].codes.long(), model.encode(batch["pixel_values"]).flatten())
        assert torch.equal(encoded.splits[name].labels, batch["labels"])
    assert encoded.splits["validation"].soft is None


def test_an_interrupted_encoding_goes_on_with_any_number_of_processes(folder):
    """Those of two processes, continued by two and by one, are those of one that was left alone."""
    assert [path.name for path in sorted((folder / "left" / ".parts").glob("*.arrow"))] == [
        "train-00000-0000000000-0000000032.arrow"
    ]
    config = EncodeConfig(
        tokenizer=str(folder / "parts"),
        output_dir=str(folder / "alone"),
        batch_size=1,
        soft_targets=3,
        views=2,
        data=DataConfig(train_split="train[:64]", horizontal_flip=True),
    )
    encode_images(config)
    encode_images(replace(config, output_dir=str(folder / "left")))
    alone, *others = (EncodedImages.load(folder / name) for name in ("alone", "interrupted", "left"))
    assert len(alone.splits["train"]) == 128
    for other in others:
        assert {name: rows.sha256() for name, rows in other.splits.items()} == {
            name: rows.sha256() for name, rows in alone.splits.items()
        }


def test_soft_targets_keep_the_order(folder):
    soft = EncodedImages.load(folder / "codes").splits["train"].soft
    model = SQVAEModel.from_pretrained(folder / "parts").eval()
    (rows,) = load_image_splits(DataConfig(train_split="train[:64]"), "train_split")
    (batch,) = rows.batches([torch.arange(64)], torch.device("cpu"))
    (log_posterior,) = model.posterior(batch["pixel_values"])
    kept = log_posterior.flatten(1, 2).topk(3)
    expected = kept.values.exp() / kept.values.exp().sum(-1, keepdim=True)
    assert torch.equal(soft.codes.long(), kept.indices)
    torch.testing.assert_close(soft.probabilities.float(), expected, rtol=2e-3, atol=1e-4)
