"""Encoder and decoder of diffusers' autoencoders as backbones: the networks of VQGAN, RQ-VAE and latent diffusion.

    x → Conv3×3 → residual layers, halving, residual layers, … → middle → norm, SiLU, Conv3×3 → ẑ
    z → Conv3×3 → middle → residual layers, doubling, residual layers, … → norm, SiLU, Conv3×3 → x̂

A residual layer is norm, SiLU, Conv3×3 twice around an identity (a 1×1 convolution where widths differ), with
self-attention after it at chosen resolutions. The blocks are diffusers'; here they are put together resolution by
resolution, so that a hierarchy takes features and joins codes on the way. In a hierarchy, the encoder's features before
each halving are those of the groups; the decoder stops at the resolution of every group, where the group's codes are
joined to its state.

Shape legend: resolution r = 0 … R of stride 2^r with c_r channels; images (B, C, H, W), features (B, c_r, H / 2^r, W /
2^r), code vectors (B, d, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .checkpointed_layers import CheckpointedSequential
from .networks import Projection
from .networks_hierarchical import FirstBlock, InjectedBlock

_EPSILON = 1e-6
"""Of the group norms."""


@dataclass(frozen=True)
class Resolutions:
    """What a backbone has at each of its resolutions.

    Args:
        channels: c_r for the strides 1, 2, 4 and so on.
        layers_per_block: Residual layers of the encoder at each resolution; the decoder has one more.
        norm_num_groups: Groups of the group norms.
        mid_block_attention: Whether the middle has self-attention.
        attention_strides: Strides at which self-attention follows each residual layer.
        state_of_coarser: Whether the state of a hierarchy keeps the width of the coarser resolution where a group joins
            it, as in diffusers' decoder; otherwise it has that of its own.
    """

    channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    mid_block_attention: bool
    attention_strides: tuple[int, ...]
    state_of_coarser: bool = False

    @property
    def coarsest(self) -> int:
        """The number R of the coarsest resolution."""
        return len(self.channels) - 1

    def state_width(self, resolution: int) -> int:
        """Width of the decoder's state where the layers of a resolution begin, in a hierarchy."""
        return self.channels[min(resolution + self.state_of_coarser, self.coarsest)]

    def layers(self, resolution: int, in_channels: int, num_layers: int) -> list[nn.Module]:
        """Residual layers at a resolution; the first changes the width."""
        width = self.channels[resolution]
        widths = [in_channels] + [width] * (num_layers - 1)
        attention = 2**resolution in self.attention_strides
        return [self.layer(before, width, attention) for before in widths]

    def layer(self, in_channels: int, out_channels: int, attention: bool = False) -> nn.Module:
        """One residual layer, and self-attention of one head if wanted."""
        blocks = _diffusers_blocks()
        kind = blocks.AttnDownEncoderBlock2D if attention else blocks.DownEncoderBlock2D
        of_attention = {"attention_head_dim": out_channels} if attention else {}
        block = kind(
            in_channels,
            out_channels,
            num_layers=1,
            resnet_eps=_EPSILON,
            resnet_groups=self.norm_num_groups,
            add_downsample=False,
            **of_attention,
        )
        return CheckpointedSequential(block)

    def halving(self, channels: int) -> nn.Module:
        """Conv3×3 of stride 2, padded on the right and at the bottom."""
        halving = _diffusers_blocks().Downsample2D(channels, use_conv=True, out_channels=channels, padding=0, name="op")
        return CheckpointedSequential(halving)

    def doubling(self, channels: int) -> nn.Module:
        """The nearest pixel, twice along each axis, and Conv3×3."""
        return CheckpointedSequential(_diffusers_blocks().Upsample2D(channels, use_conv=True, out_channels=channels))

    def middle(self) -> nn.Module:
        """Two residual layers at the coarsest resolution, with self-attention between them if wanted."""
        width = self.channels[-1]
        # It has a switch for gradient checkpointing of its own, which the model's reaches.
        return _diffusers_blocks().UNetMidBlock2D(
            width,
            temb_channels=None,
            resnet_eps=_EPSILON,
            resnet_groups=self.norm_num_groups,
            attention_head_dim=width,
            add_attention=self.mid_block_attention,
        )

    def codes_in(self, code_dim: int, post_quant_channels: int | None) -> list[nn.Module]:
        """From code vectors to the decoder's first state: Conv3×3, after a 1×1 convolution to some channels or none."""
        convolutions: list[nn.Module] = []
        if post_quant_channels is not None:
            convolutions.append(nn.Conv2d(code_dim, post_quant_channels, 1))
        return [*convolutions, nn.Conv2d(post_quant_channels or code_dim, self.channels[-1], 3, padding=1)]

    def head(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """Norm, SiLU, Conv3×3."""
        return CheckpointedSequential(
            nn.GroupNorm(self.norm_num_groups, in_channels, eps=_EPSILON),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )

    def way_up(self, first: int, last: int) -> tuple[list[nn.Module], int]:
        """From the input of a resolution of the decoder to the input of a finer one, and its width.

        The middle belongs to the coarsest resolution.
        """
        modules = [self.middle()] if first == self.coarsest else []
        width = self.state_width(first)
        for resolution in range(first, last, -1):
            modules += self.layers(resolution, width, self.layers_per_block + 1)
            width = self.channels[resolution]
            modules.append(self.doubling(width))
        return modules, width


class FeaturePyramid(nn.Module):
    """The way down: features at chosen strides, those of the coarsest resolution after the middle.

    Args:
        in_channels: Image channels.
        resolutions: What there is at each resolution.
        strides: Strides of the features to return.
        centred: Whether inputs in [0, 1] are mapped to [−1, 1], which images are and one-hot label maps are not.
    """

    def __init__(self, in_channels: int, resolutions: Resolutions, strides: Sequence[int], centred: bool = True):
        super().__init__()
        self.wanted = [stride.bit_length() - 1 for stride in strides]
        self.centred = centred
        width = resolutions.channels[0]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        stages = []
        for index, channels in enumerate(resolutions.channels):
            halving = [resolutions.halving(width)] if index else []
            stages.append(nn.Sequential(*halving, *resolutions.layers(index, width, resolutions.layers_per_block)))
            width = channels
        self.stages = nn.ModuleList(stages)
        self.middle = resolutions.middle()

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) → features at every one of the strides, in their order."""
        hidden_states = self.conv_in(2 * pixel_values - 1 if self.centred else pixel_values)
        features = []
        for stage in self.stages:
            hidden_states = stage(hidden_states)
            features.append(hidden_states)
        features[-1] = self.middle(features[-1])
        return [features[resolution] for resolution in self.wanted]


class DiffusersEncoder(nn.Module):
    """Pixels to latents: diffusers' `Encoder`, with a second head where a log-variance map is wanted.

    Args:
        in_channels: Image channels.
        resolutions: What there is at each resolution.
        out_channels: Latent channels.
        variance_channels: Channels of the second head, for v(x); 0 for none.
        centred: See `FeaturePyramid`.
    """

    def __init__(
        self, in_channels: int, resolutions: Resolutions, out_channels: int, variance_channels: int, centred: bool
    ):
        super().__init__()
        width = resolutions.channels[-1]
        self.features = FeaturePyramid(in_channels, resolutions, [2**resolutions.coarsest], centred)
        self.mean_head = resolutions.head(width, out_channels)
        self.variance_head = resolutions.head(width, variance_channels) if variance_channels else None

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C, H, W) → latents (B, d, h, w) and the log-variance map of the same grid, if there is one."""
        (features,) = self.features(pixel_values)
        return self.mean_head(features), None if self.variance_head is None else self.variance_head(features)


