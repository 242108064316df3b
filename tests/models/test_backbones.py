"""The backbone of diffusers' blocks: equal to theirs, of published sizes, and in every tokenizer."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from hq_tokenizers import HQVAEConfig, HQVAEModel, SQVAEConfig, SQVAEModel
from hq_tokenizers.models.backbones import DiffusersDecoder, DiffusersEncoder, FeaturePyramid, Resolutions
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.models.presets import PRESETS, rsq_vae, sq_vae, sq_vae_2

SMALL: dict[str, Any] = {
    "backbone": "diffusers",
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "codebook_dim": 6,
    "image_size": 16,
}
SINGLE = {
    "gaussian I": {},
    "gaussian IV": {"variance_type": "IV", "attention_strides": [2, 4]},
    "gaussian, ema": {"codebook_update": "ema", "bottleneck_gradient": "straight_through"},
    "vmf": {"quantizer": "vmf"},
    "vq": {"quantizer": "vq"},
    "robust vq": {"quantizer": "vq", "bottleneck_batch_norm": True},
    "fsq": {"quantizer": "fsq", "fsq_levels": [4, 3], "codebook_dim": 2, "codebook_size": 12},
    "simvq": {"quantizer": "vq", "codebook_update": "linear"},
    "vae": {"quantizer": "none"},
    "categorical": {"likelihood": "categorical", "num_classes": 5},
    "vmf labels": {"likelihood": "vmf", "num_classes": 5, "quantizer": "vmf"},
}
GROUPS = ["stride 4: 8 x 2", "stride 2: 8"]
HIERARCHICAL = {
    "rsq-vae": {"code_groups": ["stride 4: 8 x 3"]},
    "hybrid": {"code_groups": GROUPS},
    "rq-vae": {"code_groups": ["stride 4: 8 x 2"], "quantizer": "vq", "shared_codebook": True},
    "vq-vae-2, batch norm": {"code_groups": GROUPS, "quantizer": "vq", "bottleneck_batch_norm": True},
    "everything": {
        "code_groups": ["stride 16: 8", "stride 4: 8, 4", "stride 2: 8"],
        "block_out_channels": [8, 12, 8, 8, 16],
        "progressive": True,
        "learned_prior": True,
        "mid_block_attention": False,
        "attention_strides": [4],
    },
}
SYSTEMS = {**SINGLE, **HIERARCHICAL}


def build(system: str, **overrides: Any) -> SQVAEModel | HQVAEModel:
    fields = {**SMALL, **SYSTEMS[system], **overrides}
    torch.manual_seed(0)
    if system in HIERARCHICAL:
        return HQVAEModel(HQVAEConfig(**fields)).eval()
    return SQVAEModel(SQVAEConfig(**{"codebook_size": 8, **fields})).eval()


def data(model: SQVAEModel | HQVAEModel, batch_size: int = 2, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if model.config.for_label_maps:
        return torch.randint(5, (batch_size, *size), generator=generator)
    return torch.rand(batch_size, 3, *size, generator=generator)


# The same network as diffusers'

RESOLUTIONS = Resolutions((8, 16, 16, 24), 2, 4, mid_block_attention=True, attention_strides=(2, 8))


def _renamed(state: dict[str, torch.Tensor], way: str) -> dict[str, torch.Tensor]:
    """Weights of diffusers' `Encoder` or `Decoder` under our names."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^mid_block\.", "MID.", name)
        if way == "down":
            # The halving belongs to the resolution that it leads to, and stands before its layers.
            name = re.sub(
                r"^down_blocks\.(\d+)\.downsamplers\.0", lambda m: f"features.stages.{int(m[1]) + 1}.0.0", name
            )
            name = re.sub(
                r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
                lambda m: f"features.stages.{m[1]}.{int(m[3]) + (m[1] != '0')}.0.{m[2]}.0",
                name,
            )
            name = re.sub(r"^conv_in", "features.conv_in", name).replace("MID.", "features.middle.")
            name = re.sub(r"^conv_norm_out", "mean_head.0", re.sub(r"^conv_out", "mean_head.2", name))
        else:
            # conv_in, the middle, then three layers and a doubling for each resolution.
            name = re.sub(
                r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
                lambda m: f"layers.{2 + 4 * int(m[1]) + int(m[3])}.0.{m[2]}.0",
                name,
            )
            name = re.sub(r"^up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"layers.{2 + 4 * int(m[1]) + 3}.0", name)
            name = re.sub(r"^conv_in", "layers.0", name).replace("MID.", "layers.1.")
            name = re.sub(r"^conv_norm_out", "head.0", re.sub(r"^conv_out", "head.2", name))
        renamed[name] = value
    return renamed


def _kinds(way: str) -> tuple[str, ...]:
    with_attention = [2**index in RESOLUTIONS.attention_strides for index in range(4)]
    plain, attention = (f"{prefix}{way}2D" for prefix in ("", "Attn"))
    return tuple(attention if attends else plain for attends in with_attention)


@pytest.mark.parametrize("size", [(32, 32), (8, 24)])
def test_encoder_is_that_of_diffusers(size: tuple[int, int]) -> None:
    theirs = Encoder(3, 5, _kinds("DownEncoderBlock"), RESOLUTIONS.channels, 2, 4, double_z=False).eval()
    ours = DiffusersEncoder(3, RESOLUTIONS, 5, 0, centred=True).eval()
    ours.load_state_dict(_renamed(theirs.state_dict(), "down"))
    pixels = torch.rand(2, 3, *size)
    latents, log_variance = ours(pixels)
    assert log_variance is None
    torch.testing.assert_close(latents, theirs(2 * pixels - 1))


@pytest.mark.parametrize("size", [(4, 4), (1, 3)])
def test_decoder_is_that_of_diffusers(size: tuple[int, int]) -> None:
    kinds = _kinds("UpDecoderBlock")[::-1]
    theirs = Decoder(5, 3, kinds, RESOLUTIONS.channels, 2, 4).eval()
    ours = DiffusersDecoder(RESOLUTIONS, 8, 5, 3).eval()
    ours.load_state_dict(_renamed(theirs.state_dict(), "up"))
    codes = torch.randn(2, 5, *size)
    torch.testing.assert_close(ours(codes), theirs(codes))


def test_features_come_from_before_the_halvings_in_the_order_asked_for() -> None:
    pyramid = FeaturePyramid(3, RESOLUTIONS, [8, 2, 1])
    seen = []
    for stage in (pyramid.stages[1], pyramid.stages[0]):
        stage.register_forward_hook(lambda _, __, output: seen.append(output))
    pyramid.middle.register_forward_hook(lambda _, __, output: seen.append(output))
    features = pyramid(torch.rand(1, 3, 16, 24))
    assert [tuple(feature.shape) for feature in features] == [(1, 24, 2, 3), (1, 16, 8, 12), (1, 8, 16, 24)]
    for feature, expected in zip(features, (seen[2], seen[1], seen[0]), strict=True):
        assert feature is expected


# Published sizes


def _published(multipliers: Sequence[int], attention: int, width: int = 128, latents: int = 256) -> int:
    """Parameters of taming-transformers' Encoder and Decoder with two residual blocks, and both 1×1 convolutions.

    Layer by layer from their modules; rq-vae-transformer has the same.

    Args:
        multipliers: ch_mult.
        attention: Index of the resolution in attn_resolutions.
        width: ch.
        latents: z_channels and embed_dim.
    """

    def convolution(before: int, after: int, kernel: int = 3) -> int:
        return kernel * kernel * before * after + after

    def residual(before: int, after: int) -> int:
        shortcut = 0 if before == after else convolution(before, after, 1)
        return 2 * before + convolution(before, after) + 2 * after + convolution(after, after) + shortcut

    def attend(channels: int) -> int:
        return 2 * channels + 4 * convolution(channels, channels, 1)

    widths = [width * multiplier for multiplier in multipliers]
    coarsest = len(widths) - 1
    middle = 2 * residual(widths[-1], widths[-1]) + attend(widths[-1])
    total = convolution(3, width) + convolution(width, 3) + 2 * width  # conv_in, conv_out and norm_out at full size
    total += convolution(widths[-1], latents) + convolution(latents, widths[-1]) + 2 * widths[-1]
    total += 2 * middle + 2 * convolution(latents, latents, 1)
    for index, after in enumerate(widths):
        down_from, up_from = widths[max(0, index - 1)], widths[min(coarsest, index + 1)]
        total += residual(down_from, after) + residual(up_from, after) + 3 * residual(after, after)
        total += 5 * attend(after) * (index == attention)
        total += 2 * convolution(after, after) - convolution(after, after) * (index in (0, coarsest))
    return total


@pytest.mark.parametrize(
    ("network", "multipliers", "attention", "parameters"),
    [
        ("imagenet256", (1, 1, 2, 2, 4), 4, 71_879_555),
        ("ffhq256", (1, 1, 2, 2, 4, 4), 4, 100_207_491),
        # The RQ-VAE of ImageNet has its attention at 8×8.
        ("ffhq256", (1, 1, 2, 2, 4, 4), 5, 100_207_491),
    ],
)
def test_parameter_counts_of_published_networks(
    network: str, multipliers: tuple[int, ...], attention: int, parameters: int
) -> None:
    assert _published(multipliers, attention) == parameters
    for config in (
        sq_vae(network, attention_strides=[2**attention]),
        rsq_vae(network, attention_strides=[2**attention]),
    ):
        with torch.device("meta"):
            model = SQVAEModel(config) if isinstance(config, SQVAEConfig) else HQVAEModel(config)
        found = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("quantizer."))
        assert found == parameters - 2 * (256 * 256 + 256)


