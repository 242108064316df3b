"""Metrics of images, codes and label maps as `evaluate.Metric`s that keep running statistics, not images.

| module | class | inputs |
|---|---|---|
| `fid` | `FID`: Fréchet distance, optionally KID, Inception Score, precision and recall | predictions, references |
| `lpips` | `LPIPS`: learned perceptual distance on SqueezeNet, AlexNet or VGG | predictions, references |
| `reconstruction` | `Reconstruction`: MSE, RMSE, PSNR, SSIM | predictions, references |
| `codebook_usage` | `CodebookUsage`: perplexity, entropy and active codes per level | codes |
| `segmentation` | `Segmentation`: pixel accuracy and mean IoU | predictions, references |

Every module is also a script for `evaluate.load(hq_tokenizers.metrics.fid.__file__, …)` and can be combined with
others by `evaluate.combine`. Images are uint8 in [0, 255] or floats in [0, 1], (B, C, H, W), or lists of PIL images. A
result carries its `provenance`: reference set and hash, feature network and hash, image size, versions.

With several processes each adds its share; `metric.gather()` on every process, then `metric.compute()`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import codebook_usage, fid, lpips, reconstruction, segmentation
    from .codebook_usage import CodebookUsage
    from .fid import FID
    from .lpips import LPIPS
    from .pretrained.feature_networks import FeatureNetwork, inception_network, squeezenet_network
    from .pretrained.lpips_network import load_lpips
    from .reconstruction import Reconstruction
    from .segmentation import Segmentation

__all__ = [
    "FID",
    "LPIPS",
    "CodebookUsage",
    "FeatureNetwork",
    "Reconstruction",
    "Segmentation",
    "codebook_usage",
    "fid",
    "inception_network",
    "load_lpips",
    "lpips",
    "reconstruction",
    "segmentation",
    "squeezenet_network",
]

if not TYPE_CHECKING:
    _HOMES = ("codebook_usage", "fid", "lpips", "reconstruction", "segmentation")
    _HOMES += ("pretrained.feature_networks", "pretrained.lpips_network")

    def __getattr__(name: str) -> Any:
        """Imports what is asked for: `evaluate` and the networks take seconds."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in _HOMES:
            return importlib.import_module(f"{__name__}.{name}")
        homes = (importlib.import_module(f"{__name__}.{home}") for home in _HOMES)
        return next(getattr(home, name) for home in homes if getattr(home, name, None) is not None)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
