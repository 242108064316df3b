"""Codes trained between an encoder and a decoder that exist, and networks that stay as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import AutoModel

from hq_tokenizers import HQVAEModel
from hq_tokenizers.cli import main
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import AdversarialConfig, TokenizerTrainingConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.checkpoints import list_checkpoints
from hq_tokenizers.training.tokenizer import train_tokenizer
from hq_tokenizers.training.tokenizer_setup import check_model, load_splits

SMALL: dict[str, Any] = {
    **{"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 3},
    **{"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 8},
}
GROUPS = ["stride 2: 16 x 4"]
BOTH = ["encoder", "decoder"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder")
    AutoencoderKL(**SMALL).save_pretrained(folder)
    return folder


def options(folder: Path, model: dict[str, Any], **others: Any) -> TokenizerTrainingConfig:
    data = DataConfig(train_split="train[:100]", validation_split="test[:40]")
    defaults: dict[str, Any] = {"batch_size": 20, "epochs": 2, "log_steps": 5, "freeze": BOTH, "schedule": "constant"}
    return TokenizerTrainingConfig(output_dir=str(folder), data=data, model=dict(model), **{**defaults, **others})


def networks(model: Any) -> dict[str, torch.Tensor]:
    parts = [(name, module) for name, modules in model._parts().items() for module in modules]
    return {
        f"{part} {index} {name}": tensor
        for index, (part, module) in enumerate(parts)
        for name, tensor in module.state_dict().items()
    }


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("given", [{}, {"codebook_update": "gradient", "restart_threshold": 0, "ema_warmup": False}])
def test_codes_alone_are_trained_and_continued_to_the_bit(autoencoder: Path, tmp_path: Path, given: dict) -> None:
    """With codes that follow averages, nothing has a gradient at all."""
    model = {"from_autoencoder": str(autoencoder), "code_groups": GROUPS, **given}
    train_tokenizer(options(tmp_path / "whole", model, epochs=4, ema_decay=0.9))
    train_tokenizer(options(tmp_path / "parts", model, ema_decay=0.9))
    train_tokenizer(options(tmp_path / "parts", model, epochs=4, ema_decay=0.9))
    checkpoints = [list_checkpoints(tmp_path / name)[-1] for name in ("whole", "parts")]
    for file in sorted(path.name for path in checkpoints[0].glob("*.safetensors")):
        assert_same(*(load_file(checkpoint / file) for checkpoint in checkpoints))
    trained = AutoModel.from_pretrained(tmp_path / "parts")
    fresh = HQVAEModel.from_autoencoder(autoencoder)
    assert_same(networks(trained), networks(fresh))
    assert bool(load_file(checkpoints[0] / "optimizer.safetensors")) == bool(given)
    if not given:
        *_, last = [record for record in read_history(tmp_path / "whole") if record["split"] == "validation"]
        assert last["residual_energy"] == sorted(last["residual_energy"], reverse=True)
        assert last["residual_energy"][-1] < 0.3 * last["latent_energy"][0]


def test_another_autoencoder_does_not_continue_a_run(autoencoder: Path, tmp_path: Path) -> None:
    model = {"from_autoencoder": str(autoencoder), "code_groups": GROUPS}
    train_tokenizer(options(tmp_path / "run", model, max_steps=2))
    moved = tmp_path / "moved"
    moved.symlink_to(autoencoder)
    train_tokenizer(options(tmp_path / "run", {**model, "from_autoencoder": str(moved)}, max_steps=3))
    torch.manual_seed(1)
    AutoencoderKL(**SMALL).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="autoencoder_sha256 was"):
        train_tokenizer(options(tmp_path / "run", {**model, "from_autoencoder": str(tmp_path / "other")}, max_steps=4))
    with pytest.raises(ValueError, match="freeze was"):
        train_tokenizer(options(tmp_path / "run", model, max_steps=4, freeze=["encoder"]))


@pytest.mark.parametrize("model_type", ["sq_vae", "hq_vae"])
def test_a_frozen_encoder_of_the_papers_networks(tmp_path: Path, model_type: str) -> None:
    """Also its batch norms, of which nothing is a parameter."""
    preset = {"sq_vae": "sq_vae", "hq_vae": "rsq_vae"}[model_type]
    model = {"preset": preset, "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
    for steps in (1, 4):
        train_tokenizer(options(tmp_path / str(steps), model, freeze=["encoder"], max_steps=steps))
    one, four = (networks(AutoModel.from_pretrained(tmp_path / name)) for name in ("1", "4"))
    changed = {name.split()[0] for name in one if not torch.equal(one[name], four[name])}
    assert changed == {"decoder"}


def test_finer_groups_learn_between_frozen_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    three = {name: (*SMALL[name], SMALL[name][0]) for name in ("down_block_types", "up_block_types")}
    AutoencoderKL(**{**SMALL, **three, "block_out_channels": (8, 8, 16)}).save_pretrained(tmp_path / "three")
    groups = ["stride 4: 16", "stride 2: 16"]
    model = {"from_autoencoder": str(tmp_path / "three"), "code_groups": groups, "kl_weight": 0.05}
    train_tokenizer(options(tmp_path / "run", model, epochs=6, learning_rate=3e-3))
    trained = AutoModel.from_pretrained(tmp_path / "run")
    assert_same(networks(trained), networks(HQVAEModel.from_autoencoder(tmp_path / "three", code_groups=groups)))
    assert trained.blocks[1].state.weight[:, -3:].abs().max() > 0


def test_one_code_per_position_by_the_command(autoencoder: Path, tmp_path: Path) -> None:
    words = ["--model", f"{{from_autoencoder: {autoencoder}, model_type: sq_vae, codebook_size: 16}}"]
    words += ["--freeze", "[encoder, decoder]", "--max_steps", "2", "--output_dir", str(tmp_path)]
    main(["train-tokenizer", *words, "--data.train_split", "train[:40]", "--data.validation_split", "test[:20]"])
    assert AutoModel.from_pretrained(tmp_path).config.model_type == "sq_vae"


def test_help_explains_the_fields_that_are_left(autoencoder: Path, capsys: pytest.CaptureFixture) -> None:
    main(["train-tokenizer", "--model.from_autoencoder", str(autoencoder), "--help", "model"])
    text = capsys.readouterr().out
    assert "--model.code_groups (default: ['stride 2: 512 x 4'])" in text
    assert "--model.block_out_channels" not in text


def test_a_dry_run_counts_what_is_trained(autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = {"from_autoencoder": str(autoencoder), "code_groups": GROUPS}
    found = train_tokenizer(options(tmp_path, model, dry_run=True, max_steps=3))
    assert found["gradients"] == 0
    assert train_tokenizer(options(tmp_path, model, dry_run=True, freeze=["decoder"]))["gradients"] > 0


@pytest.mark.parametrize(
    ("model", "others", "message"),
    [
        ({"preset": "rsq_vae"}, {}, "model has a preset and from_autoencoder"),
        ({"model_type": "vae"}, {}, "model.model_type 'vae' is unknown"),
        ({"codebok": 3}, {}, "Unknown option 'model.codebok'"),
        ({"recipe": "own"}, {}, "model.recipe must be one of"),
        ({"from_autoencoder": "no/where/at/all"}, {}, "model.from_autoencoder 'no/where/at/all'"),
        ({"from_autoencoder": "nowhere"}, {}, "model.from_autoencoder 'nowhere': .* as in owner/name"),
        ({"code_groups": ["stride 8: 8"]}, {}, "have stride 2"),
    ],
)
def test_what_does_not_fit_is_said_before_the_run(
    autoencoder: Path, tmp_path: Path, model: dict, others: dict, message: str
) -> None:
    config = options(tmp_path, {"from_autoencoder": str(autoencoder), "code_groups": GROUPS, **model}, **others)
    train, _, _ = load_splits(config)
    with pytest.raises(ValueError, match=message):
        check_model(config, train)


def test_a_discriminator_needs_a_decoder_that_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="freeze"):
        options(tmp_path, {}, adversarial=AdversarialConfig(start_step=3))


@pytest.mark.slow
def test_every_level_takes_its_part_of_the_error_of_photographs(tmp_path: Path) -> None:
    """RSQ-VAE, L = 4, for 200 steps in an autoencoder that was trained for a few hundred."""
    files = os.environ.get("HQ_TEST_DATA")
    if not files:
        pytest.skip("HQ_TEST_DATA names no folder with cifar10-train-00000-of-00002.parquet")
    parquet = Path(files) / "cifar10-train-00000-of-00002.parquet"
    torch.manual_seed(0)
    images = load_dataset("parquet", data_files=str(parquet), split="train[:1600]").with_format("torch")["image"][:]
    pixels = torch.stack(list(images)).float() / 255
    wide = {**SMALL, "in_channels": 3, "out_channels": 3, "sample_size": 32, "latent_channels": 4}
    model = AutoencoderKL(**wide, mid_block_add_attention=False)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(150):
        batch = 2 * pixels[torch.randint(len(pixels), (16,))] - 1
        loss = (model.decode(model.encode(batch).latent_dist.mode()).sample - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "autoencoder")
    data = DataConfig(
        name="parquet",
        path=str(Path(files)),
        files={"train": parquet.name},
        train_split="train[:1600]",
        validation_split="train[1600:1800]",
    )
    report = train_tokenizer(
        TokenizerTrainingConfig(
            output_dir=str(tmp_path / "run"),
            data=data,
            model={"from_autoencoder": str(tmp_path / "autoencoder"), "code_groups": ["stride 2: 64 x 4"]},
            freeze=BOTH,
            batch_size=16,
            max_steps=200,
        )
    )
    trained = AutoModel.from_pretrained(tmp_path / "run")
    held_out = load_dataset("parquet", data_files=str(parquet), split="train[1600:1800]").with_format("torch")["image"]
    pixels = torch.stack(list(held_out[:])).float() / 255
    codes = trained.encode(pixels)
    errors = [(trained.decode(codes, levels) - pixels).square().mean().item() for levels in range(1, 5)]
    bypassed = (trained.autoencode(pixels) - pixels).square().mean().item()
    assert errors == sorted(errors, reverse=True)
    # All that the codes can take away is what they add to the autoencoder's own error.
    assert errors[-1] - bypassed < 0.5 * (errors[0] - bypassed)
    assert report["test"]["mse"] == pytest.approx(errors[-1], rel=1e-3)
