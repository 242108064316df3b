"""Checkpoints of sony/sqvae, against a second forward pass and the paper's equations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hq_tokenizers.conversion.sqvae import convert_sqvae

State = dict[str, torch.Tensor]
DIM, CODES = 8, 12


class Network:
    """Their networks, layer by layer, whose weights are made up when they are first used."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(3)

    def get(self, name: str, *shape: int, around: float = 0.0) -> torch.Tensor:
        if name not in self.state:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            self.state[name] = around + torch.randn(shape, generator=self.generator) * fan_in**-0.5
        return self.state[name]

    def conv(self, x: torch.Tensor, name: str, out: int, kernel: int, stride: int = 1) -> torch.Tensor:
        weight = self.get(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.get(f"{name}.bias", out), stride=stride, padding=(kernel - 1) // 2)

    def transposed(self, x: torch.Tensor, name: str, out: int, kernel: int, stride: int) -> torch.Tensor:
        weight = self.get(f"{name}.weight", x.shape[1], out, kernel, kernel)
        return F.conv_transpose2d(x, weight, self.get(f"{name}.bias", out), stride=stride, padding=1)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        width = x.shape[1]
        mean, variance = self.get(f"{name}.running_mean", width), self.get(f"{name}.running_var", width).abs() + 0.5
        self.state[f"{name}.running_var"] = variance
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(
            x, mean, variance, self.get(f"{name}.weight", width, around=1.0), self.get(f"{name}.bias", width)
        )

    def residual(self, x: torch.Tensor, name: str) -> torch.Tensor:
        h = self.norm(self.conv(F.relu(x), f"{name}.block.1", DIM, 3), f"{name}.block.2")
        return x + self.norm(self.conv(F.relu(h), f"{name}.block.4", DIM, 1), f"{name}.block.5")

    def sequence(self, x: torch.Tensor, name: str, layers: list[tuple[Any, ...]]) -> torch.Tensor:
        """Convolutions (out, kernel, stride), each followed by a norm and ReLU but for the last."""
        for index, layer in enumerate(layers):
            convolve = self.conv if name.startswith("encoder") else self.transposed
            x = convolve(x, f"{name}.{3 * index}", *layer)
            if index < len(layers) - 1:
                x = F.relu(self.norm(x, f"{name}.{3 * index + 1}"))
        return x


# Of each data set: channels, the convolutions of encoder and decoder, a norm at the end of the former.
HALF = DIM // 2
SHAPES: dict[str, tuple[int, list[Any], list[Any], bool]] = {
    "MNIST": (1, [(HALF, 4, 2), (DIM, 4, 2)], [(HALF, 4, 2), (1, 4, 2)], False),
    "CIFAR10": (
        *(3, [(HALF, 4, 2), (DIM, 4, 2), (DIM, 3, 1)], [(DIM, 3, 1), (HALF, 4, 2), (3, 4, 2)]),
        True,
    ),
    "CelebA": (3, [(HALF, 4, 2), (DIM, 4, 2), (DIM, 3, 1)], [(DIM, 3, 1), (HALF, 4, 2), (3, 4, 2)], False),
    "CelebAMask_HQ": (
        *(4, [(HALF, 4, 2), (DIM, 4, 2), (DIM, 4, 2)], [(DIM, 4, 2), (HALF, 4, 2), (4, 4, 2)]),
        False,
    ),
}


def forward(
    network: Network, dataset: str, kind: str, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Their forward pass in evaluation: decoder's last layer, codes (B, h, w), log P̂ (B, h, w, K), continuous term."""
    _, down, up, last_norm = SHAPES[dataset]
    h = network.sequence(inputs, "encoder.conv", down)
    if last_norm:
        h = F.relu(network.norm(h, f"encoder.conv.{3 * len(down) - 2}"))
    h = network.residual(h, "encoder.res.0")
    latents = network.residual(h, "encoder.res_m").permute(0, 2, 3, 1)
    # Some of the latents with noise: every code has a chance to be the nearest.
    chosen = torch.randperm(latents[..., 0].numel(), generator=torch.Generator().manual_seed(2))[:CODES]
    network.state["codebook"] = codebook = 1.2 * latents.reshape(-1, DIM)[chosen] + 0.1
    scalar = network.get("log_param_q_scalar").exp()
    if kind == "vmf":
        latents, codebook = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
        logits = (scalar + 1) * latents @ codebook.T
    else:
        log_variance = torch.zeros(())
        if kind != "gaussian_1":
            log_variance = network.residual(h, "encoder.res_v").permute(0, 2, 3, 1)
            dims = {"gaussian_2": (1, 2, 3), "gaussian_3": (3,), "gaussian_4": ()}[kind]
            log_variance = log_variance.mean(dims, keepdim=True) if dims else log_variance
        precision = 1 / (log_variance.exp() + scalar) * torch.ones_like(latents)
        distances = (latents[..., None, :] - codebook).square()
        logits = -0.5 * (distances * precision[..., None, :]).sum(-1)
    codes = logits.argmax(-1)
    quantized = codebook[codes]
    if kind == "vmf":
        continuous = ((scalar + 1) * latents * (latents - quantized)).sum((1, 2, 3)).mean()
    else:
        continuous = (0.5 * precision * (latents - quantized).square()).sum((1, 2, 3)).mean()
    decoded = quantized.permute(0, 3, 1, 2)
    for block in range(1 if dataset.startswith("Celeb") else 2):
        decoded = network.residual(decoded, f"decoder.res.{block}")
    decoded = network.sequence(decoded, "decoder.convt", up)
    return decoded, codes, torch.log_softmax(logits, -1), continuous


def settings(dataset: str, kind: str) -> dict[str, Any]:
    network = {"name": "resnet", "num_rb": 2}
    if dataset == "CelebAMask_HQ":
        network |= {"num_class": 3, "act_decoder": "exp"}
    quantization = {"size_dict": CODES, "dim_dict": DIM}
    model = {"param_var_q": kind}
    return {"dataset": {"name": dataset}, "model": model, "network": network, "quantization": quantization}


def checkpoint(network: Network, dataset: str, path: Path) -> Path:
    """Their file: of a model in DataParallel, with the first convolution for CelebA in a list of its own."""
    state = dict(network.state)
    if dataset == "CelebA":
        for part in ("weight", "bias"):
            state[f"encoder.conv.0.0.{part}"] = state.pop(f"encoder.conv.0.{part}")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path / "best.pt")
    return path / "best.pt"


KINDS = [
    *(("MNIST", "gaussian_1"), ("CIFAR10", "gaussian_1"), ("CIFAR10", "vmf")),
    *(("CelebA", f"gaussian_{number}") for number in (1, 2, 3, 4)),
]


@pytest.mark.parametrize(("dataset", "kind"), KINDS)
def test_images(tmp_path: Path, dataset: str, kind: str) -> None:
    size = {"MNIST": 28, "CIFAR10": 32, "CelebA": 64}[dataset]
    pixels = torch.rand(2, SHAPES[dataset][0], size, size, generator=torch.Generator().manual_seed(1))
    network = Network()
    decoded, codes, log_probabilities, continuous = forward(network, dataset, kind, pixels)
    if kind == "gaussian_1":
        # Type I has log σ² = 0 in the place of a network's: the variance of the vision code is 1 + exp(s).
        assert network.state["log_param_q_scalar"].shape == ()
    learned = dataset == "MNIST"
    if learned:
        network.state["logvar_x"] = torch.tensor(-2.5)
    model = convert_sqvae(checkpoint(network, dataset, tmp_path), settings(dataset, kind), None)
    assert model.config.image_size == size
    found = model.encode(pixels)
    assert torch.equal(found.groups[0][..., 0], codes)
    assert len(codes.unique()) > 3
    torch.testing.assert_close(model.decode(found), decoded.sigmoid(), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.posterior(pixels)[0], log_probabilities, rtol=1e-4, atol=1e-4)
    terms = model(pixels).terms
    torch.testing.assert_close(terms["continuous"], continuous, rtol=1e-4, atol=1e-4)
    negative_entropy = (log_probabilities.exp() * log_probabilities).sum() / 2
    constant = codes[0].numel() * math.log(CODES)
    torch.testing.assert_close(terms["discrete"], negative_entropy + constant, rtol=1e-4, atol=1e-3)
    squared = (decoded.sigmoid() - pixels).square().sum() / 2
    half = pixels[0].numel() / 2
    theirs = squared / (2 * math.exp(-2.5)) + half * -2.5 if learned else half * math.log(squared / pixels[0].numel())
    constant = half * math.log(2 * math.pi) + (0 if learned else half)
    assert terms["reconstruction"].item() == pytest.approx(theirs.item() + constant if learned else theirs + constant)


def test_label_maps(tmp_path: Path) -> None:
    labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    network = Network()
    inputs = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    decoded, codes, _, continuous = forward(network, "CelebAMask_HQ", "vmf", inputs)
    decoded = F.softplus(decoded)
    network.state["log_kappa_inv"] = torch.tensor([-3.0])
    path = checkpoint(network, "CelebAMask_HQ", tmp_path)
    model = convert_sqvae(path, settings("CelebAMask_HQ", "vmf"), None)
    assert torch.equal(model.encode(labels).groups[0][..., 0], codes)
    assert len(codes.unique()) > 3
    assert torch.equal(model.decode(model.encode(labels)), decoded[:, :3].argmax(1))
    output = model(labels)
    torch.testing.assert_close(output.terms["continuous"], continuous, rtol=1e-4, atol=1e-4)
    alignment = F.normalize(decoded, dim=1).gather(1, labels[:, None]).sum() / 2
    # log C_F(κ) for F = 4: log κ − 2 log 2π − log I_1(κ).
    kappa = torch.tensor(math.exp(3), dtype=torch.float64)
    normalizer = kappa.log() - 2 * math.log(2 * math.pi) - (torch.special.i1e(kappa).log() + kappa)
    expected = -kappa * alignment - 64 * 64 * normalizer
    assert output.terms["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("dataset", "name", "LSUN", "dataset.name is 'LSUN'"),
        ("model", "param_var_q", "gaussian_9", "param_var_q is 'gaussian_9'"),
        ("model", "param_var_q", "gaussian_4", "different models: encoder.variance_head"),
        ("quantization", "size_dict", 13, "different models: quantizer.codebook.weight has the shape"),
        ("network", "num_rb", 3, "different models: decoder.blocks.2"),
    ],
)
def test_settings_of_another_model_are_refused(
    tmp_path: Path, section: str, name: str, value: Any, message: str
) -> None:
    network = Network()
    forward(network, "MNIST", "gaussian_1", torch.rand(1, 1, 28, 28))
    given = settings("MNIST", "gaussian_1")
    given[section][name] = value
    with pytest.raises(ValueError, match=message):
        convert_sqvae(checkpoint(network, "MNIST", tmp_path), given, None)


def test_settings_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config is needed"):
        convert_sqvae(tmp_path / "best.pt", {}, None)
