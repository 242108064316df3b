"""LPIPS and a discriminator in the training of tokenizers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from hq_tokenizers.losses.adversarial import hinge_loss
from hq_tokenizers.metrics.pretrained.lpips_network import load_lpips
from hq_tokenizers.models.presets import rq_vae, rsq_vae, sq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import AdversarialConfig, PerceptualConfig, TokenizerTrainingConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.checkpoints import list_checkpoints
from hq_tokenizers.training.image_losses import ImageLosses, last_weight
from hq_tokenizers.training.tokenizer import train_tokenizer

SIZE = {"hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
AGAINST = {"num_layers": 1, "hidden_size": 4}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A file of random weights in the place of SqueezeNet's."""
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "squeeze.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).features.state_dict(), path)
    return path


def _config(folder="unused", **options):
    data = options.pop("data", DataConfig(train_split="train[:100]", validation_split="test[:20]"))
    model = {"preset": "sq_vae", "network": "digits", **SIZE}
    options = {"batch_size": 20, "epochs": 4, "log_steps": 4, "schedule": "constant", "model": model, **options}
    return TokenizerTrainingConfig(output_dir=str(folder), data=data, **options)


def _losses(model, **options) -> ImageLosses:
    return ImageLosses(_config(**options), model, create_accelerator())


def _model(build=sq_vae, **options):
    torch.manual_seed(1)
    sizes = {**SIZE, **({} if build is sq_vae else {"num_levels": 2})}
    config = build("digits", **{**sizes, "image_size": 32, "num_channels": 3, **options})
    return AutoModel.from_config(config).train()


@pytest.mark.parametrize("build", [sq_vae, rsq_vae, rq_vae])
@pytest.mark.parametrize("adversarial", [False, True])
def test_value_and_gradient_are_those_of_the_formula(build, adversarial, backbone):
    """Against one loss written down as it is, and differentiated as a whole."""
    model = _model(build)
    options = {"adversarial": AdversarialConfig(start_step=0, weight=0.3, **AGAINST)} if adversarial else {}
    perceptual = PerceptualConfig(network="squeeze", weights=str(backbone), weight=0.2)
    losses = _losses(model, perceptual=perceptual, **options)
    losses.before_step(0)
    images = torch.rand(3, 3, 32, 32)
    reconstruction = model(images).reconstruction
    weight = last_weight(model.decoder)
    mse = (reconstruction - images).square().mean()
    distance = mse + 0.2 * load_lpips("squeeze", backbone)(reconstruction, images).mean()
    expected = distance - mse
    if adversarial:
        judgement = -losses.discriminator(reconstruction).mean()
        norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (distance, judgement)]
        expected = expected + 0.3 * norms[0] / (norms[1] + 1e-4) * judgement
    unit = 1 / 0.06 if build is rq_vae else 3 * 32 * 32 / (2 * mse.detach())
    added, figures = losses(reconstruction, images)
    torch.testing.assert_close(added, unit * expected, rtol=1e-4, atol=1e-3)
    parameters = list(model.decoder.parameters())
    found = torch.autograd.grad(added, parameters, retain_graph=True)
    wanted = torch.autograd.grad(unit * expected, parameters)
    # Biases before batch norms have no gradient but rounding.
    largest = max(gradient.abs().max().item() for gradient in wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest)
    assert figures.keys() == {"lpips"} | ({"adversarial", "adversarial_weight"} if adversarial else set())


def test_the_last_weight_makes_the_pixels():
    for build in (sq_vae, rsq_vae):
        model = _model(build)
        last = [module for module in model.decoder.modules() if isinstance(module, torch.nn.ConvTranspose2d)][-1]
        assert last.out_channels == 3
        assert last_weight(model.decoder) is last.weight


