"""Codes of ours between the encoder and the decoder of an autoencoder that exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import save_file
from transformers import AutoModel

from hq_tokenizers import HQVAEConfig, HQVAEModel, SQVAEConfig, SQVAEModel
from hq_tokenizers.hub.export import export_self_contained
from hq_tokenizers.models.autoencoder_sources import read_autoencoder

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
PIXELS = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))
KL: dict[str, dict[str, Any]] = {
    "as in Stable Diffusion": {},
    "without 1×1 convolutions": {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1},
    "with the second only": {"use_quant_conv": False},
    "with the first only": {"use_post_quant_conv": False, "mid_block_add_attention": False},
    "attention at stride 2": {
        "down_block_types": (DOWN, f"Attn{DOWN}", DOWN),
        "up_block_types": (UP, f"Attn{UP}", UP),
    },
}
FINER = ["stride 4: 16 x 2", "stride 2: 8"]


def perturbed(model: Any) -> Any:
    """No bias or norm at the value that it starts from, where a mistake would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model.eval()


def fields(**others: Any) -> dict[str, Any]:
    return {
        **{"down_block_types": (DOWN,) * 3, "up_block_types": (UP,) * 3, "block_out_channels": (8, 12, 16)},
        **{"layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32, **others},
    }


def autoencoder_kl(**others: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return perturbed(AutoencoderKL(**fields(**others)))


def vq_model(**others: Any) -> VQModel:
    torch.manual_seed(0)
    return perturbed(VQModel(**fields(vq_embed_dim=6, num_vq_embeddings=24, **others)))


@torch.no_grad()
def reconstructions(model: Any) -> torch.Tensor:
    """What the autoencoder makes of the images, in [0, 1], with the mean of its latents and without its quantiser."""
    if isinstance(model, VQModel):
        decoded = model.decode(model.encode(2 * PIXELS - 1).latents, force_not_quantize=True).sample
    else:
        decoded = model.decode(model.encode(2 * PIXELS - 1).latent_dist.mode()).sample
    return (decoded + 1) / 2


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KL)
def test_without_codes_it_is_the_autoencoder(kind: str) -> None:
    theirs = autoencoder_kl(**KL[kind])
    expected = reconstructions(theirs)
    assert expected.min() < 0 < 1 < expected.max()  # which a sigmoid could not give
    assert_equal(HQVAEModel.from_autoencoder(theirs).autoencode(PIXELS), expected)
    assert_equal(SQVAEModel.from_autoencoder(theirs, variance_type="IV").autoencode(PIXELS), expected)


@pytest.mark.parametrize("model_class", [HQVAEModel, SQVAEModel])
@pytest.mark.parametrize("given", [{}, {"recipe": "paper"}, {"quantizer": "vq"}, {"normalize_latents": False}])
def test_without_codes_it_is_the_vq_model(model_class: Any, given: dict[str, Any]) -> None:
    theirs = vq_model()
    model = model_class.from_autoencoder(theirs, **given)
    assert_equal(model.autoencode(PIXELS), reconstructions(theirs))
    assert model.config.codebook_dim == 6
    assert model.config.post_quant_channels == 4


@pytest.mark.parametrize("given", [{}, {"progressive": True, "learned_prior": True}])
def test_finer_groups_add_nothing_before_they_are_trained(given: dict[str, Any]) -> None:
    theirs = autoencoder_kl(**KL["attention at stride 2"])
    model = HQVAEModel.from_autoencoder(theirs, code_groups=FINER, **given)
    assert_equal(model.autoencode(PIXELS), reconstructions(theirs))
    codes = model.encode(PIXELS)
    changed = codes.truncate(2)
    assert_equal(model.decode(codes), model.decode(changed))
    model.train()(PIXELS).loss.backward()
    assert model.blocks[1].state.weight.grad[:, -4:].abs().max() > 0


@pytest.mark.parametrize("as_model", [True, False])
def test_folders_and_models_give_the_same(tmp_path: Path, as_model: bool) -> None:
    theirs = autoencoder_kl()
    theirs.save_pretrained(tmp_path / "pipeline" / "vae")
    torch.manual_seed(0)
    direct = HQVAEModel.from_autoencoder(theirs)
    torch.manual_seed(0)
    model = HQVAEModel.from_autoencoder(tmp_path / "pipeline", subfolder="vae")
    assert all(
        torch.equal(a, b) for a, b in zip(direct.state_dict().values(), model.state_dict().values(), strict=True)
    )
    model.save_pretrained(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.autoencode(PIXELS), model.autoencode(PIXELS))
    assert again.encode(PIXELS) == model.encode(PIXELS)
    # And around: the tokenizer is an autoencoder as well, of which nothing but the codes is new.
    other = SQVAEModel.from_autoencoder(again if as_model else tmp_path / "ours", codebook_size=16)
    assert_equal(other.autoencode(PIXELS), reconstructions(theirs))


def test_it_is_exported_with_its_code(tmp_path: Path) -> None:
    model = HQVAEModel.from_autoencoder(autoencoder_kl())
    export_self_contained(model, tmp_path / "export")
    save_file({"pixels": PIXELS, "expected": model.autoencode(PIXELS).contiguous()}, tmp_path / "x.safetensors")
    code = f"""
import sys, torch
sys.modules["hq_tokenizers"] = None
from safetensors.torch import load_file
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "export")!r}, trust_remote_code=True)
x = load_file({str(tmp_path / "x.safetensors")!r})
assert torch.equal(model.autoencode(x["pixels"]), x["expected"])
"""
    environment = {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin",
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path, timeout=240)


def test_latents_of_any_scale_get_the_same_codes() -> None:
    """The encoder's last layer times a factor, the decoder's first by it: the same autoencoder."""
    found = []
    for scale in (1e-4, 1.0, 1e4):
        theirs = autoencoder_kl(use_quant_conv=False, use_post_quant_conv=False)
        with torch.no_grad():
            theirs.encoder.conv_out.weight *= scale
            theirs.encoder.conv_out.bias *= scale
            theirs.decoder.conv_in.weight /= scale
        torch.manual_seed(0)
        model = HQVAEModel.from_autoencoder(theirs, code_groups=["stride 4: 8 x 4"])
        model.freeze(["encoder", "decoder"])
        model.train()
        for _ in range(40):
            model(PIXELS, return_loss=False)
            model.advance()
        model.eval()
        assert_equal(model.autoencode(PIXELS), reconstructions(theirs))
        codes, expected = model.encode(PIXELS), model.autoencode(PIXELS)
        errors = [(model.decode(codes, levels) - expected).square().mean().item() for levels in range(1, 5)]
        assert errors == sorted(errors, reverse=True)
        found.append((codes.groups[0], errors))
    (_, smallest), (codes, errors), (_, largest) = found
    assert smallest == pytest.approx(errors, rel=0.05)
    assert largest == pytest.approx(errors, rel=0.05)
    # Rounding decides between codes that are almost equally near.
    assert all((other == codes).float().mean() > 0.95 for other, _ in found)


def test_codes_get_the_scale_of_the_latents_back() -> None:
    model = SQVAEModel.from_autoencoder(autoencoder_kl(), codebook_size=8)
    norm = model.latent_norm[-1]
    mean, deviation = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([3.0, 0.1, 1.0, 20.0])
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(deviation**2)
    codes = model.encode(PIXELS)
    vectors = mean + deviation * model.embed(codes)[0]
    decoded = model.decoder(vectors.permute(0, 3, 1, 2).contiguous())
    torch.testing.assert_close(model.decode(codes), (decoded + 1) / 2)
    output = model(PIXELS)
    torch.testing.assert_close(output.reconstruction, model.decode(codes))
    # In training it is the scale of the batch, whatever the running one is.
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    latents = model.encoder(PIXELS)[0]
    model.quantizer.forward = lambda latents, *_: _Unquantized(latents)  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="partial_sums"):
        model.train()(PIXELS)
    torch.testing.assert_close(seen[0], latents, rtol=1e-4, atol=1e-5)


