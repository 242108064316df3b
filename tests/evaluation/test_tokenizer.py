"""The command's figures of a tokenizer against a second computation from its own encode and decode."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers import SQVAEConfig, SQVAEModel, vae
from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.evaluation.tokenizer import best_median_worst
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, MetricConfig

DATA = DataConfig(validation_split="test[:40]")


def _evaluate(tokenizer, folder, **options):
    options = {"data": DATA, "metrics": MetricConfig(lpips=None), "batch_size": 16, **options}
    return evaluate(EvaluateConfig(tokenizer=str(tokenizer), output_dir=str(folder), **options))


@pytest.fixture
def report(six_pixels, tokenizer_dir, tmp_path):
    return _evaluate(tokenizer_dir, tmp_path)["results"]


def test_pixel_errors_of_all_and_of_the_first_levels(report, tokenizer, held_out):
    codes = tokenizer.encode(held_out)
    x = held_out.double().numpy().reshape(40, -1)
    for level in range(3):
        y = tokenizer.decode(codes.truncate(level + 1)).clamp(0, 1).double().numpy().reshape(40, -1)
        errors = ((x - y) ** 2).mean(1)
        assert report["partial"]["mse"][level] == pytest.approx(errors.mean(), rel=1e-5)
        assert report["partial"]["psnr"][level] == pytest.approx((-10 * np.log10(errors)).mean(), rel=1e-5)
    assert len(set(report["partial"]["mse"])) == 3
    whole = report["reconstruction"]
    assert (whole["mse"], whole["psnr"]) == (report["partial"]["mse"][2], report["partial"]["psnr"][2])
    assert whole["rmse"] == pytest.approx(errors.mean() ** 0.5, rel=1e-5)


def test_distance_and_usage(report, tokenizer, held_out, distance_of):
    codes = tokenizer.encode(held_out)
    decoded = (tokenizer.decode(codes).clamp(0, 1) * 255).round().byte()
    assert report["rfid"]["frechet_distance"] == pytest.approx(
        distance_of(decoded, (held_out * 255).round().byte()), rel=1e-6
    )
    for level, indices in enumerate(codes.levels()):
        shares = np.bincount(indices.flatten().numpy(), minlength=8) / indices.numel()
        used = shares[shares > 0]
        assert report["codebook_usage"]["active_codes"][level] == len(used)
        assert report["codebook_usage"]["perplexity"][level] == pytest.approx(np.exp(-(used * np.log(used)).sum()))
    assert max(report["codebook_usage"]["active_codes"]) > 1


def test_codes_of_a_beam(report, six_pixels, tokenizer_dir, tokenizer, held_out, tmp_path):
    searched = _evaluate(tokenizer_dir, tmp_path / "searched", beam_width=6)["results"]
    codes = tokenizer.encode(held_out, beam_width=6)
    error = float((tokenizer.decode(codes).clamp(0, 1) - held_out).square().mean())
    assert searched["reconstruction"]["mse"] == pytest.approx(error, rel=1e-5)
    assert searched["reconstruction"]["mse"] != pytest.approx(report["reconstruction"]["mse"], rel=1e-4)
    for level, (found, size) in enumerate(zip(codes.levels(), codes.layout.codebook_sizes, strict=True)):
        used = torch.bincount(found.flatten(), minlength=size).count_nonzero()
        assert searched["codebook_usage"]["active_codes"][level] == used
    report = json.loads((tmp_path / "searched" / "report.json").read_text())
    assert report["subject"]["beam_width"] == 6
    assert "40 images, beam width 6 |" in (tmp_path / "searched" / "model_card_row.md").read_text("utf-8")
    one_level = tmp_path / "one_level"
    SQVAEModel(SQVAEConfig(num_downsampling=1, image_size=8, num_channels=1, hidden_size=8)).save_pretrained(one_level)
    with pytest.raises(ValueError, match="beam_width is 2, but no grid of this tokenizer has several codes"):
        _evaluate(one_level, tmp_path / "impossible", beam_width=2)


def test_figures_do_not_depend_on_the_batch_size(report, six_pixels, tokenizer_dir, tmp_path):
    other = _evaluate(tokenizer_dir, tmp_path, batch_size=7)["results"]
    for metric, figures in report.items():
        for name, value in figures.items():
            if name != "provenance":
                assert other[metric][name] == pytest.approx(value, rel=1e-5), name


def test_lpips_with_real_weights(tokenizer_dir, tokenizer, data_folder, tmp_path, write_images):
    from hq_tokenizers.metrics import LPIPS

    weights = data_folder / "lpips_squeeze" / "squeeze.backbone.pth"
    images = torch.randint(0, 256, (6, 1, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_images(tmp_path / "images", images)
    torch.manual_seed(0)
    large = SQVAEModel(SQVAEConfig(image_size=[20, 24], num_channels=1, hidden_size=8, codebook_size=8)).eval()
    large.save_pretrained(tmp_path / "model")
    data = DataConfig(name="imagefolder", path=str(tmp_path / "images"), validation_split="train")
    metrics = MetricConfig(
        lpips_weights=str(weights), features="squeezenet", feature_weights=str(weights), allow_few_images=True
    )
    results = _evaluate(tmp_path / "model", tmp_path / "out", data=data, metrics=metrics)["results"]
    pixel_values = images.float() / 255
    direct = LPIPS(weights=weights)
    decoded = large(pixel_values).reconstruction.clamp(0, 1)
    direct.add_batch(predictions=decoded.repeat(1, 3, 1, 1), references=pixel_values.repeat(1, 3, 1, 1))
    assert results["lpips"]["lpips"] == pytest.approx(direct.compute()["lpips"], rel=1e-5)
    assert "squeeze.backbone.pth" in results["lpips"]["provenance"]["feature_network"]["weights_file"]
    assert results["rfid"]["provenance"]["metric"] == (
        "Fréchet distance on squeezenet1_1 features, global average pooling (not FID)"
    )
    assert "partial" not in results


def test_files(six_pixels, tokenizer_dir, tokenizer, held_out, tmp_path, capsys):
    from hq_tokenizers.reporting.figures import reconstruction_grid

    report = _evaluate(tokenizer_dir, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["results"] == report["results"]
    assert written["subject"]["kind"] == "tokenizer"
    for metric in ("reconstruction", "rfid", "codebook_usage"):
        reference = written["results"][metric]["provenance"]["reference"]
        assert (reference["name"], reference["split"], reference["num_images"]) == ("digits", "test[:40]", 40)
    screen = capsys.readouterr().out
    assert "Fréchet distance" in screen
    mse = report["results"]["reconstruction"]["mse"]
    assert f"| MSE, digits test[:40], 40 images | {mse:.4g} |" in (tmp_path / "model_card_row.md").read_text("utf-8")

    decoded = tokenizer.decode(tokenizer.encode(held_out))
    order = np.argsort(((decoded.clamp(0, 1) - held_out) ** 2).mean((1, 2, 3)).numpy())
    chosen = torch.tensor([*order[:8], *order[16:24], *order[-8:]])
    with Image.open(tmp_path / "reconstructions.png") as picture:
        coarse = [tokenizer.decode(tokenizer.encode(held_out), num_levels=number) for number in (1, 2)]
        versions = {"original": held_out, "level 1": coarse[0], "levels 1 to 2": coarse[1]}
        versions["reconstruction"] = decoded
        shown = {name: images[chosen] for name, images in versions.items()}
        assert np.array_equal(np.array(picture), reconstruction_grid(shown, 8, ("best", "median", "worst")))


def test_the_picture_of_few_images():
    errors = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    assert best_median_worst(errors, 8).tolist() == [1, 0, 3]
    assert best_median_worst(errors[:1], 8).tolist() == [0, 0, 0]
    assert best_median_worst(torch.arange(9.0).flip(0), 2).tolist() == [8, 7, 5, 4, 1, 0]


def test_what_nobody_asked_for_is_left_out_with_its_reason(no_weights, tokenizer_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.LPIPS", lambda **options: open("no such file"))  # noqa: SIM115
    report = _evaluate(tokenizer_dir, tmp_path, metrics=MetricConfig())
    assert set(report["results"]) == {"reconstruction", "codebook_usage", "partial"}
    assert set(report["left_out"]) == {"lpips", "rfid"}
    assert "not to be had" in report["left_out"]["rfid"]
    assert "left out: rfid: the weights are not to be had" in capsys.readouterr().out


def test_what_was_asked_for_is_not_left_out(no_weights, tokenizer_dir, tmp_path):
    with pytest.raises(OSError, match=r"not to be had The option for weights is metrics\.feature_weights"):
        _evaluate(tokenizer_dir, tmp_path, metrics=MetricConfig(lpips=None, features="inception"))
    with pytest.raises(ValueError, match=r"sound_network is for sounds, and the tokenizer makes images"):
        _evaluate(tokenizer_dir, tmp_path, metrics=MetricConfig(lpips=None, sound_network="a/b"))
    with pytest.raises(OSError, match=r"no weight file at nowhere\.pth.*metrics\.lpips_weights"):
        _evaluate(tokenizer_dir, tmp_path, metrics=MetricConfig(lpips_weights="nowhere.pth"))


def test_too_few_images_and_too_small_ones(six_pixels, tokenizer_dir, tmp_path, data_folder):
    few = DataConfig(validation_split="test[:6]")
    strict = MetricConfig(lpips=None, features="inception")
    with pytest.raises(ValueError, match=r"6 images to judge are too few .* needs 7: .*metrics\.allow_few_images true"):
        _evaluate(tokenizer_dir, tmp_path, data=few, metrics=strict)
    weights = str(data_folder / "lpips_squeeze" / "squeeze.backbone.pth")
    with pytest.raises(ValueError, match=r"at least 17×17, got 8×8.*metrics\.lpips null"):
        _evaluate(tokenizer_dir, tmp_path, metrics=MetricConfig(lpips="squeeze", lpips_weights=weights))


def test_a_tokenizer_of_other_images_and_a_report_that_would_be_lost(tokenizer_dir, tmp_path, write_images):
    write_images(tmp_path / "images", torch.zeros(2, 1, 12, 12, dtype=torch.uint8))
    data = DataConfig(name="imagefolder", path=str(tmp_path / "images"), validation_split="train")
    with pytest.raises(ValueError, match=r"data\.validation_split has images of 12×12 pixels"):
        _evaluate(tokenizer_dir, tmp_path, data=data)
    (tmp_path / "report.json").write_text('{"steps": 3}')
    with pytest.raises(ValueError, match="holds the report of another call"):
        _evaluate(tokenizer_dir, tmp_path)


def test_the_split_of_the_report(six_pixels, tokenizer_dir, tmp_path):
    data = DataConfig(validation_split="test[:40]", test_split="test[40:60]")
    provenance = _evaluate(tokenizer_dir, tmp_path, data=data)["results"]["reconstruction"]["provenance"]
    assert (provenance["reference"]["split"], provenance["num_images"]) == ("test[40:60]", 20)


def test_a_vae_has_no_codes(six_pixels, tmp_path, held_out):
    torch.manual_seed(0)
    model = SQVAEModel(vae("digits", hidden_size=8)).eval()
    model.save_pretrained(tmp_path / "model")
    report = _evaluate(tmp_path / "model", tmp_path / "out")
    assert set(report["results"]) == {"reconstruction", "rfid"}
    assert report["subject"]["code_layout"] is None
    expected = (model(held_out).reconstruction.clamp(0, 1) - held_out).square().mean().item()
    assert report["results"]["reconstruction"]["mse"] == pytest.approx(expected, rel=1e-5)


def test_label_maps(tmp_path, write_images):
    from sklearn.metrics import accuracy_score, jaccard_score

    torch.manual_seed(0)
    maps = torch.randint(0, 4, (10, 1, 8, 12), dtype=torch.uint8)
    write_images(tmp_path / "maps", maps)
    config = SQVAEConfig(
        image_size=[8, 12], num_classes=4, likelihood="categorical", hidden_size=8, num_downsampling=1, codebook_size=8
    )
    model = SQVAEModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    data = DataConfig(name="imagefolder", path=str(tmp_path / "maps"), validation_split="train", label_map_classes=4)
    results = _evaluate(tmp_path / "model", tmp_path / "out", data=data)["results"]
    truth = maps[:, 0].long()
    guess = model(truth).reconstruction
    pair = truth.flatten().numpy(), guess.flatten().numpy()
    assert results["segmentation"]["pixel_accuracy"] == pytest.approx(accuracy_score(*pair))
    assert results["segmentation"]["mean_iou"] == pytest.approx(jaccard_score(*pair, average="macro"))
    assert (tmp_path / "out" / "reconstructions.png").is_file()


def test_a_folder_keeps_the_report_of_one_subject(six_pixels, tokenizer_dir, tmp_path):
    data = DataConfig(validation_split="test[:40]")
    options = {"output_dir": str(tmp_path / "out"), "data": data, "metrics": MetricConfig(lpips=None)}
    for _ in range(2):
        evaluate(EvaluateConfig(tokenizer=str(tokenizer_dir), **options))
    report = (tmp_path / "out" / "report.json").read_bytes()
    with pytest.raises(ValueError, match="holds the report of another call"):
        evaluate(EvaluateConfig(tokenizer=str(tmp_path / "another"), **options))
    assert (tmp_path / "out" / "report.json").read_bytes() == report
