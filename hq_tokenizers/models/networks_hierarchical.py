"""Bottom-up and top-down networks of the hierarchical tokenizers.

Shape legend: groups g = 0 … G−1, coarse to fine; grid h_g × w_g; hidden features (B, c, h_g, w_g); latents and code
vectors (B, d, h_g, w_g).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from hq_tokenizers.padding import Padding

from .checkpointed_layers import CheckpointedSequential
from .masked_layers import run
from .networks import Projection, downsampling_stem, latent_head, norm_relu, residual_stack


class BottomUp(nn.Module):
    """Deterministic features of the image at every group's resolution.

    The finest come from the encoder of the single-layer model without its last block; each coarser resolution from the
    next finer one.

    Args:
        in_channels: Image channels.
        hidden_size: Channels c of the features.
        strides: Strides of the groups, coarse to fine.
        num_blocks: Residual blocks per resolution, counting the one of the latents' head.
        final_convolution: See `downsampling_stem`.
        final_norm: See `downsampling_stem`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        strides: Sequence[int],
        num_blocks: int,
        final_convolution: bool,
        final_norm: bool,
    ):
        super().__init__()
        finest = strides[-1].bit_length() - 1
        stages = [
            nn.Sequential(
                downsampling_stem(in_channels, hidden_size, finest, final_convolution, final_norm),
                residual_stack(hidden_size, num_blocks - 1),
            )
        ]
        for coarse, fine in reversed(list(itertools.pairwise(strides))):
            halvings = (coarse // fine).bit_length() - 1
            down = downsampling_stem(hidden_size, hidden_size, halvings, final_convolution=False, final_norm=False)
            stages.append(nn.Sequential(nn.ReLU(), down, residual_stack(hidden_size, num_blocks - 1)))
        self.stages = nn.ModuleList(stages)

    takes_padding = True

    def forward(self, pixel_values: torch.Tensor, padding: Padding | None = None) -> list[torch.Tensor]:
        """(B, C, H, W) → features of every group, coarse to fine."""
        features = []
        hidden_states = pixel_values
        for stage in self.stages:
            hidden_states = run(stage, hidden_states, padding)
            features.append(hidden_states)
        return features[::-1]


class FirstBlock(nn.Module):
    """Top-down block of the coarsest group: latents are projected features, the state is the code vectors.

    Args:
        latent_head: Features (B, c, h, w) to latents (B, d, h, w).
        state: Code vectors (B, d, h, w) to the state (B, c, h, w).
    """

    def __init__(self, latent_head: nn.Module, state: nn.Module):
        super().__init__()
        self.latent_head = latent_head
        self.state = state

    def latents(self, features: torch.Tensor, upsampled: None = None, padding: Padding | None = None) -> torch.Tensor:
        """Ẑ from the bottom-up features."""
        return run(self.latent_head, features, padding)

    def next_state(self, upsampled: None, quantized: torch.Tensor) -> torch.Tensor:
        """The top-down state after this group, (B, c, h, w)."""
        return self.state(quantized)


class InjectedBlock(nn.Module):
    """Top-down block of a finer group (an injected layer): Ẑ_g = G_g(H_g, state of the coarser groups).

    Args:
        upsample: The state of the coarser groups to this group's grid.
        merge: Features and upsampled state, side by side, to what the latents are made from.
        latent_head: From there to the latents.
        fill_head: Prediction of this group's code vectors from the upsampled state alone; None for none.
        state: Upsampled state and code vectors, side by side, to the state after this group.
    """

    def __init__(
        self,
        upsample: nn.Module,
        merge: nn.Module,
        latent_head: nn.Module,
        fill_head: nn.Module | None,
        state: nn.Module,
    ):
        super().__init__()
        self.upsample = upsample
        self.merge = merge
        self.latent_head = latent_head
        self.fill_head = fill_head
        self.state = state

    def latents(self, features: torch.Tensor, upsampled: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
        """Ẑ from the bottom-up features and the upsampled top-down state, of the same grid."""
        merged = run(self.merge, torch.cat([features, upsampled], dim=1), padding)
        return run(self.latent_head, merged, padding)

    def fill(self, upsampled: torch.Tensor, padding: Padding | None = None) -> torch.Tensor | None:
        """Prediction of the group's code vectors from the coarser groups alone; None where there is no head."""
        return None if self.fill_head is None else run(self.fill_head, upsampled, padding)

    def next_state(self, upsampled: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """The top-down state after this group: coarser groups and this one side by side, mixed 1×1.

        Side by side, because a sum lets the finest group drown the coarse ones.
        """
        return self.state(torch.cat([upsampled, quantized], dim=1))


def first_block(hidden_size: int, code_dim: int, latent_channels: int, residual: bool = True) -> FirstBlock:
    """The block of the coarsest group on the papers' networks.

    Args:
        hidden_size: Channels c of the features.
        code_dim: Width d of code vectors.
        latent_channels: Width of the latents before their norm.
        residual: Whether a residual block comes before the projection to the latents.
    """
    head = latent_head(hidden_size, latent_channels) if residual else Projection(hidden_size, latent_channels)
    state = nn.Identity() if code_dim == hidden_size else Projection(code_dim, hidden_size)
    return FirstBlock(head, state)


def injected_block(
    hidden_size: int, code_dim: int, latent_channels: int, upsampling: int, num_blocks: int, with_fill: bool
) -> InjectedBlock:
    """The block of a finer group on the papers' networks.

    Args:
        hidden_size: Channels c of the features.
        code_dim: Width d of code vectors.
        latent_channels: Width of the latents before their norm.
        upsampling: Factor between the coarser grid and this one, a power of two.
        num_blocks: Residual blocks before the upsampling.
        with_fill: Whether there is a head that predicts this group's code vectors from the state alone.
    """
    layers: list[nn.Module] = [residual_stack(hidden_size, num_blocks)]
    for _ in range(upsampling.bit_length() - 1):
        layers += [nn.ConvTranspose2d(hidden_size, hidden_size, 4, stride=2, padding=1), *norm_relu(hidden_size)]
    return InjectedBlock(
        upsample=nn.Sequential(*layers),
        merge=CheckpointedSequential(nn.Conv2d(2 * hidden_size, hidden_size, 3, padding=1), *norm_relu(hidden_size)),
        latent_head=latent_head(hidden_size, latent_channels),
        fill_head=latent_head(hidden_size, code_dim) if with_fill else None,
        state=Projection(hidden_size + code_dim, hidden_size),
    )
