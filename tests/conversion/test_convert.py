from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from transformers import AutoImageProcessor, AutoModel

from hq_tokenizers.cli import main

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SIZES = {
    **{"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
    **{"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32},
}


@pytest.fixture(scope="module")
def vq_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VQModel]:
    torch.manual_seed(0)
    model = VQModel(**SIZES, vq_embed_dim=5, num_vq_embeddings=12).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.3)
    folder = tmp_path_factory.mktemp("vq")
    model.save_pretrained(folder)
    return folder, model


def convert(*words: str) -> None:
    main(["convert", *words])


def test_a_vq_model_of_diffusers(vq_model: tuple[Path, VQModel], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, theirs = vq_model
    convert("--format", "diffusers", "--checkpoint", str(folder), "--output_dir", str(tmp_path))
    said = capsys.readouterr().out
    assert "16×16×1 of 12" in said
    model = AutoModel.from_pretrained(tmp_path)
    assert f"{model.num_parameters():,} parameters" in said
    with torch.no_grad():
        latents = theirs.encode(2 * PIXELS - 1).latents
        _, _, (_, _, indices) = theirs.quantize(latents)
        expected = (theirs.decode(latents).sample + 1) / 2
    codes = model.encode(PIXELS)
    assert torch.equal(codes.groups[0].flatten(), indices.flatten())
    assert len(indices.unique()) > 5
    torch.testing.assert_close(model.decode(codes), expected, rtol=0, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.size.height, processor.num_channels) == (32, 3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["options"]["format"], report["bits_per_image"]) == (
        "diffusers",
        pytest.approx(256 * 3.584962500721156),
    )


def test_what_is_wrong_is_said(vq_model: tuple[Path, VQModel], tmp_path: Path) -> None:
    folder, _ = vq_model
    AutoencoderKL(**SIZES).save_pretrained(tmp_path / "kl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    ours = ("--format", "diffusers", "--checkpoint", str(folder))
    sqvae = ("--format", "sqvae", "--checkpoint", "best.pt", "--output_dir", str(tmp_path / "new"))
    for words, message in (
        (("--checkpoint", "x"), "convert needs format, one of taming_vqgan"),
        (("--format", "taming_vqgan"), "and checkpoint"),
        (("--format", "diffusers", "--checkpoint", "user/model"), "no folder 'user/model'"),
        (("--format", "vqgan", "--checkpoint", "x"), "taming_vqgan"),
        ((*ours, "--output_dir", str(tmp_path / "full")), "holds a model already"),
        ((*sqvae, "--config", str(tmp_path / "bad.yaml")), "neither YAML nor JSON"),
        ((*sqvae, "--config", str(tmp_path / "list.yaml")), "must hold names and values"),
        ((*sqvae, "--config", str(tmp_path / "none.yaml")), "no file of settings"),
        (sqvae, "config is needed"),
        (
            ("--format", "diffusers", "--checkpoint", str(tmp_path / "kl"), "--output_dir", str(tmp_path / "new")),
            "holds AutoencoderKL, and a VQModel is needed",
        ),
        (
            ("--format", "llamagen", "--checkpoint", str(tmp_path / "no.pt"), "--output_dir", str(tmp_path / "new")),
            "There is no checkpoint",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            convert(*words)
    assert not (tmp_path / "new").exists()
