"""Checkpoints of the exact layouts of three packages, against a second forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hq_tokenizers import HQVAEModel, SQVAEModel
from hq_tokenizers.conversion.llamagen import convert_llamagen
from hq_tokenizers.conversion.rq_vae import convert_rq_vae
from hq_tokenizers.conversion.taming_vqgan import convert_taming_vqgan

State = dict[str, torch.Tensor]
MULTIPLIERS, WIDTH, LATENTS, DIM, CODES, LAYERS = (1, 2, 1), 32, 12, 6, 24, 1
ATTENTION = {"taming": (1,), "llamagen": (2,)}
"""Resolutions with attention: what a configuration says, or always the coarsest."""


def _names(package: str) -> Callable[[str], str]:
    """From a common name, such as "encoder.level.0.layer.1" or "decoder.middle.attention", to a package's."""
    if package == "taming":
        words = {"layer": "block", "attention": "attn", "middle.first": "mid.block_1", "middle.last": "mid.block_2"}
        words |= {"middle.attention": "mid.attn_1", "encoder.level": "encoder.down", "decoder.level": "decoder.up"}
    else:
        words = {"layer": "res", "attention": "attn", "middle.first": "mid.0", "middle.last": "mid.2"}
        words |= {"middle.attention": "mid.1", "encoder.level": "encoder.conv_blocks"}

    def rename(name: str) -> str:
        if package == "llamagen" and name.startswith("decoder.level."):
            # Its decoder counts from coarse to fine.
            level = name.split(".")[2]
            name = name.replace(f"decoder.level.{level}", f"decoder.conv_blocks.{len(MULTIPLIERS) - 1 - int(level)}")
        for word in ("middle.first", "middle.last", "middle.attention", "encoder.level", "decoder.level"):
            name = name.replace(word, words.get(word, word))
        return name.replace(".layer.", f".{words['layer']}.").replace(".attention.", f".{words['attention']}.")

    return rename


