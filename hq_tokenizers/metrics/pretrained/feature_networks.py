"""Networks whose features a Fréchet distance compares, each with a name and the hash of its weights."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.hashing import file_sha256, weights_sha256
from hq_tokenizers.metrics.pretrained.weight_files import (
    BACKBONES,
    INCEPTION,
    backbone_features,
    load_into,
    load_state,
    locate,
    shorten,
)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SQUEEZENET_SIZE = 128


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network with what must be known to reproduce its features.

    Args:
        name: What results call it.
        module: Takes uint8 RGB images (B, 3, H, W) in [0, 255]; returns features (B, D), or a pair of features and
            class logits (B, classes), which an Inception Score needs. Resizing and scaling are its own business.
        resize_filter: How it resizes images.
        weights_sha256: SHA-256 of its state dict; see `from_module`.
        weights_file: Name and SHA-256 of the file the weights came from, if any.
        is_fid_inception: Whether these are the features FID is defined by: the Inception network with its published
            weights. A distance on any other features is named differently in the result.
    """

    name: str
    module: nn.Module
    resize_filter: str
    weights_sha256: str
    weights_file: str | None = None
    is_fid_inception: bool = False

    @classmethod
    def from_module(cls, module: nn.Module, *, name: str, resize_filter: str) -> FeatureNetwork:
        """A custom network, in evaluation mode, with the hash of its weights computed.

        Raises:
            ValueError: If the name is empty.
        """
        if not name:
            raise ValueError("A custom feature network needs a name: results carry it.")
        return cls(name, module.eval(), resize_filter, weights_sha256(module))

    def describe(self) -> dict[str, Any]:
        """Name, weights and resizing, for a result's provenance."""
        return {"name": self.name, "weights_sha256": self.weights_sha256, "resize_filter": self.resize_filter}

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (B, D) and logits (B, classes) or None, of uint8 images (B, 3, H, W).

        Raises:
            ValueError: If the module returns anything else or features that are not finite.
        """
        with torch.autocast(images.device.type, enabled=False):  # features are float32 wherever a metric is called
            output = self.module(images)
        features, logits = output if isinstance(output, tuple) else (output, None)
        if not isinstance(features, torch.Tensor):
            raise ValueError(
                f"The feature network {self.name} must return a tensor of features, or (features, logits), got "
                f"{type(features).__name__}."
            )
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"The feature network {self.name} must return features of shape ({len(images)}, D) for "
                f"{len(images)} images, got {tuple(features.shape)}."
            )
        for output, kind in ((features, "features"), (logits, "logits")):
            if output is not None and not torch.isfinite(output).all():
                raise ValueError(f"The feature network {self.name} returned NaN or infinite {kind}.")
        return features, logits


def inception_network(weights: str | Path | None = None) -> FeatureNetwork:
    """torch-fidelity's `inception-v3-compat`: 2048 pooled features and 1008 unbiased logits, float32.

    Images are resized to 299 × 299 as TensorFlow 1 does, bilinear without antialiasing, which the published numbers
    rest on.

    Args:
        weights: A file to use instead of torch-fidelity's; unless it is that file, results say that the distance is
            not FID.

    Raises:
        ImportError: If torch-fidelity is not installed.
        OSError, ValueError: If the weights cannot be had; see `weight_files`.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(
            "FID's Inception network needs torch-fidelity: pip install 'hq_tokenizers[metrics]'."
        ) from error
    path = locate(INCEPTION, weights)
    # The extractor loads its file by unrestricted unpickling, so it is handed one written here from checked tensors.
    buffer = io.BytesIO()
    torch.save(load_state(path), buffer)
    buffer.seek(0)
    try:
        module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], buffer)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold torch-fidelity's Inception weights: {shorten(error)}") from error
    digest = file_sha256(path)
    official = digest.startswith(INCEPTION.sha256_prefix)
    return FeatureNetwork(
        name="inception-v3-compat" if official else f"inception-v3-compat with the weights {path.name}",
        module=module,
        resize_filter="bilinear as in TensorFlow 1, no antialiasing, to 299×299",
        weights_sha256=weights_sha256(module),
        weights_file=f"{path.name} (SHA-256 {digest})",
        is_fid_inception=official,
    )


def squeezenet_network(weights: str | Path | None = None) -> FeatureNetwork:
    """SqueezeNet 1.1's last feature maps, averaged over positions: 512 features. A distance on them is not FID.

    Args:
        weights: A file with torchvision's SqueezeNet 1.1 or its `features` alone, such as LPIPS's backbone; default
            torchvision's ImageNet weights.

    Raises:
        OSError, ValueError: If the weights cannot be had; see `weight_files`.
    """
    path = locate(BACKBONES["squeeze"], weights)
    module = PooledSqueezeNet()
    load_into(module.features, backbone_features(load_state(path)), path)
    return FeatureNetwork(
        name="squeezenet1_1 features, global average pooling",
        module=module.eval().requires_grad_(False),
        resize_filter=f"bilinear, antialiased, to {_SQUEEZENET_SIZE}×{_SQUEEZENET_SIZE}",
        weights_sha256=weights_sha256(module),
        weights_file=f"{path.name} (SHA-256 {file_sha256(path)})",
    )


class PooledSqueezeNet(nn.Module):
    """torchvision's SqueezeNet 1.1 features, averaged over positions: uint8 (B, 3, H, W) to (B, 512)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import squeezenet1_1

        self.features = squeezenet1_1(weights=None).features
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes, normalises as torchvision's ImageNet models expect, and pools the last maps."""
        size = (_SQUEEZENET_SIZE, _SQUEEZENET_SIZE)
        pixels = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
        return self.features((pixels - self.mean) / self.std).mean(dim=(2, 3))
