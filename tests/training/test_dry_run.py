"""What a run would take: against closed forms and the models themselves; and of every large recipe, scaled down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from hq_tokenizers.cli import main
from hq_tokenizers.cli.commands import COMMANDS
from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.options.reading import load_options
from hq_tokenizers.training import dry_run as module
from hq_tokenizers.training.dry_run import smaller_run
from hq_tokenizers.training.model_options import PRIOR_CONFIGS, build_model_config, build_tokenizer_config
from hq_tokenizers.training.peak_memory import PeakMemory
from hq_tokenizers.training.prior import train_prior_and_save_generator
from hq_tokenizers.training.tokenizer import train_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Networks and images that a test has time for: of every recipe all else is as it is.
SMALL_NETWORK = ["--data.image_size", "64", "--model.norm_num_groups", "8", "--model.codebook_dim", "16"]
SMALL_PRIOR = ["--model.hidden_size", "64", "--model.num_hidden_layers", "2", "--model.num_attention_heads", "4"]
SCALED = {
    "celeba64_sq_vae": [],
    "celeba64_prior": SMALL_PRIOR,
    "celebahq256_rsq_vae": [*SMALL_NETWORK, "--model.block_out_channels", "[8, 8, 16, 16, 16, 16]"],
    "celebahq256_prior": SMALL_PRIOR,
    "ffhq256_rsq_vae": [*SMALL_NETWORK, "--model.block_out_channels", "[8, 8, 16, 16, 16, 16]"],
    "ffhq256_prior": SMALL_PRIOR,
    "imagenet256_sq_vae_2": [*SMALL_NETWORK, "--model.block_out_channels", "[8, 8, 16, 16, 16]"],
    "imagenet256_prior": SMALL_PRIOR,
    "urbansound8k_rsq_vae": ["--data.sound.segment_frames", "16", "--model.hidden_size", "8"],
    "vctk_sq_vae": ["--model.num_speakers", "110", "--model.hidden_size", "16"],
}


@pytest.fixture(autouse=True)
def _one_image_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_VALUES_AT_A_TIME", 1)
    monkeypatch.chdir(tmp_path)


def options(command: str, source: Path | None, *words: str) -> Any:
    return load_options(COMMANDS[command].options, source, ["--dry_run", "true", *words])


def run(stem: str, *words: str) -> dict[str, Any]:
    if stem.endswith("_prior"):
        return train_prior_and_save_generator(options("train-prior", EXAMPLES / f"{stem}.yaml", *words))
    words = (*words, "--data.path", "/nowhere")
    return train_tokenizer(options("train-tokenizer", EXAMPLES / f"{stem}.yaml", *words))


def test_the_most_memory_at_a_time_of_a_chain() -> None:
    model = nn.ParameterList([nn.Parameter(torch.rand(1000))])

    def loss() -> torch.Tensor:
        return model[0].exp().exp().sum()

    for _ in range(2):  # with and without a gradient from before
        with PeakMemory(model, []) as memory:
            loss().backward()
        # Forward both results of exp; then the gradient of the inner one beside it, and that of the parameter.
        assert 3 * 4000 <= memory.peak <= 3 * 4000 + 64
        assert memory._now <= 64


def test_what_is_there_and_what_is_freed_do_not_count() -> None:
    known = torch.rand(1000)
    with PeakMemory(nn.Module(), [known]) as memory:
        for _ in range(5):
            known.mul_(2).view(10, 100).t()
            (known + 1).sum()
    assert 4000 <= memory.peak <= 4000 + 64


@pytest.mark.parametrize(
    ("batch_size", "parts", "pixels", "images"), [(128, 8, 256**2, 2), (128, 1, 32**2, 128), (4, 2, 8, 2), (2, 2, 8, 1)]
)
def test_a_measured_step_is_a_part_of_a_batch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, parts: int, pixels: int, images: int
) -> None:
    monkeypatch.undo()
    config = options("train-tokenizer", None, "--batch_size", str(batch_size), "--gradient_accumulation", str(parts))
    smaller = smaller_run(config, pixels)
    assert (smaller.batch_size, smaller.gradient_accumulation) == (images, 1)


DEBUG = ["--model", "{preset: sq_vae_2, network: debug, progressive: true}", "--data.name", "parquet"]


def test_sizes_and_sums(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*DEBUG, "--data.path", "/nowhere", "--max_steps", "7", "--ema_decay", "0.9", "--batch_size", "8"]
    found = train_tokenizer(options("train-tokenizer", None, *words))
    model = AutoModel.from_config(
        build_tokenizer_config({"preset": "sq_vae_2", "network": "debug", "progressive": True}, {})
    )
    parameters = sum(p.numel() for p in model.parameters())
    assert found["num_parameters"] == parameters
    assert found["gradients"] == 4 * parameters
    assert found["optimizer"] == 8 * parameters
    assert (
        found["weights"]
        == found["moving_average"]
        == sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    )
    assert found["seconds"] == pytest.approx(7 * found["seconds_per_step"])
    assert found["images_measured"] == 2
    # The activations of the last convolutions alone: eight images of 64×64 pixels and 16 channels.
    assert found["activations"] > 8 * 64 * 64 * 16 * 4 * 5
    printed = capsys.readouterr().out
    named = ["sq_vae_2", "debug", "64×64×3 (data.image_size", str(model.code_layout())]
    for text in (*named, f"{parameters:,}", "moving average", "activations of 8 images", "steps", "2 made-up images"):
        assert text in printed
    assert "without compile" not in printed
    assert list(tmp_path.iterdir()) == []


def test_activations_are_in_proportion_to_images_and_less_with_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*DEBUG, "--data.path", "/nowhere", "--batch_size", "8"]
    of_two = train_tokenizer(options("train-tokenizer", None, *words))
    less = train_tokenizer(options("train-tokenizer", None, *words, "--gradient_checkpointing", "true"))
    monkeypatch.setattr(module, "_VALUES_AT_A_TIME", 4 * 64 * 64)
    of_four = train_tokenizer(options("train-tokenizer", None, *words))
    assert of_four["images_measured"] == 4
    assert of_four["activations"] == pytest.approx(of_two["activations"], rel=0.1)
    assert less["activations"] < 0.6 * of_two["activations"]
    assert of_two["steps"] is of_two["seconds"] is None


def test_without_a_number_of_steps_the_time_of_a_million_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *_: (1000.0, 0.036))
    words = [*DEBUG, "--data.path", "/nowhere", "--batch_size", "8"]
    train_tokenizer(options("train-tokenizer", None, *words))
    # 36 ms for the two images of a measured step.
    assert re.search(r"a million images, on this cpu +│ +5 hours", capsys.readouterr().out)


def test_a_model_that_does_not_fit_is_not_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "machine_memory", lambda: 2**20)
    found = train_tokenizer(options("train-tokenizer", None, *DEBUG, "--data.path", "/nowhere"))
    assert found["seconds_per_step"] is found["activations"] is None
    printed = capsys.readouterr().out
    assert "do not fit into this machine's 1 MiB" in printed
    assert "a million" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compile", "true"], "Measured without compile"),
        (["--mixed_precision", "bf16"], "Warning: this processor has no instructions for mixed_precision bf16"),
    ],
)
def test_what_the_figures_leave_out_is_said(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *_: (1000.0, 0.036))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    train_tokenizer(options("train-tokenizer", None, *DEBUG, "--data.path", "/nowhere"))
    assert said not in capsys.readouterr().out
    train_tokenizer(options("train-tokenizer", None, *DEBUG, "--data.path", "/nowhere", *words))
    assert said in capsys.readouterr().out


def test_label_maps_and_the_embedded_digits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.label_map_classes", "3", "--data.image_size", "16", "--data.name", "some/maps"]
    model = "{preset: sq_vae, network: celebamask, hidden_size: 8, codebook_dim: 8}"
    assert train_tokenizer(options("train-tokenizer", None, *words, "--model", model))["images_measured"] == 2
    assert "16×16 (data.image_size" in capsys.readouterr().out
    assert train_tokenizer(options("train-tokenizer", None, "--model.network", "digits", "--model.preset", "vq_vae"))
    printed = capsys.readouterr().out
    assert "8×8×1" in printed
    assert "data.image_size" not in printed


SOUND = [
    "--model",
    "{preset: rsq_vae, network: speech, hidden_size: 16}",
    "--data.name",
    "parquet",
    "--data.path",
    "/nowhere",
]


def test_sounds_and_their_speakers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*SOUND, "--data.sound.segment_frames", "32", "--batch_size", "6"]
    found = train_tokenizer(options("train-tokenizer", None, *words))
    assert found["images_measured"] == 2
    printed = capsys.readouterr().out
    assert "activations of 6 sounds" in printed
    assert "speech" in printed
    spoken = [*words, "--data.sound.speaker_column", "who"]
    one = train_tokenizer(options("train-tokenizer", None, *spoken))["num_parameters"]
    three = train_tokenizer(options("train-tokenizer", None, *spoken, "--model.num_speakers", "3"))["num_parameters"]
    width = HQVAEConfig().speaker_dim
    assert three - one == 2 * width
    assert list(tmp_path.iterdir()) == []


def test_sounds_need_a_length() -> None:
    with pytest.raises(ValueError, match=r"set data\.sound\.segment_frames"):
        train_tokenizer(options("train-tokenizer", None, *SOUND))


def test_the_layout_of_codes_has_to_come_from_somewhere() -> None:
    with pytest.raises(ValueError, match=r"'runs/codes' holds none: give model\.code_layout, such as '8x8x4 of 512'"):
        train_prior_and_save_generator(options("train-prior", None))
    layout = "{groups: [{height: 2, width: 2, codebook_sizes: [8]}]}"
    words = ["--model.code_layout", layout, "--model.input_embeddings", "code_vectors"]
    with pytest.raises(ValueError, match=r"reads no tokenizer: give model\.code_vector_dim"):
        train_prior_and_save_generator(options("train-prior", None, *words))


def test_codes_that_exist_decide_their_layout(tmp_path: Path) -> None:
    """What training on them would refuse, a dry run refuses, too; classes without names are those of the options."""
    layout = CodeLayout((CodeGroup(2, 2, (8,)),))
    rows = CodeRows(torch.zeros(4, 4, dtype=torch.int32), torch.tensor([0, 1, 2, 0]))
    EncodedImages(layout, {"train": rows, "validation": rows}, "nowhere", "-").save(tmp_path / "codes")
    words = [*SMALL_PRIOR, "--codes", "codes", "--model.num_classes", "3", "--model.code_layout"]
    with pytest.raises(ValueError, match=r"code_layout is 4×4×1 of 8, but the codes in .* have the layout 2×2×1"):
        train_prior_and_save_generator(
            options("train-prior", None, *words, "{groups: [{height: 4, width: 4, codebook_sizes: [8]}]}")
        )
    for same in ("{groups: [{height: 2, width: 2, codebook_sizes: [8]}]}", "2x2 of 8"):
        found = train_prior_and_save_generator(options("train-prior", None, *words, same))
        assert found["seconds_per_step"] > 0


ROBUST = ["--model", "{preset: robust_vq_vae, network: debug}", "--data.name", "parquet", "--data.path", "/nowhere"]


def test_epochs_without_quantisation_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(options("train-tokenizer", None, *ROBUST, "--model.warmup_epochs", "3"))
    assert re.search(r"epochs before quantisation[│\s]+3\b", capsys.readouterr().out)
    train_tokenizer(options("train-tokenizer", None, *DEBUG, "--data.path", "/nowhere"))
    assert "before quantisation" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "2"], "epochs is 2, but the model quantises nothing in its first 2 epochs"),
        (["--data.streaming", "true", "--max_steps", "100"], "which a stream does not have: set both to 0"),
    ],
)
def test_runs_in_which_codebooks_are_never_estimated(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(options("train-tokenizer", None, *ROBUST, *words))


def test_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*SMALL_PRIOR, "--model.code_layout", "2x2x2 of 8", "--model.num_classes", "3", "--max_steps", "10"]
    main(["train-prior", "--dry_run", "true", *words])
    printed = capsys.readouterr().out
    assert "dry run: RQPriorModel" in printed
    assert "2×2×2 of 8 (24 bits)" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stem", SCALED)
def test_recipes(stem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With a smaller network, of smaller images: the full ones take gigabytes and minutes."""
    found = run(stem, *SCALED[stem])
    assert found["seconds"] > 0
    assert "dry run: " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def tokenizer_of_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its model section, and what its data decide."""
    recipe = options("train-tokenizer", path, "--data.path", "/nowhere")
    data = recipe.data
    if data.sound.segment_frames is None:
        return recipe.model, {"image_size": data.image_size, "num_channels": data.num_channels}
    return recipe.model, {} if data.sound.speaker_column is None else {"num_speakers": 110}


@pytest.mark.parametrize("stem", SCALED)
def test_recipes_say_how_many_parameters_they_have(stem: str) -> None:
    path = EXAMPLES / f"{stem}.yaml"
    if stem.endswith("_prior"):
        config = build_model_config(options("train-prior", path).model, {}, PRIOR_CONFIGS)
    else:
        config = build_tokenizer_config(*tokenizer_of_recipe(path))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    (said,) = re.findall(r"Expected: ([\d,]+) parameters", path.read_text())
    assert int(said.replace(",", "")) == parameters
