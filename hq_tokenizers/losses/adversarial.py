"""The adversarial loss of images: a patch discriminator, its hinge loss, and what its judgement weighs.

    discriminator:  L_D = ½ E[max(0, 1 − D(x)) + max(0, 1 + D(x̂))]                    (Lim and Ye, 2017)
    tokenizer:      λ · (−E D(x̂)),  λ = ‖∇_w d‖ / (‖∇_w E D(x̂)‖ + δ)                  (VQGAN, eq. 7)

with d the distance of x̂ from x that is trained besides, and w the weights of the decoder's last layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

_MOST_DOUBLINGS = 3
_DELTA = 1e-4


class PatchDiscriminator(nn.Module):
    """Says of every patch of an image how real it looks (Isola et al. 2017): convolutions of stride 2, then of 1.

    Batch norms go by the batch at hand, always. Spectral norms divide by the largest singular value that `iterate`
    follows, once for every optimiser step, so that calls in between change nothing.

    Args:
        num_channels: Channels of the images.
        hidden_size: Channels of the first layer.
        num_layers: Convolutions of stride 2.
        norm: "spectral" of all weights, or "batch" between the layers.
    """

    def __init__(self, num_channels: int, hidden_size: int = 64, num_layers: int = 3, norm: str = "spectral") -> None:
        super().__init__()
        self.num_layers = num_layers
        widths = [hidden_size * 2 ** min(index, _MOST_DOUBLINGS) for index in range(num_layers + 1)]
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            stride = 2 if index < num_layers else 1
            normed = norm == "batch" and index > 0
            layers.append(nn.Conv2d(num_channels, width, 4, stride=stride, padding=1, bias=not normed))
            layers += [nn.BatchNorm2d(width)] if normed else []
            layers.append(nn.LeakyReLU(0.2))
            num_channels = width
        layers.append(nn.Conv2d(num_channels, 1, 4, padding=1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                if norm == "spectral":
                    spectral_norm(layer)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, mean=1.0, std=0.02)
        self.layers = nn.Sequential(*layers)
        self.train()

    @property
    def smallest_image(self) -> int:
        """Pixels that each side of an image needs."""
        return 3 * 2**self.num_layers

    def train(self, mode: bool = True) -> PatchDiscriminator:
        """Sets the mode; spectral norms stay as `iterate` leaves them."""
        super().train(mode)
        for norm in self._spectral_norms():
            norm.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1] → logits of patches, float32 (B, 1, h, w); above 0 is real."""
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.layers(2 * pixel_values.float() - 1)

    @torch.no_grad()
    def iterate(self) -> None:
        """Follows the largest singular values by one power iteration."""
        for layer in self.layers:
            if parametrize.is_parametrized(layer):
                (norm,) = layer.parametrizations.weight  # type: ignore[union-attr, misc]
                norm.train()
                _ = layer.weight
                norm.eval()

    def _spectral_norms(self) -> list[nn.Module]:
        parametrized = (layer for layer in self.layers if parametrize.is_parametrized(layer))
        return [norm for layer in parametrized for norm in layer.parametrizations.weight]  # type: ignore[union-attr]


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """L_D of logits of images and of reconstructions: a scalar, 1 where all logits are 0."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(
    reconstruction: torch.Tensor,
    distance_gradient: torch.Tensor,
    judgement_gradient: torch.Tensor,
    last_weight: torch.Tensor,
    limit: float,
) -> torch.Tensor:
    """λ, a scalar without gradient, from the gradients ∂d/∂x̂ and ∂(−E D(x̂))/∂x̂.

    Args:
        reconstruction: x̂ (B, C, H, W), with the graph that leads to `last_weight`.
        distance_gradient: Gradient of the distance, of the same shape.
        judgement_gradient: Gradient of the discriminator's judgement.
        last_weight: w.
        limit: Largest λ.
    """
    # Gradients of means are too small for half precision, in which the last layer may compute.
    scale = reconstruction[0].numel()

    def norm(gradient: torch.Tensor) -> torch.Tensor:
        (at_layer,) = torch.autograd.grad(reconstruction, last_weight, scale * gradient, retain_graph=True)
        return at_layer.float().norm() / scale

    weight = norm(distance_gradient) / (norm(judgement_gradient) + _DELTA)
    # An overflow in half precision costs this one step.
    return weight.nan_to_num(0.0, posinf=limit).clamp_max(limit)
