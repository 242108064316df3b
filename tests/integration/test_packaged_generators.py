"""The script that made the shipped folders, on those folders: they come out again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hq_tokenizers import pretrained

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(pretrained("fashion-mnist"))
VERSION = "transformers_version"
RESULTS = ROOT / "docs" / "results"
RECORDS = {
    "fashion-mnist": (
        RESULTS / "fashion_mnist_generator" / "sample_accuracy.json",
        [RESULTS / "fashion_mnist_generator" / "samples.json"],
    ),
    "spoken-digits": (RESULTS / "fsdd_samples.json", []),
}


@pytest.fixture
def script(monkeypatch):
    path = ROOT / "examples" / "packaged_generators.py"
    spec = importlib.util.spec_from_file_location("packaged_generators", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    monkeypatch.setitem(sys.modules, "packaged_generators", module)
    spec.loader.exec_module(module)
    return module


def settings_of(path):
    """The values of a JSON file by their place in it, without the version of transformers that wrote it."""

    def places(value, place):
        if not isinstance(value, dict):
            return {place: value}
        return {name: found for key, inner in value.items() for name, found in places(inner, (*place, key)).items()}

    return {place: value for place, value in places(json.loads(path.read_text()), ()).items() if place[-1] != VERSION}


def run(script, monkeypatch, *words, name="fashion-mnist"):
    given = ("--name", name, "--generator", pretrained(name))
    monkeypatch.setattr(sys, "argv", ["packaged_generators.py", *given, *map(str, words)])
    script.main()


@pytest.mark.parametrize("name", list(RECORDS))
def test_a_shipped_folder_comes_out_again(script, tmp_path, monkeypatch, capsys, name):
    accuracy, reports = RECORDS[name]
    evaluations = json.dumps(list(map(str, reports)))
    words = ("--output_dir", tmp_path, "--accuracy", accuracy, "--evaluations", evaluations)
    run(script, monkeypatch, *words, name=name)
    printed = json.loads(capsys.readouterr().out)
    shipped_folder = Path(pretrained(name))
    assert printed["files"] == {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert printed["files"].keys() == {path.name for path in shipped_folder.iterdir()}
    for file in ("model.safetensors", "README.md"):
        assert (tmp_path / file).read_bytes() == (shipped_folder / file).read_bytes(), file
    for path in shipped_folder.glob("*.json"):
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


def test_a_generator_that_is_not_there_is_named(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["packaged_generators.py", "--name", "spoken-digits"])
    with pytest.raises(SystemExit, match="no generator in runs/fsdd_prior/generator: train it first"):
        script.main()


def test_a_folder_is_halved_in_place(script, tmp_path, monkeypatch):
    shutil.copytree(SHIPPED, tmp_path / "generator")
    monkeypatch.chdir(tmp_path)
    words = ["packaged_generators.py", "--generator", "generator", "--output_dir", "generator"]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    for name in ("model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "generator" / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_an_unknown_name_is_told_the_known_ones(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["packaged_generators.py", "--name", "digits"])
    with pytest.raises(SystemExit, match="error: name must be one of 'fashion-mnist', 'spoken-digits', got 'digits'"):
        script.main()
