from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_script(monkeypatch):
    """Loads a script of the folder as a module."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Runs a loaded script's `main` with a YAML file of options and further words."""

    def run(script, options, *words):
        (tmp_path / "options.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
        monkeypatch.setattr("sys.argv", ["script.py", str(tmp_path / "options.yaml"), *words])
        script.main()

    return run
