"""Data and networks the metric tests share."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork


class PixelFeatures(nn.Module):
    """Features that can be worked out by hand: the first `width` pixels, with ten linear 'logits'."""

    def __init__(self, width: int, with_logits: bool = False) -> None:
        super().__init__()
        self.width, self.with_logits = width, with_logits
        self.register_buffer("logits", torch.linspace(-1, 1, 10 * width).view(width, 10).cos() / 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        features = images.flatten(1)[:, : self.width].float()
        return (features, features @ self.logits) if self.with_logits else features


@pytest.fixture
def pixel_network() -> FeatureNetwork:
    return FeatureNetwork.from_module(PixelFeatures(6), name="pixels", resize_filter="none")


@pytest.fixture
def classifier_network() -> FeatureNetwork:
    return FeatureNetwork.from_module(PixelFeatures(6, with_logits=True), name="pixels", resize_filter="none")


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 (40, 3, 8, 8)."""
    return torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def other_images() -> torch.Tensor:
    """uint8 (30, 3, 8, 8), darker."""
    return torch.randint(0, 200, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def lpips_folder() -> Path:
    """The folder with LPIPS's SqueezeNet backbone and example images."""
    root = Path(os.environ.get("HQ_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (root / "lpips_squeeze").is_dir():
        pytest.skip(f"no {root}/lpips_squeeze; set HQ_TEST_DATA to the folder of test data")
    return root / "lpips_squeeze"


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of torch-fidelity's Inception network, random but scaled so that features and classes vary."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Unloaded("random", ["2048"], empty)
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        network.fc.weight *= 50
    path = tmp_path_factory.mktemp("weights") / "random_inception.pth"
    torch.save(network.state_dict(), path)
    return path
