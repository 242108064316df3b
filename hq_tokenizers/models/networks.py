"""Encoder and decoder of the SQ-VAE paper's image experiments.

Shape legend: images (B, C, H, W), features (B, hidden, h, w) with h = H / 2^num_downsampling.
"""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.padding import Padding

from .checkpointed_layers import CheckpointedSequential
from .masked_layers import run


class Projection(nn.Conv2d):
    """1×1 convolution between widths; its initial weights keep the variance, so that what it carries keeps its scale.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)


class ResidualBlock(nn.Module):
    """x + BN(Conv1×1(ReLU(BN(Conv3×3(ReLU x))))).

    Args:
        channels: Number of channels c.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = CheckpointedSequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )

    takes_padding = True

    def forward(self, hidden_states: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
        """(B, c, h, w) → (B, c, h, w)."""
        return hidden_states + self.layers(hidden_states, padding)


def residual_stack(channels: int, num_blocks: int) -> nn.Sequential:
    """`num_blocks` residual blocks in a row."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))


def stage_channels(hidden_size: int, num_stages: int) -> list[int]:
    """Channels after each halving of the resolution: half the hidden size first, the hidden size from then on."""
    return [hidden_size // 2] * min(1, num_stages - 1) + [hidden_size] * max(1, num_stages - 1)


def norm_relu(channels: int) -> list[nn.Module]:
    """BN, ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def downsampling_stem(
    in_channels: int, hidden_size: int, num_stages: int, final_convolution: bool, final_norm: bool
) -> nn.Sequential:
    """Conv4×4 stride 2 per stage with BN ReLU between, optionally a closing Conv3×3 and BN ReLU.

    Args:
        in_channels: Channels of the input.
        hidden_size: Channels of the output.
        num_stages: Number of halvings of the resolution, at least 1.
        final_convolution: Whether a 3×3 convolution follows the last stage.
        final_norm: Whether BN and ReLU follow at the end.
    """
    layers: list[nn.Module] = []
    for channels in stage_channels(hidden_size, num_stages):
        layers += [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), *norm_relu(channels)]
        in_channels = channels
    if final_convolution:
        layers += [nn.Conv2d(hidden_size, hidden_size, 3, padding=1), *norm_relu(hidden_size)]
    return CheckpointedSequential(*(layers if final_norm else layers[:-2]))


def upsampling_head(hidden_size: int, out_channels: int, num_stages: int, first_convolution: bool) -> nn.Sequential:
    """The mirror image of `downsampling_stem`, ending without an activation.

    Args:
        hidden_size: Channels of the input.
        out_channels: Channels of the output.
        num_stages: Number of doublings of the resolution, at least 1.
        first_convolution: Whether a 3×3 transposed convolution with BN ReLU comes first.
    """
    layers: list[nn.Module] = []
    if first_convolution:
        layers += [nn.ConvTranspose2d(hidden_size, hidden_size, 3, padding=1), *norm_relu(hidden_size)]
    in_channels = hidden_size
    for channels in [*reversed(stage_channels(hidden_size, num_stages)[:-1]), out_channels]:
        layers += [nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1), *norm_relu(channels)]
        in_channels = channels
    return CheckpointedSequential(*layers[:-2])


def latent_head(hidden_size: int, code_dim: int) -> nn.Module:
    """A residual block, and a 1×1 projection where the widths differ."""
    block = ResidualBlock(hidden_size)
    return block if code_dim == hidden_size else nn.Sequential(block, Projection(hidden_size, code_dim))


class ImageEncoder(nn.Module):
    """Pixels to latents: stem, residual blocks, and one last block per head.

    The heads are the latents' mean and, when asked for, their log-variance map v(x). With two heads the last residual
    block exists once for each; with one, it is simply the last block of the stack.

    Args:
        in_channels: Channels of the image.
        hidden_size: Channels of the features.
        num_stages: Number of halvings of the resolution.
        num_blocks: Residual blocks up to and including the heads', at least 1.
        final_convolution: See `downsampling_stem`.
        final_norm: See `downsampling_stem`.
        out_channels: Latent channels; a 1×1 projection is added where they differ from `hidden_size`.
        variance_channels: Channels of the second head, for v(x); 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        num_stages: int,
        num_blocks: int,
        final_convolution: bool,
        final_norm: bool,
        out_channels: int,
        variance_channels: int,
    ):
        super().__init__()
        self.stem = downsampling_stem(in_channels, hidden_size, num_stages, final_convolution, final_norm)
        self.blocks = residual_stack(hidden_size, num_blocks - 1)
        self.mean_head = latent_head(hidden_size, out_channels)
        self.variance_head = latent_head(hidden_size, variance_channels) if variance_channels else None

    takes_padding = True

    def forward(
        self, pixel_values: torch.Tensor, padding: Padding | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C, H, W) → latents (B, d, h, w) and the log-variance map of the same grid, if there is one."""
        features = run(self.blocks, self.stem(pixel_values, padding), padding)
        heads = (self.mean_head, self.variance_head)
        mean, log_variance = (None if head is None else run(head, features, padding) for head in heads)
        assert mean is not None
        return mean, log_variance


class ImageDecoder(nn.Module):
    """Code vectors to pixels: projection where the widths differ, residual blocks, upsampling head.

    Args:
        in_channels: Width of the code vectors.
        hidden_size: Channels of the features.
        out_channels: Channels of the image.
        num_stages: Number of doublings of the resolution.
        num_blocks: Number of residual blocks.
        first_convolution: See `upsampling_head`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        out_channels: int,
        num_stages: int,
        num_blocks: int,
        first_convolution: bool,
    ):
        super().__init__()
        projection = nn.Identity() if in_channels == hidden_size else Projection(in_channels, hidden_size)
        self.projection = projection
        self.blocks = residual_stack(hidden_size, num_blocks)
        self.head = upsampling_head(hidden_size, out_channels, num_stages, first_convolution)

    takes_padding = True

    def forward(self, hidden_states: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
        """(B, d, h, w) → (B, C, H, W), before any output activation."""
        features = run(self.blocks, self.projection(hidden_states), padding)
        return self.head(features, padding)