def test_a_weight_means_the_same_for_every_image_size(backbone):
    """The gradient of LPIPS beside that of the squared error: tiled images have the same distances and errors."""
    shares = []
    small = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    for tiles in (1, 2):
        perceptual = PerceptualConfig(network="squeeze", weights=str(backbone), weight=0.2)
        model = _model(image_size=32 * tiles)
        losses = _losses(model, perceptual=perceptual)
        images, pixels = (each.repeat(1, 1, tiles, tiles) for each in small)
        decoded = pixels.logit().requires_grad_()
        added, figures = losses(decoded.sigmoid(), images)
        change = added / (model.likelihood.nll(decoded, images).detach() * 0 + images[0].numel())
        shares.append((change / figures["lpips"]).item())
    assert shares[0] == pytest.approx(shares[1], rel=1e-5)
    error = (small[0] - small[1]).square().mean().item()
    assert shares[0] == pytest.approx(0.2 / (2 * error), rel=1e-4)


def test_the_phases_of_a_discriminator():
    adversarial = AdversarialConfig(start_step=7, discriminator_warmup_steps=3, **AGAINST)
    losses = _losses(_model(), adversarial=adversarial)
    images, reconstruction = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    said = {}
    for step in range(9):
        said[step] = losses.before_step(step)
        with torch.enable_grad():
            decoded = reconstruction * torch.ones((), requires_grad=True)
        losses._last_weight = reconstruction
        added, figures = losses(decoded, images)
        judged = losses.discriminator_loss()
        assert (judged is not None) == (step >= 4), step
        assert ("adversarial" in figures) == (step >= 7), step
        assert (added.item() != 0) == (step >= 7), step
        assert losses.discriminator_loss() is None
        if judged is not None:
            loss, further = judged
            real, fake = losses.discriminator(images), losses.discriminator(reconstruction)
            assert loss.item() == pytest.approx(hinge_loss(real, fake).item())
            assert further["real_logit"].item() == pytest.approx(real.mean().item())
    assert {step: texts for step, texts in said.items() if texts} == {
        4: ["Step 4: the discriminator trains from here on."],
        7: ["Step 7: the discriminator counts from here on."],
    }


def _checkpoint(folder):
    newest = list_checkpoints(folder)[-1]
    return {f"{path.name}/{k}": v for path in newest.glob("*.safetensors") for k, v in load_file(path).items()}


