"""Folders of images against folders, splits and saved statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.data.loading import load_image_folder
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, MetricConfig


@pytest.fixture
def folders(tmp_path, six_pixel_images, write_images):
    for name, images in zip(("drawn", "real"), six_pixel_images, strict=True):
        write_images(tmp_path / name, images)
    return tmp_path


def _evaluate(folders, **options):
    options = {"reference": str(folders / "real"), "metrics": MetricConfig(lpips=None), "batch_size": 8, **options}
    return evaluate(EvaluateConfig(images=str(folders / "drawn"), output_dir=str(folders / "out"), **options))


def test_folder_against_folder(six_pixels, folders, six_pixel_images, distance_of):
    report = _evaluate(folders, kid=True, kid_subset_size=10, precision_recall=True)
    found = report["results"]["fid"]
    assert found["frechet_distance"] == pytest.approx(distance_of(*six_pixel_images), rel=1e-9)
    assert {"kernel_distance_mean", "precision", "recall"} <= found.keys()
    reference = found["provenance"]["reference"]
    assert (reference["name"], reference["num_images"]) == ("real", 25)
    assert found["provenance"]["num_images"] == report["subject"]["num_images"] == 30
    assert json.loads((folders / "out" / "report.json").read_text("utf-8"))["results"]["fid"] == found
    assert "30 images against 25 |" in (folders / "out" / "model_card_row.md").read_text("utf-8")


def test_folder_against_a_split(six_pixels, tmp_path, held_out, write_images, distance_of):
    images = (held_out * 255).round().byte()
    write_images(tmp_path / "drawn", 255 - images)
    data = DataConfig(validation_split="test[:40]")
    found = _evaluate(tmp_path, reference=None, data=data)["results"]["fid"]
    assert found["frechet_distance"] == pytest.approx(distance_of(255 - images, images), rel=1e-9)
    assert found["provenance"]["reference"]["split"] == "test[:40]"


def test_saved_statistics_give_the_same_number(six_pixels, folders):
    saved = folders / "statistics" / "real.safetensors"
    first = _evaluate(folders, save_reference=str(saved))["results"]["fid"]
    again = _evaluate(folders, reference=str(saved))["results"]["fid"]
    assert again["frechet_distance"] == pytest.approx(first["frechet_distance"], rel=1e-12)
    assert again["provenance"]["reference"] == first["provenance"]["reference"]
    with pytest.raises(ValueError, match="a file of statistics already: leave out save_reference"):
        _evaluate(folders, reference=str(saved), save_reference=str(saved))
    with pytest.raises(ValueError, match="no features of single images, which kid and precision_recall need"):
        _evaluate(folders, reference=str(saved), kid=True, kid_subset_size=10)


def test_pairs(folders, six_pixel_images, write_images):
    drawn, real = six_pixel_images[0][:5], six_pixel_images[1][:5]
    names = ["b/1", "a", "a.low", "b/0", "d"]
    write_images(folders / "pairs" / "drawn", drawn, names)
    # In the other folder the names end otherwise, and so the paths sort otherwise.
    write_images(folders / "pairs" / "real", real, names, ending="bmp")
    report = _evaluate(folders / "pairs", pairs=True, metrics=MetricConfig(lpips=None, features=None), batch_size=2)
    found = report["results"]["reconstruction"]
    errors = ((drawn.double() - real.double()) / 255).square().flatten(1).mean(1).numpy()
    assert found["mse"] == pytest.approx(errors.mean(), rel=1e-6)
    assert found["psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), rel=1e-6)
    assert set(report["results"]) == {"reconstruction"}


def test_pairs_of_images_too_few_for_a_distance_say_so(six_pixels, folders, six_pixel_images, write_images):
    for name, images in zip(("drawn", "real"), six_pixel_images, strict=True):
        write_images(folders / "pairs" / name, images[:5])
    report = _evaluate(folders / "pairs", pairs=True)
    assert set(report["results"]) == {"reconstruction"}
    assert "5 images to judge are too few" in report["left_out"]["fid"]


def test_one_image_is_too_few_in_any_case(six_pixels, folders, six_pixel_images, write_images):
    write_images(folders / "one" / "drawn", six_pixel_images[0][:1])
    write_images(folders / "one" / "real", six_pixel_images[1])
    few = MetricConfig(lpips=None, allow_few_images=True)
    with pytest.raises(ValueError, match=r"1 images to judge are too few .*: a covariance needs 2 at least\.$"):
        _evaluate(folders / "one", metrics=few)


def test_saved_statistics_of_too_few_images(six_pixels, folders, six_pixel_images, write_images):
    write_images(folders / "few", six_pixel_images[1][:5])
    saved = str(folders / "few.safetensors")
    few = MetricConfig(lpips=None, allow_few_images=True)
    _evaluate(folders, reference=str(folders / "few"), save_reference=saved, metrics=few)
    with pytest.raises(ValueError, match="5 images to compare with are too few"):
        _evaluate(folders, reference=saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": True}, r"reference lacks 5 of the other folder's images, such as 025, 026, 027"),
        ({"reference": "nowhere"}, r"reference 'nowhere' is no folder: set reference"),
        ({"reference": None, "data": DataConfig(validation_split="test[:3]")}, r"3 images to compare with are too few"),
        ({"kid": True}, r"kid takes subsets of 1000 images, but one side has 25: lower kid_subset_size"),
        ({"inception_score": True}, r"needs at least 200 images, got 30"),
        ({"data": DataConfig(label_map_classes=3)}, r"label maps have no Fréchet distance"),
        ({"reference": "none.safetensors"}, r"no reference statistics at none\.safetensors"),
    ],
)
def test_what_does_not_fit(six_pixels, folders, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        _evaluate(folders, **options)
    assert not (folders / "out").exists()


def test_sizes_that_differ(six_pixels, folders, write_images):
    write_images(folders / "large", torch.zeros(9, 3, 12, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images have 8×8 pixels, those to compare with 12×12: set data\.image_size"):
        _evaluate(folders, reference=str(folders / "large"))
    found = _evaluate(folders, reference=str(folders / "large"), data=DataConfig(image_size=10))["results"]["fid"]
    assert found["provenance"]["image_size"] == [10, 10]
    assert "bicubic" in found["provenance"]["resize_filter"]


def test_names_of_a_folder(tmp_path, write_images):
    write_images(tmp_path, torch.zeros(4, 1, 4, 4, dtype=torch.uint8), ["b", "sub/a", "samples", "a.x"])
    (tmp_path / "report.json").write_text("{}")
    rows, names = load_image_folder(DataConfig(), tmp_path, "images")
    assert names == ["a.x", "b", "sub/a"]
    assert len(rows) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images .*empty' holds no images"):
        load_image_folder(DataConfig(), tmp_path / "empty", "images")