class Network:
    """Layers whose weights are made up when they are first used, and kept under a package's names."""

    def __init__(self, package: str) -> None:
        self.rename, self.attention = _names(package), ATTENTION[package]
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(3)

    def get(self, name: str, *shape: int, around: float = 0.0) -> torch.Tensor:
        name = self.rename(name)
        if name not in self.state:
            scale = 0.5 * torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.1
            self.state[name] = around + torch.randn(shape, generator=self.generator) * scale
        return self.state[name].double()

    def conv(self, x: torch.Tensor, name: str, out: int, kernel: int = 3, **arguments: Any) -> torch.Tensor:
        weight = self.get(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.get(f"{name}.bias", out), **{"padding": kernel // 2, **arguments})

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        width = x.shape[1]
        weight = self.get(f"{name}.weight", width, around=1.0)
        return F.group_norm(x, 32, weight, self.get(f"{name}.bias", width), eps=1e-6)

    def layer(self, x: torch.Tensor, name: str, out: int) -> torch.Tensor:
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1", out)
        h = self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2", out)
        return h + (x if x.shape[1] == out else self.conv(x, f"{name}.nin_shortcut", out, 1))

    def attend(self, x: torch.Tensor, name: str) -> torch.Tensor:
        width = x.shape[1]
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}", width, 1).flatten(2) for part in "qkv")
        weights = torch.softmax(q.mT @ k / width**0.5, dim=-1)
        return x + self.conv((v @ weights.mT).unflatten(2, x.shape[2:]), f"{name}.proj_out", width, 1)

    def level(self, x: torch.Tensor, side: str, level: int, num_layers: int) -> torch.Tensor:
        for index in range(num_layers):
            x = self.layer(x, f"{side}.level.{level}.layer.{index}", WIDTH * MULTIPLIERS[level])
            if level in self.attention:
                x = self.attend(x, f"{side}.level.{level}.attention.{index}")
        return x

    def middle(self, x: torch.Tensor, side: str) -> torch.Tensor:
        width = x.shape[1]
        x = self.attend(self.layer(x, f"{side}.middle.first", width), f"{side}.middle.attention")
        return self.layer(x, f"{side}.middle.last", width)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents (B, h, w, d)."""
        h = self.conv(2 * pixels - 1, "encoder.conv_in", WIDTH)
        for level in range(len(MULTIPLIERS)):
            h = self.level(h, "encoder", level, LAYERS)
            if level < len(MULTIPLIERS) - 1:
                name = f"encoder.level.{level}.downsample.conv"
                h = self.conv(F.pad(h, (0, 1, 0, 1)), name, h.shape[1], stride=2, padding=0)
        h = F.silu(self.norm(self.middle(h, "encoder"), "encoder.norm_out"))
        h = self.conv(self.conv(h, "encoder.conv_out", LATENTS), "quant_conv", DIM, 1)
        return h.permute(0, 2, 3, 1)

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] of code vectors (B, h, w, d)."""
        h = self.conv(vectors.permute(0, 3, 1, 2), "post_quant_conv", LATENTS, 1)
        h = self.middle(self.conv(h, "decoder.conv_in", WIDTH * MULTIPLIERS[-1]), "decoder")
        for level in reversed(range(len(MULTIPLIERS))):
            h = self.level(h, "decoder", level, LAYERS + 1)
            if level:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = self.conv(h, f"decoder.level.{level}.upsample.conv", h.shape[1])
        h = self.conv(F.silu(self.norm(h, "decoder.norm_out")), "decoder.conv_out", 3)
        return (h + 1) / 2


def nearest(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (latents[..., None, :] - codebook).square().sum(-1).argmin(-1)


PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def network(package: str) -> Network:
    made = Network(package)
    made.decode(made.encode(PIXELS))
    return made


def codebook_near(latents: torch.Tensor, number: int = CODES) -> torch.Tensor:
    """Some of the latents with noise: every code has a chance to be the nearest."""
    order = torch.randperm(latents[..., 0].numel(), generator=torch.Generator().manual_seed(2))[:number]
    chosen = latents.reshape(-1, DIM)[order]
    return chosen + 0.1 * chosen.std() * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(4))


def assert_same(model: Any, codes: torch.Tensor, images: torch.Tensor) -> None:
    found = model.encode(PIXELS)
    assert torch.equal(found.groups[0], codes)
    assert len(codes.unique()) > 5
    assert_close(model.decode(found), images)


def assert_close(images: torch.Tensor, expected: torch.Tensor) -> None:
    """Computed in float64, for processors sum in orders of their own, and norms magnify float32's rounding."""
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_taming_vqgan(tmp_path: Path, suffix: str) -> None:
    vqgan = network("taming")
    latents = vqgan.encode(PIXELS)
    codebook = codebook_near(latents)
    state = {**vqgan.state, "quantize.embedding.weight": codebook, "loss.discriminator.main.0.weight": torch.ones(2)}
    path = tmp_path / f"last.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": state, "epoch": 4, "global_step": 10}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    settings = {"model": {"params": {"ddconfig": {"resolution": 64}}}}
    model = convert_taming_vqgan(path, settings, None).double()
    assert isinstance(model, SQVAEModel)
    assert (model.config.image_size, model.config.attention_strides) == (64, [2])
    codes = nearest(latents, codebook)
    assert_same(model, codes[..., None], vqgan.decode(codebook[codes]))
    assert_close(model.autoencode(PIXELS), vqgan.decode(latents))


