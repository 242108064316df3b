"""The example runs, on a shortened recipe."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "text_conditioning.py"


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("text_conditioning", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    monkeypatch.setitem(sys.modules, "text_conditioning", module)
    spec.loader.exec_module(module)
    recipe = module.tokenizer_recipe
    short = {"max_steps": 5, "validation_steps": 5, "checkpoint_steps": 5}
    monkeypatch.setattr(module, "tokenizer_recipe", lambda folder, seed: replace(recipe(folder, seed), **short))
    return module


def test_a_row_of_samples_per_name(example, tmp_path, monkeypatch, capsys):
    words = ["--output_dir", str(tmp_path), "--epochs", "1", "--samples_per_name", "3"]
    monkeypatch.setattr(sys, "argv", ["text_conditioning.py", *words])
    example.main()
    assert "of 30 samples are read as the digit that was named" in capsys.readouterr().out
    with Image.open(tmp_path / "samples.png") as picture:
        # 8 pixels are enlarged to 64, with 2 between them and a name of 16 above each row.
        assert picture.size == (3 * 66 + 2, 10 * (16 + 66) + 2)


def test_help_explains_every_option(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["text_conditioning.py", "--help"])
    with pytest.raises(SystemExit) as exit_:
        example.main()
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name} (default:" in text for name in example.Options.__dataclass_fields__)
