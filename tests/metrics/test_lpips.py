"""LPIPS against its published values, torchmetrics, and what is no input for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hq_tokenizers.metrics.lpips import LPIPS
from hq_tokenizers.metrics.pretrained.lpips_network import _MINIMUM_SIZE, LPIPSNetwork, load_lpips


@pytest.fixture
def backbone(lpips_folder: Path) -> Path:
    return lpips_folder / "squeeze.backbone.pth"


def empty_features(net_type: str) -> torch.nn.Sequential:
    """The backbone's convolutional part, uninitialised, without spending time on its large classifier."""
    import torchvision

    names = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
    with torch.device("meta"):
        model = getattr(torchvision.models, names[net_type])(weights=None)
    return model.features.to_empty(device="cpu")


@pytest.fixture(scope="module")
def random_backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with the features of random AlexNet, VGG-16 and SqueezeNet, named as in torchvision's models."""
    folder = tmp_path_factory.mktemp("backbones")
    generator = torch.Generator().manual_seed(0)
    for name in ("alex", "vgg", "squeeze"):
        features = empty_features(name)
        for parameter in features.parameters():
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
        torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in ("alex", "vgg", "squeeze")}


@pytest.fixture(scope="module")
def networks(random_backbones: dict[str, Path]) -> dict[str, LPIPSNetwork]:
    return {name: load_lpips(name, path) for name, path in random_backbones.items()}


def test_value_of_torchmetrics_documentation(backbone: Path) -> None:
    torch.manual_seed(123)
    predictions, references = torch.rand(10, 3, 100, 100), torch.rand(10, 3, 100, 100)
    result = LPIPS(weights=backbone).compute(predictions=predictions, references=references)
    assert result["lpips"] == pytest.approx(0.1008, abs=5e-5)


@pytest.mark.parametrize(("file", "expected"), [("ex_p0.png", 0.7110), ("ex_p1.png", 0.1479)])
def test_values_of_the_authors_example(lpips_folder: Path, backbone: Path, file: str, expected: float) -> None:
    metric = LPIPS(weights=backbone)
    metric.add(
        prediction=Image.open(lpips_folder / file).convert("RGB"),
        reference=Image.open(lpips_folder / "ex_ref.png").convert("RGB"),
    )
    assert metric.compute()["lpips"] == pytest.approx(expected, abs=5e-5)


def test_mean_over_images_for_any_batching_and_form(backbone: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(2)]
    metric = LPIPS(weights=backbone)
    whole = metric.compute(predictions=pair[0], references=pair[1])
    for index in range(5):
        metric.add(prediction=pair[0][index], reference=pair[1][index])
    assert len(metric) == 5
    single = metric.compute()
    assert single["lpips"] == pytest.approx(whole["lpips"], rel=1e-6)
    assert single["provenance"] == whole["provenance"]
    floats = metric.compute(predictions=pair[0] / 255, references=pair[1] / 255)
    assert floats["lpips"] == pytest.approx(whole["lpips"], rel=1e-6)


@pytest.mark.parametrize("net_type", ["alex", "vgg", "squeeze"])
def test_any_backbone_file_equals_torchmetrics_on_that_backbone(
    net_type: str, random_backbones: dict[str, Path], networks: dict[str, LPIPSNetwork]
) -> None:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    ours = networks[net_type]
    theirs = _NoTrainLpips(net=net_type, pnet_rand=True)
    features = empty_features(net_type)
    state = torch.load(random_backbones[net_type], weights_only=True)
    features.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    # torchmetrics' slices hold the backbone's own layers: put these in, by their torchvision index.
    for child in theirs.net.modules():
        if isinstance(child, torch.nn.Sequential):
            for index in list(child._modules):
                if index.isdigit():
                    child._modules[index] = features[int(index)]
    x, y = (torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with torch.no_grad():
        expected = theirs(x, y, normalize=True).flatten()
        assert torch.equal(ours(x, y), expected)
    assert expected.min() > 0


def test_provenance_names_backbone_and_reference(backbone: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    metric = LPIPS(weights=backbone, reference_name="noise", reference_split="test")
    provenance = metric.compute(predictions=images, references=images.flip(0))["provenance"]
    assert provenance["feature_network"]["name"] == "LPIPS v0.1 squeeze"
    assert "435cedb387e95bc8" in provenance["feature_network"]["weights_file"]
    assert provenance["reference"]["name"] == "noise"
    assert provenance["image_size"] == [32, 32]
    assert provenance["num_images"] == 2


def test_network_is_frozen_but_differentiable_in_the_images(backbone: Path) -> None:
    network = load_lpips("squeeze", backbone).train()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    network(images, torch.rand(1, 3, 32, 32)).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_autocast_does_not_reach_the_network(backbone: Path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    metric = LPIPS(weights=backbone)
    expected = metric.compute(predictions=images, references=images.flip(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert metric.compute(predictions=images, references=images.flip(0)) == expected


@pytest.mark.parametrize("net_type", ["alex", "vgg", "squeeze"])
def test_smallest_size_is_exact(net_type: str, networks: dict[str, LPIPSNetwork]) -> None:
    network = networks[net_type]
    size = _MINIMUM_SIZE[net_type]
    assert torch.isfinite(network(torch.rand(1, 3, size, size), torch.rand(1, 3, size, size))).all()
    small = torch.rand(1, 3, size - 1, size)
    with pytest.raises(ValueError, match=f"needs images of at least {size}×{size}, got {size - 1}×{size}"):
        network(small, small)
    with pytest.raises(RuntimeError):  # and torchmetrics could not have computed it
        network.lpips(small, small)


class TestRefusals:
    def test_pairs(self, backbone: Path) -> None:
        metric = LPIPS(weights=backbone)
        images = torch.rand(2, 3, 32, 32)
        with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\) and references \(1, 3, 32, 32\)"):
            metric.add_batch(predictions=images, references=images[:1])
        with pytest.raises(TypeError, match=r"torch.uint8 and references torch.float32.*images / 255"):
            metric.add_batch(predictions=images.byte(), references=images)
        with pytest.raises(ValueError, match="LPIPS looks at RGB images, got 1 channel"):
            metric.add_batch(predictions=images[:, :1], references=images[:, :1])
        with pytest.raises(TypeError, match=r"references: images are a tensor .* got NoneType"):
            metric.add_batch(predictions=images)
        with pytest.raises(ValueError, match="lpips takes predictions, references; got codes"):
            metric.add_batch(predictions=images, references=images, codes=images)
        assert len(metric) == 0

    def test_net_type_and_files(self, tmp_path: Path, backbone: Path) -> None:
        with pytest.raises(ValueError, match="must be one of squeeze, alex, vgg, got 'resnet'"):
            LPIPS(net_type="resnet")
        with pytest.raises(FileNotFoundError, match=r"no weight file at .*squeezenet1_1-b8a52dc0.pth"):
            LPIPS(weights=tmp_path / "absent.pth")
        with pytest.raises(ValueError, match="does not hold the weights of Alexnet") as error:
            LPIPS(net_type="alex", weights=backbone)
        assert len(str(error.value)) < 600