def test_llamagen(tmp_path: Path) -> None:
    vq = network("llamagen")
    latents = F.normalize(vq.encode(PIXELS), dim=-1)
    # What is trained is not normalised, and does not say so.
    codebook = codebook_near(latents) * torch.linspace(0.5, 3, CODES)[:, None]
    state = {**vq.state, "quantize.embedding.weight": codebook, "quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state, "optimizer": {}, "steps": 5}, tmp_path / "vq_ds16.pt")
    model = convert_llamagen(tmp_path / "vq_ds16.pt", {}, 32).double()
    unit = F.normalize(codebook, dim=-1)
    codes = nearest(latents, unit)
    assert_same(model, codes[..., None], vq.decode(unit[codes]))
    assert model.config.attention_strides == [4]
    assert_close(model.autoencode(PIXELS), vq.decode(latents))


@pytest.mark.parametrize("shared", [True, False])
def test_rq_vae(tmp_path: Path, shared: bool) -> None:
    rq = network("taming")
    latents = rq.encode(PIXELS)
    sizes = (CODES,) * 3 if shared else (CODES, 8, 16)
    first = codebook_near(latents)
    codebooks = [first if shared else codebook_near(latents, size) * 0.7**level for level, size in enumerate(sizes)]
    counts = [torch.arange(size, dtype=torch.float32) + 3 for size in sizes]
    state = dict(rq.state)
    for level, (codebook, count) in enumerate(zip(codebooks, counts, strict=True)):
        state[f"quantizer.codebooks.{level}.weight"] = torch.cat([codebook, torch.full((1, DIM), 1e6)])
        state[f"quantizer.codebooks.{level}.cluster_size_ema"] = count
        state[f"quantizer.codebooks.{level}.embed_ema"] = codebook * count[:, None]
    torch.save({"epoch": 1, "state_dict": state, "discriminator": {}, "optimizer": {}}, tmp_path / "model.pt")
    settings = {"arch": {"ddconfig": {"resolution": 32}, "hparams": {"decay": 0.95}}}
    model = convert_rq_vae(tmp_path / "model.pt", settings, None).double()
    assert isinstance(model, HQVAEModel)
    assert (model.config.image_size, model.config.ema_decay, model.config.shared_codebook) == (32, 0.95, shared)
    residual, total, codes = latents, torch.zeros_like(latents), []
    for codebook in codebooks:
        codes.append(nearest(residual, codebook))
        residual, total = residual - codebook[codes[-1]], total + codebook[codes[-1]]
    assert_same(model, torch.stack(codes, -1), rq.decode(total))
    # A step of training moves the codebooks a little, and not away to where they would start.
    model.float().train()(PIXELS.float())
    moved = model.codebooks()[0] - codebooks[0]
    assert moved.abs().max() > 0
    assert moved.abs().median() < 0.1 * codebooks[0].abs().median()


def _gumbel(state: State) -> str:
    state["quantize.proj.weight"] = torch.zeros(1)
    return "GumbelVQ"


def _no_codebook(state: State) -> str:
    del state["quantize.embedding.weight"]
    return "quantize.embedding.weight is missing"


def _other_width(state: State) -> str:
    state["quantize.embedding.weight"] = torch.zeros(4, DIM + 1)
    return "different models"


def _attention_on_one_side(state: State) -> str:
    for name in [name for name in state if name.startswith("decoder.up.1.attn.")]:
        del state[name]
    return "does not mirror its encoder"


def _without_a_layer(state: State) -> str:
    del state["decoder.up.0.block.0.conv2.weight"]
    return "conv2.weight is missing"


def _average_pooling(state: State) -> str:
    del state["encoder.down.0.downsample.conv.weight"]
    return "downsamplers.0.conv.weight is missing"


def _something_more(state: State) -> str:
    state["encoder.temb.weight"] = torch.zeros(3)
    return "encoder.temb.weight has no place"


REFUSALS = [_gumbel, _no_codebook, _other_width, _attention_on_one_side, _without_a_layer, _average_pooling]


@pytest.mark.parametrize("change", [*REFUSALS, _something_more], ids=lambda change: change.__name__)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, change: Callable[[State], str]) -> None:
    state = {**network("taming").state, "quantize.embedding.weight": torch.zeros(4, DIM)}
    message = change(state)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=message):
        convert_taming_vqgan(tmp_path / "last.ckpt", {}, 32)


def test_checkpoints_of_other_packages_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.zeros(1)}}, tmp_path / "x.pt")
    for convert in (convert_taming_vqgan, convert_llamagen, convert_rq_vae):
        with pytest.raises(ValueError, match=r"is no .* of|LlamaGen"):
            convert(tmp_path / "x.pt", {}, None)
