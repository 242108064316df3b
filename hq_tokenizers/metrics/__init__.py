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
from typing import Any

_MODULE_OF = {
    "FID": "fid",
    "LPIPS": "lpips",
    "Reconstruction": "reconstruction",
    "CodebookUsage": "codebook_usage",
    "Segmentation": "segmentation",
    "FeatureNetwork": "feature_networks",
    "inception_network": "feature_networks",
    "squeezenet_network": "feature_networks",
    "load_lpips": "lpips_network",
}
_SCRIPTS = ("codebook_usage", "fid", "lpips", "reconstruction", "segmentation")

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _SCRIPTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SCRIPTS})