class _Unquantized:
    """A quantiser's output as far as the decoder needs it."""

    indices = None

    def __init__(self, latents: torch.Tensor) -> None:
        self.quantized = latents


REFUSED_MODELS = {
    "activation": (lambda: autoencoder_kl(act_fn="relu"), "the activation 'relu'"),
    "spatial norm": (lambda: vq_model(norm_type="spatial", block_out_channels=(32, 32, 32)), "norms of type 'spatial'"),
    "one side": (lambda: autoencoder_kl(down_block_types=(DOWN, f"Attn{DOWN}", DOWN)), "does not mirror its encoder"),
    "channels": (lambda: autoencoder_kl(out_channels=1), "image channels: 3 expected, 1 found"),
    "papers' networks": (lambda: SQVAEModel(SQVAEConfig()), "backbone 'resnet'"),
    "several grids": (
        lambda: HQVAEModel.from_autoencoder(autoencoder_kl(), code_groups=FINER),
        "it has several grids",
    ),
    "no autoencoder": (lambda: torch.nn.Conv2d(3, 3, 1), "got Conv2d"),
}


@pytest.mark.parametrize("kind", REFUSED_MODELS)
def test_what_cannot_be_taken_over_is_refused(kind: str) -> None:
    build, message = REFUSED_MODELS[kind]
    with pytest.raises(ValueError, match=message):
        read_autoencoder(build())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"code_groups": ["stride 8: 16"]}, "The latents of the autoencoder have stride 4"),
        ({"code_groups": ["stride 2: 16"]}, "have stride 4"),
        ({"quantizer": "none"}, "the quantizer is one of 'gaussian', 'vq'"),
        ({"codebook_dim": 8}, "codebook_dim is that of the autoencoder, 4"),
        ({"num_channels": 1}, "images of 3 channels, got images of 1"),
        ({"codebok_dim": 8}, "Did you mean codebook_dim"),
        ({"codebook": 3}, "HQVAEConfig has no field 'codebook'"),
        ({"recipe": "papers"}, "recipe must be one of"),
    ],
)
def test_fields_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HQVAEModel.from_autoencoder(autoencoder_kl(), **given)


