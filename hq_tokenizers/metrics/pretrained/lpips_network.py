"""LPIPS as torchmetrics computes it, with its backbone's weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hq_tokenizers.hashing import file_sha256, weights_sha256
from hq_tokenizers.metrics.pretrained.weight_files import BACKBONES, backbone_features, load_into, load_state, locate

NetType = Literal["squeeze", "alex", "vgg"]

# The smallest side for which every layer of the backbone still has an output.
_MINIMUM_SIZE = {"squeeze": 17, "alex": 31, "vgg": 16}


def load_lpips(net_type: NetType = "squeeze", weights: str | Path | None = None) -> LPIPSNetwork:
    """LPIPS v0.1 (Zhang et al. 2018) on a pretrained backbone; its linear heads come with torchmetrics.

    Args:
        net_type: "squeeze", "alex" or "vgg".
        weights: A file with torchvision's SqueezeNet 1.1, AlexNet or VGG-16, or its `features` alone; default
            torchvision's ImageNet weights.

    Raises:
        ValueError: If `net_type` is another one, or the file holds other weights.
        ImportError: If torchmetrics is not installed.
        OSError: If the weights cannot be had; see `weight_files`.
    """
    if net_type not in BACKBONES:
        raise ValueError(f"net_type must be one of {', '.join(BACKBONES)}, got {net_type!r}.")
    path = locate(BACKBONES[net_type], weights)
    return LPIPSNetwork(net_type, path)


class LPIPSNetwork(nn.Module):
    """Distance of pairs of images; frozen, differentiable in the images.

    Args:
        net_type: "squeeze", "alex" or "vgg".
        path: The backbone's weights; None for random ones, of which only size and time mean anything.
    """

    def __init__(self, net_type: NetType, path: Path | None) -> None:
        super().__init__()
        try:
            from torchmetrics.functional.image.lpips import _NoTrainLpips
        except ImportError as error:
            raise ImportError("LPIPS needs torchmetrics: pip install 'hq_tokenizers[metrics]'.") from error
        self.net_type = net_type
        self.lpips = _NoTrainLpips(net=net_type, pnet_rand=True)
        self.weights_file = "random"
        if path is not None:
            self._load(path)
        self.weights_sha256 = weights_sha256(self.lpips)

    def _load(self, path: Path) -> None:
        # torchmetrics cuts the backbone into slices but keeps each layer's torchvision index: slices.2.6.squeeze.bias.
        depth = 2 if self.net_type == "squeeze" else 1
        names = {name.split(".", depth)[-1]: name for name in self.lpips.net.state_dict()}
        features = backbone_features(load_state(path))
        load_into(self.lpips.net, {names.get(name, name): value for name, value in features.items()}, path)
        self.weights_file = f"{path.name} (SHA-256 {file_sha256(path)})"

    def describe(self) -> dict[str, Any]:
        """Name and weights, for a result's provenance."""
        return {"name": f"LPIPS v0.1 {self.net_type}", "weights_sha256": self.weights_sha256}

    def forward(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of floats in [0, 1], (B, 3, H, W).

        Raises:
            ValueError: If the images are too small for the backbone.
        """
        minimum = _MINIMUM_SIZE[self.net_type]
        if min(predictions.shape[-2:]) < minimum:
            raise ValueError(
                f"LPIPS on {self.net_type} needs images of at least {minimum}×{minimum}, got "
                f"{predictions.shape[-2]}×{predictions.shape[-1]}: enlarge both sides first."
            )
        with torch.autocast(predictions.device.type, enabled=False):
            return self.lpips(predictions.float(), references.float(), normalize=True).flatten()
