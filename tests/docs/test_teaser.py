"""The script of the teaser, on images that the shipped generator draws: no data is needed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import pipeline

from hq_tokenizers import pretrained

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def teaser(monkeypatch):
    spec = importlib.util.spec_from_file_location("teaser", ROOT / "docs" / "scripts" / "teaser.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    monkeypatch.setitem(sys.modules, "teaser", module)
    spec.loader.exec_module(module)
    return module


def test_draws_a_wide_picture(teaser, tmp_path, monkeypatch, capsys):
    draw = pipeline("hq-generation", model=pretrained("fashion-mnist"))
    for number, image in enumerate(draw(["bag", "coat"], seed=0)):
        (tmp_path / "images" / "test").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / "test" / f"{number}.png")
    output = tmp_path / "teaser.png"
    words = ["--data.name", "imagefolder", "--data.path", str(tmp_path / "images"), "--images", "[1]"]
    monkeypatch.setattr(sys, "argv", ["teaser.py", *words, "--samples_per_class", "1", "--output", str(output)])
    teaser.main()
    assert str(output) in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.width == 1800
        assert picture.width > 2.5 * picture.height
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).reshape(-1, 3)
    assert (pixels == 255).all(1).float().mean() > 0.4
    # Codes are the only thing in colour.
    assert (pixels.amax(1) - pixels.amin(1) > 40).float().mean() > 0.03


def test_near_codes_have_near_colours(teaser):
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(64, 3, generator=generator)
    colours = teaser.code_colours(places @ torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert colours.shape == (64, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert len(colours.unique(dim=0)) == 64
    near = torch.cdist(places, places).fill_diagonal_(9).argmin(1)
    to_nearest = (colours - colours[near]).norm(dim=1).mean()
    assert to_nearest < torch.pdist(colours).mean() / 2


def test_the_picture_in_the_docs_is_not_too_large():
    path = ROOT / "docs" / "figures" / "teaser.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as picture:
        assert picture.width == 1800