@pytest.mark.parametrize("network", ["ffhq256", "imagenet256"])
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "robust_vq_vae"])
def test_large_networks_build_in_every_system(preset: str, network: str) -> None:
    config = PRESETS[preset](network)
    with torch.device("meta"):
        model = SQVAEModel(config) if isinstance(config, SQVAEConfig) else HQVAEModel(config)
    assert config.image_size == 256
    if config.has_codes:
        assert model.code_layout().groups[0].height == {"ffhq256": 8, "imagenet256": 16}[network]


@pytest.mark.parametrize("preset", PRESETS)
def test_debug_network_trains_in_every_system(preset: str) -> None:
    config = PRESETS[preset]("debug")
    model = (SQVAEModel(config) if isinstance(config, SQVAEConfig) else HQVAEModel(config)).train()
    model.start_epoch(10)
    assert sum(p.numel() for p in model.parameters()) < 400_000
    output = model(torch.rand(2, 3, 64, 64))
    output.loss.backward()
    assert output.reconstruction.shape == (2, 3, 64, 64)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# In every tokenizer


@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_any_size_that_the_stride_divides(system: str, size: tuple[int, int]) -> None:
    model = build(system)
    pixels = data(model, size=size)
    output = model(pixels)
    assert output.reconstruction.shape == pixels.shape
    assert output.loss.isfinite()
    if model.config.has_codes:
        codes = model.encode(pixels)
        assert codes.layout == model.code_layout(size)
        assert torch.equal(model.decode(codes), output.reconstruction)
        assert model.encode(pixels[:1]) == codes[:1]
        with pytest.raises(ValueError, match="do not fit a tokenizer of stride"):
            model.encode(data(model, size=(size[0] + 1, size[1])))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_parameter_is_set_and_receives_a_gradient(system: str) -> None:
    model = build(system).train()
    model(data(model, 4)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name
        # A key's bias moves all scores of a query alike; the bias before a batch norm is taken off by it.
        assert name.endswith("bias") or parameter.grad.any(), name


def test_initial_weights_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    model = build("gaussian IV", block_out_channels=[32, 32, 64], norm_num_groups=32, convolution_bias="uniform")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert bound * 0.9 < float(module.weight.detach().abs().max()) <= bound
            assert float(module.bias.detach().abs().max()) <= bound
        if isinstance(module, nn.GroupNorm):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()


def _kept_bytes_and_gradients(system: str, checkpointing: bool) -> tuple[int, dict[str, torch.Tensor]]:
    model = build(system).train()
    if checkpointing:
        enable_gradient_checkpointing(model)
    pixels = data(model, size=(32, 32))
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(pixels).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(storages.values()), {**model.state_dict(), **{f"grad {name}": g for name, g in gradients.items()}}


@pytest.mark.parametrize("system", ["gaussian IV", "robust vq", "categorical", "everything"])
def test_gradient_checkpointing_changes_the_memory_only(system: str) -> None:
    (plain, expected), (kept, found) = (_kept_bytes_and_gradients(system, on) for on in (False, True))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert kept < 0.5 * plain


@pytest.mark.parametrize("system", ["gaussian IV", "vq", "hybrid"])
def test_bfloat16_leaves_the_quantiser_in_float32(system: str) -> None:
    model = build(system)
    codes = model.encode(data(model))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = copy.deepcopy(model).train()(data(model))
    mixed.loss.backward()
    assert mixed.loss.dtype == torch.float32
    rounded = copy.deepcopy(model).bfloat16()
    assert {p.dtype for p in rounded.quantizer.parameters()} == {torch.float32}
    assert rounded.decoder.head[-1].weight.dtype == torch.bfloat16
    output = rounded(data(model))
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.decode(codes), model.decode(codes), rtol=0, atol=0.02)
    assert rounded.encode(data(model)) == output.codes


