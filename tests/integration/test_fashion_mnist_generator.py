"""The script that made the shipped folder, on that folder: it comes out again."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hq_tokenizers import pretrained

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(pretrained("fashion-mnist"))
VERSION = "transformers_version"
RECORDS = ROOT / "docs" / "results" / "fashion_mnist_generator"


@pytest.fixture
def script(monkeypatch):
    path = ROOT / "examples" / "fashion_mnist_generator.py"
    spec = importlib.util.spec_from_file_location("fashion_mnist_generator", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    monkeypatch.setitem(sys.modules, "fashion_mnist_generator", module)
    spec.loader.exec_module(module)
    return module


def settings_of(path):
    """The values of a JSON file by their place in it, without the version of transformers that wrote it."""

    def places(value, place):
        if not isinstance(value, dict):
            return {place: value}
        return {name: found for key, inner in value.items() for name, found in places(inner, (*place, key)).items()}

    return {place: value for place, value in places(json.loads(path.read_text()), ()).items() if place[-1] != VERSION}


def run(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fashion_mnist_generator.py", "--generator", str(SHIPPED), *map(str, words)])
    script.main()


def test_the_shipped_folder_comes_out_again(script, tmp_path, monkeypatch, capsys):
    evaluations = f"[{RECORDS / 'samples.json'}]"
    accuracy = RECORDS / "sample_accuracy.json"
    run(script, monkeypatch, "--output_dir", tmp_path, "--accuracy", accuracy, "--evaluations", evaluations)
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert printed["files"].keys() == {path.name for path in SHIPPED.iterdir()}
    for name in ("model.safetensors", "README.md"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes(), name
    for path in SHIPPED.glob("*.json"):
        # Settings that the library has gained since are no difference.
        shipped, written = settings_of(path), settings_of(tmp_path / path.name)
        assert {place: written.get(place) for place in shipped} == shipped


def test_other_settings_and_no_figures(script, tmp_path, monkeypatch):
    run(script, monkeypatch, "--output_dir", tmp_path, "--generation.temperature", "0.5")
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["temperature"] == 0.5
    assert settings["guidance_scale"] == json.loads((SHIPPED / "generation_config.json").read_text())["guidance_scale"]
    assert "No evaluation has been reported" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_half_the_bytes_and_integers_as_they_are(script, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.tensor([0.1, 70.0]), "steps": torch.tensor([100_001])}, path)
    script.store_in_half(path)
    stored = load_file(path)
    assert torch.equal(stored["weight"], torch.tensor([0.1, 70.0], dtype=torch.float16))
    assert stored["steps"].tolist() == [100_001]
    save_file({"weight": torch.tensor([7e4])}, path)
    with pytest.raises(ValueError, match="weight are too large"):
        script.store_in_half(path)
