"""Networks of the tokenizers: the papers' blocks, shapes at every resolution, and what depends on what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hq_tokenizers.models.networks import (
    ImageDecoder,
    ImageEncoder,
    ResidualBlock,
    downsampling_stem,
    stage_channels,
    upsampling_head,
)
from hq_tokenizers.models.networks_hierarchical import BottomUp, first_block, injected_block


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.modules() if not list(layer.children())]


def test_residual_block_is_the_papers() -> None:
    block = ResidualBlock(6).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    _, conv3, norm1, _, conv1, norm2 = block.layers
    for norm in (norm1, norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def normalised(h: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (p.reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
        return (h - mean) / (variance + norm.eps).sqrt() * scale + shift

    h = nn.functional.conv2d(x.relu(), conv3.weight, conv3.bias, padding=1)
    h = torch.einsum("oc,bchw->bohw", conv1.weight[:, :, 0, 0], normalised(h, norm1).relu())
    h = normalised(h + conv1.bias.reshape(1, -1, 1, 1), norm2)
    torch.testing.assert_close(block(x), x + h)


@pytest.mark.parametrize(("stages", "channels"), [(1, [64]), (2, [32, 64]), (3, [32, 64, 64]), (4, [32, 64, 64, 64])])
def test_channels_of_the_stages(stages: int, channels: list[int]) -> None:
    assert stage_channels(64, stages) == channels


def test_stem_and_head_of_mnist() -> None:
    stem = downsampling_stem(1, 64, 2, final_convolution=False, final_norm=False)
    assert kinds(stem) == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert [layer.out_channels for layer in stem if isinstance(layer, nn.Conv2d)] == [32, 64]
    head = upsampling_head(64, 1, 2, first_convolution=False)
    assert kinds(head) == ["ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"]
    assert [layer.out_channels for layer in head if isinstance(layer, nn.ConvTranspose2d)] == [32, 1]


def test_stem_and_head_of_cifar10() -> None:
    stem = downsampling_stem(3, 64, 2, final_convolution=True, final_norm=True)
    assert kinds(stem) == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    head = upsampling_head(64, 3, 2, first_convolution=True)
    assert kinds(head) == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 2 + ["ConvTranspose2d"]
    assert [layer.kernel_size[0] for layer in head if isinstance(layer, nn.ConvTranspose2d)] == [3, 4, 4]


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("with_variance", [False, True])
@pytest.mark.parametrize("width", [6, 8])
def test_encoder_and_decoder_shapes(stages: int, with_variance: bool, width: int) -> None:
    encoder = ImageEncoder(3, 8, stages, 2, True, True, width, width * with_variance)
    latents, log_variance = encoder(torch.randn(2, 3, 16, 24))
    assert latents.shape == (2, width, 16 // 2**stages, 24 // 2**stages)
    assert (log_variance is not None) == with_variance
    if log_variance is not None:
        assert log_variance.shape == latents.shape
        assert not torch.equal(log_variance, latents)
    decoder = ImageDecoder(width, 8, 3, stages, 2, True)
    assert decoder(latents).shape == (2, 3, 16, 24)


def test_blocks_count_the_heads() -> None:
    for blocks in (1, 2, 5):
        encoder = ImageEncoder(3, 8, 2, blocks, True, True, 8, 0)
        assert sum(isinstance(module, ResidualBlock) for module in encoder.modules()) == blocks


def test_bottom_up_is_coarse_to_fine_and_reads_finer_features() -> None:
    network = BottomUp(3, 8, [16, 4, 2], 2, True, True).eval()
    pixels = torch.randn(1, 3, 32, 48, requires_grad=True)
    features = network(pixels)
    assert [tuple(f.shape) for f in features] == [(1, 8, 2, 3), (1, 8, 8, 12), (1, 8, 16, 24)]
    stage_of_finest = network.stages[0][0][0].weight
    for feature in features:
        assert torch.autograd.grad(feature.square().sum(), stage_of_finest, retain_graph=True)[0].any()


@pytest.mark.parametrize("width", [6, 8])
def test_first_block(width: int) -> None:
    block = first_block(8, width, width)
    assert block.latents(torch.randn(2, 8, 3, 4)).shape == (2, width, 3, 4)
    assert block.next_state(None, torch.randn(2, width, 3, 4)).shape == (2, 8, 3, 4)


@pytest.mark.parametrize("upsampling", [2, 4])
def test_injected_block_uses_state_features_and_codes(upsampling: int) -> None:
    block = injected_block(8, 6, 6, upsampling, 1, with_fill=True)
    state, features, codes = (
        torch.randn(2, c, s, s, requires_grad=True) for c, s in ((8, 3), (8, 3 * upsampling), (6, 3 * upsampling))
    )
    upsampled = block.upsample(state)
    latents = block.latents(features, upsampled)
    assert latents.shape == (2, 6, 3 * upsampling, 3 * upsampling)
    assert all(g.any() for g in torch.autograd.grad(latents.square().sum(), (state, features), retain_graph=True))
    following = block.next_state(upsampled, codes)
    assert following.shape == (2, 8, 3 * upsampling, 3 * upsampling)
    assert all(g.any() for g in torch.autograd.grad(following.square().sum(), (state, codes), retain_graph=True))
    filled = block.fill(upsampled)
    assert filled is not None
    assert filled.shape == latents.shape
    assert injected_block(8, 6, 6, 2, 1, with_fill=False).fill(features) is None
