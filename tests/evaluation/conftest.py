"""A feature network that can be worked out by hand, and tiny models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hq_tokenizers import HQGeneratorModel, HQVAEConfig, HQVAEModel, RQPriorConfig, RQPriorModel
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork

NUM_FEATURES = 6


class SixPixels(nn.Module):
    """Six pixels of the first channel, and ten 'logits' of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("logits", torch.linspace(-1, 1, 10 * NUM_FEATURES).view(NUM_FEATURES, 10).cos() / 32)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = images[:, 0, 2:4, 2:5].flatten(1).float()
        return features, features @ self.logits


def six_pixel_network(weights: str | None = None) -> FeatureNetwork:
    return FeatureNetwork.from_module(SixPixels(), name="six pixels", resize_filter="none")


@pytest.fixture
def six_pixels(monkeypatch):
    """Takes the place of Inception."""
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.inception_network", six_pixel_network)


@pytest.fixture
def no_weights(monkeypatch):
    def fail(weights=None):
        raise OSError("the weights are not to be had")

    monkeypatch.setattr("hq_tokenizers.evaluation.networks.inception_network", fail)


@pytest.fixture
def distance_of():
    """Heusel et al.'s formula on uint8 images (B, C, H, W); tr (ΣΣ')^½ is the sum of the roots of the eigenvalues."""

    def distance(first: torch.Tensor, second: torch.Tensor) -> float:
        x, y = (images[:, 0, 2:4, 2:5].flatten(1).double().numpy() for images in (first, second))
        covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
        return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots.sum())

    return distance


@pytest.fixture
def held_out():
    """The first 40 held-out digits, uint8 levels 0 to 16 as floats in [0, 1], (40, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images[1500:1540] / 16).float()[:, None]


@pytest.fixture(scope="session")
def tokenizer():
    """Two groups, three levels; trained just enough that codes differ between images."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    groups = ["stride 4: 8", "stride 2: 8 x 2"]
    sizes = {"image_size": 8, "num_channels": 1, "hidden_size": 8, "codebook_dim": 4}
    model = HQVAEModel(HQVAEConfig(code_groups=groups, initial_log_variance=0.0, progressive=True, **sizes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    digits = torch.from_numpy(load_digits().images[:1500] / 16).float()[:, None]
    for batch in digits.split(25):
        model(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.advance()
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generator(tokenizer):
    torch.manual_seed(1)
    prior = RQPriorModel(
        RQPriorConfig(
            code_layout=tokenizer.code_layout().to_dict(),
            num_classes=3,
            hidden_size=16,
            num_hidden_layers=1,
            num_depth_layers=1,
            num_attention_heads=2,
            initializer_range=0.5,
        )
    ).eval()
    return HQGeneratorModel.from_sub_models(tokenizer, prior, {0: "cat", 1: "dog", 2: "frog"})


@pytest.fixture(scope="session")
def generator_dir(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    generator.save_pretrained(folder)
    return folder


@pytest.fixture
def write_images():
    """Writes uint8 images (B, C, H, W) into a folder, as PNG by default."""

    def write(folder, images: torch.Tensor, names=None, ending="png") -> None:
        for index, image in enumerate(images):
            path = folder / f"{names[index] if names else f'{index:03d}'}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(path)

    return write


@pytest.fixture
def six_pixel_images():
    """uint8 (30, 3, 8, 8) and (25, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, top, (n, 3, 8, 8), dtype=torch.uint8, generator=generator) for n, top in ((30, 256), (25, 200))
    ]