@pytest.mark.parametrize("system", ["gaussian IV", "hybrid"])
def test_channels_last_gives_the_same(system: str) -> None:
    model = build(system).train()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    pixels = data(model)
    losses = []
    for each, images in ((model, pixels), (other, pixels.to(memory_format=torch.channels_last))):
        torch.manual_seed(2)
        losses.append(each(images).loss)
        losses[-1].backward()
    assert next(p for p in other.parameters() if p.ndim == 4).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("system", "checkpointing"), [("gaussian IV", True), ("everything", False)])
def test_no_graph_breaks(system: str, checkpointing: bool) -> None:
    model = build(system)
    expected = model(data(model))
    options: dict[str, Any] = {"fullgraph": True, "backend": "eager"}
    assert torch.equal(torch.compile(model.forward, **options)(data(model)).loss, expected.loss)
    larger = data(model, size=(32, 48))
    assert torch.compile(model.encode, **options)(larger) == model.encode(larger)
    gradients = []
    for compiled in (False, True):
        trained = copy.deepcopy(model).train()
        if checkpointing:
            enable_gradient_checkpointing(trained)
        torch.manual_seed(0)
        (torch.compile(trained, **options) if compiled else trained)(data(model)).loss.backward()
        gradients.append([parameter.grad for parameter in trained.parameters()])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("system", ["gaussian IV", "everything"])