def test_a_hierarchy_is_not_one_grid() -> None:
    with pytest.raises(ValueError, match=r"SQVAEConfig has no field 'code_groups'\. .* are an HQVAEModel's"):
        SQVAEModel.from_autoencoder(autoencoder_kl(), code_groups=["stride 4: 16"])


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(ValueError, match="holds AutoencoderTiny, and AutoencoderKL or VQModel"):
        read_autoencoder(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        read_autoencoder(tmp_path / "nowhere")


def test_the_normalised_space_of_a_tokenizer_becomes_a_part_of_its_encoder() -> None:
    torch.manual_seed(0)
    config = HQVAEConfig(
        **{"backbone": "diffusers", "code_groups": ["stride 4: 8 x 2"], "block_out_channels": [8, 12, 16]},
        **{"layers_per_block": 1, "norm_num_groups": 4, "codebook_dim": 5, "normalize_latents": True},
    )
    tokenizer = perturbed(HQVAEModel(config)).train()
    for _ in range(5):
        tokenizer(PIXELS)
    model = SQVAEModel.from_autoencoder(tokenizer.eval(), codebook_size=8)
    assert model.config.output_activation == "sigmoid"
    assert_equal(model.autoencode(PIXELS), tokenizer.autoencode(PIXELS))


@pytest.mark.parametrize("quantizer", ["vmf", "fsq"])
def test_latents_without_codes_are_where_the_codes_are(quantizer: str) -> None:
    torch.manual_seed(0)
    own = {"fsq_levels": [9] * 4} if quantizer == "fsq" else {"codebook_size": 4096, "codebook_dim": 2}
    model = SQVAEModel(SQVAEConfig(image_size=32, quantizer=quantizer, hidden_size=8, **own)).eval()
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.autoencode(PIXELS)
    model(PIXELS)
    assert not torch.equal(*seen)
    # Half the distance of neighbouring values, or of neighbouring directions.
    torch.testing.assert_close(*seen, rtol=0, atol=0.126 if quantizer == "fsq" else 0.01)


@pytest.mark.parametrize("model_class", [HQVAEModel, SQVAEModel])
def test_frozen_parts(model_class: Any) -> None:
    """The papers' networks have batch norms, which stay as they are as well."""
    torch.manual_seed(0)
    config = model_class.config_class(hidden_size=8, codebook_dim=4, bottleneck_norm=True)
    model = model_class(config).train()
    names = {"encoder": ("encoder.",), "decoder": ("decoder.",)}
    if model_class is HQVAEModel:
        names = {
            "encoder": ("bottom_up.", "blocks.0.latent_head."),
            "decoder": ("decoder.", "blocks.0.state.", "blocks.1.upsample."),
        }
    for parts in (["encoder"], ["decoder"], ["encoder", "decoder"]):
        other = model_class(config).train()
        other.freeze(parts)
        frozen = tuple(name for part in parts for name in names[part])
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        optimizer = torch.optim.SGD(other.parameter_groups(0.1), 0.1)
        other.eval().train()(PIXELS).loss.backward()
        optimizer.step()
        changed = {name for name, tensor in other.state_dict().items() if not torch.equal(tensor, before[name])}
        assert not [name for name in changed if name.startswith(frozen)]
        assert [name for name in changed if name.startswith("quantizer.")]
        trained = [name for part in names if part not in parts for name in names[part]]
        assert [name for name in trained if not any(each.startswith(name) for each in changed)] == []
        assert len(other.parameter_groups(0.1)[0]["params"]) < len(model.parameter_groups(0.1)[0]["params"])
    with pytest.raises(ValueError, match="freeze must be one of 'encoder', 'decoder'"):
        model.freeze(["encoders"])