class DiffusersDecoder(nn.Module):
    """Code vectors to pixels: diffusers' `Decoder`; or, of a hierarchy, its part from the finest group on.

    Args:
        resolutions: What there is at each resolution.
        stride: Stride of the input.
        code_dim: Width of the code vectors; None where the input is the state of a hierarchy.
        out_channels: Channels of the image.
        post_quant_channels: See `Resolutions.codes_in`.
    """

    def __init__(
        self,
        resolutions: Resolutions,
        stride: int,
        code_dim: int | None,
        out_channels: int,
        post_quant_channels: int | None = None,
    ):
        super().__init__()
        first = stride.bit_length() - 1
        codes_in = [] if code_dim is None else resolutions.codes_in(code_dim, post_quant_channels)
        way_up, width = resolutions.way_up(first, 0)
        last = resolutions.layers(0, width, resolutions.layers_per_block + 1)
        self.layers = nn.Sequential(*codes_in, *way_up, *last)
        self.head = resolutions.head(resolutions.channels[0], out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, d or c_r, h, w) → (B, C, H, W), before any output activation."""
        return self.head(self.layers(hidden_states))


def diffusers_first_block(
    resolutions: Resolutions, code_dim: int, latent_channels: int, post_quant_channels: int | None = None
) -> FirstBlock:
    """The block of the coarsest group: the last layers of diffusers' `Encoder`, the first of its `Decoder`.

    Args:
        resolutions: What there is at each resolution.
        code_dim: Width d of code vectors.
        latent_channels: Width of the latents before their norm.
        post_quant_channels: See `Resolutions.codes_in`.
    """
    *before, convolution = resolutions.codes_in(code_dim, post_quant_channels)
    state = nn.Sequential(*before, convolution) if before else convolution
    return FirstBlock(resolutions.head(resolutions.channels[-1], latent_channels), state)


def diffusers_injected_block(
    resolutions: Resolutions, coarser_stride: int, stride: int, code_dim: int, latent_channels: int, with_fill: bool
) -> InjectedBlock:
    """The block of a finer group: the decoder's way from the coarser group, a residual layer that joins the features.

    Args:
        resolutions: What there is at each resolution.
        coarser_stride: Stride of the group before.
        stride: Stride of this group.
        code_dim: Width d of code vectors.
        latent_channels: Width of the latents before their norm.
        with_fill: Whether there is a head that predicts this group's code vectors from the state alone.
    """
    first, last = coarser_stride.bit_length() - 1, stride.bit_length() - 1
    way_up, above = resolutions.way_up(first, last)
    width = resolutions.channels[last]
    state_width = above if resolutions.state_of_coarser else width
    fill_head = nn.Sequential(resolutions.layer(above, width), resolutions.head(width, code_dim))
    return InjectedBlock(
        upsample=nn.Sequential(*way_up),
        merge=resolutions.layer(width + above, width),
        latent_head=resolutions.head(width, latent_channels),
        fill_head=fill_head if with_fill else None,
        state=Projection(above + code_dim, state_width),
    )


def _diffusers_blocks() -> Any:
    """Diffusers' building blocks, imported where they are used: the other backbone does without."""
    try:
        from diffusers.models.unets import unet_2d_blocks
    except ImportError as error:
        raise ImportError("A tokenizer with backbone='diffusers' needs that package: pip install diffusers.") from error
    return unet_2d_blocks