def test_saved_and_loaded(system: str, tmp_path: Path) -> None:
    model = build(system)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.resolution_channels == model.config.resolution_channels
    assert loaded.encode(data(model)) == model.encode(data(model))
    assert torch.equal(loaded(data(model)).reconstruction, model(data(model)).reconstruction)


# Fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"block_out_channels": [8, 8]},
            r"widths? for each of the strides 1, 2, … 4, which are 3, got 2.*num_downsampling",
        ),
        ({"block_out_channels": [8, 8, 10]}, r"norm_num_groups must divide all channels, \[8, 8, 10\], got 4"),
        ({"attention_strides": [8]}, r"attention_strides must be among \[1, 2, 4\], got \[8\]"),
        ({"num_residual_blocks": 3}, "num_residual_blocks is for backbone='resnet'"),
        ({"hidden_size": 32}, "hidden_size is for models without block_out_channels"),
        ({"backbone": "resnet"}, "block_out_channels is for backbone='diffusers'"),
        ({"backbone": "unet"}, "backbone must be one of 'resnet', 'diffusers'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SQVAEConfig(**{**SMALL, **fields})


def test_hidden_size_is_the_width_of_every_resolution_by_default() -> None:
    config = HQVAEConfig(backbone="diffusers", hidden_size=32, code_groups=["stride 8: 4", "stride 2: 4"])
    assert config.resolution_channels == (32, 32, 32, 32)
    assert sq_vae("mnist", backbone="diffusers").resolution_channels == (64, 64, 64)


def test_a_named_network_takes_the_other_backbone() -> None:
    assert sq_vae("celeba", backbone="diffusers").num_residual_blocks == 2
    assert sq_vae("debug", backbone="resnet", hidden_size=8).block_out_channels is None
    with pytest.raises(ValueError, match="num_residual_blocks is for backbone='resnet'"):
        sq_vae("celeba", backbone="diffusers", num_residual_blocks=3)
    with pytest.raises(ValueError, match=r"strides 1, 2, … 8, which are 4, got 3.*code_groups"):
        sq_vae_2("cifar10", backbone="diffusers", block_out_channels=[32, 32, 64])