OPTIONS = [
    {"norm": "spectral", "discriminator_warmup_steps": 4},
    {"norm": "batch", "learning_rate_factor": 0.5, "discriminator_warmup_steps": 100},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_two_epochs_and_two_more_are_four(tmp_path, options, capsys):
    adversarial = AdversarialConfig(start_step=7, **AGAINST, **options)
    more = {"ema_decay": 0.9, "adversarial": adversarial, "gradient_accumulation": 2, "max_grad_norm": 5.0}
    report = train_tokenizer(_config(tmp_path / "whole", **more))
    said = capsys.readouterr().out
    assert said.count("Step 7: the discriminator counts from here on.") == 1
    train_tokenizer(_config(tmp_path / "parts", **more, epochs=2))
    train_tokenizer(_config(tmp_path / "parts", **more))
    whole, parts = _checkpoint(tmp_path / "whole"), _checkpoint(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert any(name.startswith("discriminator.safetensors/") for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    first, second = ([r for r in read_history(tmp_path / n) if r["split"] == "validation"] for n in ("whole", "parts"))
    assert first == second
    # Nothing of the discriminator is in the tokenizer, and nothing of it is averaged.
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    assert saved.keys() == AutoModel.from_pretrained(tmp_path / "whole").state_dict().keys()
    on_disk = json.loads((tmp_path / "whole" / "report.json").read_text())["discriminator"]
    assert on_disk == report["discriminator"]
    assert on_disk.keys() == {
        *("num_parameters", "discriminator_loss", "real_logit", "fake_logit", "adversarial", "adversarial_weight")
    }


def test_before_it_counts_a_discriminator_changes_nothing(tmp_path):
    without = train_tokenizer(_config(tmp_path / "without"))
    adversarial = AdversarialConfig(start_step=100, discriminator_warmup_steps=95, **AGAINST)
    with_it = train_tokenizer(_config(tmp_path / "with", adversarial=adversarial))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "with"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert with_it["test"] == without["test"]
    records = [r for r in read_history(tmp_path / "with") if r["split"] == "train"]
    # It trains from step 5 on: the record at 8 is the mean of the three steps that it was trained in.
    assert [r["step"] for r in records if "discriminator_loss" in r] == [8, 12, 16, 20]
    assert all(0.3 < r["discriminator_loss"] < 1.2 for r in records[1:])


def test_its_figures_are_drawn(tmp_path, monkeypatch):
    panels = {}
    monkeypatch.setattr(
        "hq_tokenizers.training.tokenizer.save_curves", lambda history, titles, path: panels.update(titles)
    )
    train_tokenizer(_config(tmp_path, epochs=1, adversarial=AdversarialConfig(start_step=0, **AGAINST)))
    assert panels["discriminator"] == ["discriminator_loss", "real_logit", "fake_logit"]
    assert panels["adversarial weight"] == ["adversarial_weight"]


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    """Of the discriminator, whose singular vectors move once a step, however many parts that has."""
    adversarial = AdversarialConfig(start_step=0, **AGAINST)
    images, reconstructions = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    gradients = []
    for size in (4, 1):
        losses = _losses(_model(), adversarial=adversarial)
        losses.before_step(0)
        for real, fake in zip(images.split(size), reconstructions.split(size), strict=True):
            losses._pair = real, fake
            (losses.discriminator_loss()[0] * size / 4).backward()
        gradients.append([parameter.grad for parameter in losses.discriminator.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_lpips_weights_that_are_missing_are_an_error_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", _offline)
    config = _config(tmp_path / "run", perceptual=PerceptualConfig(network="alex"))
    with pytest.raises(OSError, match=r"Download https://\S*alexnet\S* .*The option for weights is perceptual.weights"):
        train_tokenizer(config)
    config.perceptual = PerceptualConfig(network="squeeze", weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(OSError, match=r"no weight file at .*nowhere.pth"):
        train_tokenizer(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def _offline(*arguments, **named):
    raise OSError("no connection")


def test_images_that_are_too_small_are_refused(backbone):
    model = _model(image_size=8)
    with pytest.raises(ValueError, match="LPIPS on squeeze needs images of at least 17×17, got 8×8"):
        _losses(model, perceptual=PerceptualConfig(network="squeeze", weights=str(backbone)))
    with pytest.raises(ValueError, match=r"adversarial.num_layers 2 needs images of at least 12×12, got 8×8"):
        _losses(model, adversarial=AdversarialConfig(start_step=0, num_layers=2))


def test_a_perceptual_run_knows_its_network_and_improves_lpips(tmp_path, backbone):
    """Grey images, and weights that move to another folder but must stay the same."""
    folder = tmp_path / "images"
    noise = torch.Generator().manual_seed(0)
    for split, number in (("train", 24), ("test", 8)):
        (folder / split).mkdir(parents=True)
        for index in range(number):
            coarse = torch.rand(1, 1, 4, 4, generator=noise)
            pixels = torch.nn.functional.interpolate(coarse, scale_factor=8)[0, 0].mul(255).byte().numpy()
            Image.fromarray(pixels).save(folder / split / f"{index}.png")
    data = DataConfig(name="imagefolder", path=str(folder))
    perceptual = PerceptualConfig(network="squeeze", weights=str(backbone), start_step=3)
    options = {"data": data, "batch_size": 8, "log_steps": 1, "perceptual": perceptual}
    train_tokenizer(_config(tmp_path / "run", **options, max_steps=5))
    records = [r for r in read_history(tmp_path / "run") if r["split"] == "train"]
    assert [r["step"] for r in records if "lpips" in r] == [4, 5]
    moved = backbone.with_name("moved.pth")
    moved.write_bytes(backbone.read_bytes())
    options["perceptual"] = PerceptualConfig(network="squeeze", weights=str(moved), start_step=3)
    train_tokenizer(_config(tmp_path / "run", **options, max_steps=6))
    state = torch.load(moved, weights_only=True)
    torch.save({name: value * 2 for name, value in state.items()}, moved)
    with pytest.raises(ValueError, match="perceptual_weights_sha256 was"):
        train_tokenizer(_config(tmp_path / "run", **options, max_steps=7))
    names = {name for path in list_checkpoints(tmp_path / "run")[-1].iterdir() for name in [path.name]}
    assert names == {"model.safetensors", "optimizer.safetensors", "process-0.safetensors", "state.json"}
    assert all(math.isfinite(r["lpips"]) for r in records if "lpips" in r)
