"""A page exported as a Space: complete, runnable, and never over somebody's files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("gradio", reason="needs the extra: pip install 'hq_tokenizers[app]'")

import gradio

import hq_tokenizers
from hq_tokenizers.app.space import export_space

ROOT = Path(hq_tokenizers.__file__).resolve().parent.parent
USE = """
import app, sys
page = app.build()
print(type(page).__name__, len([name for name, module in sys.modules.items() if name == "torch"]))
print(app.GENERATOR)
"""


@pytest.fixture
def generator(pipe, tmp_path):
    folder = tmp_path / "trained"
    pipe.save_pretrained(folder)
    return str(folder)


def front_matter(folder):
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_exported_page_runs(generator, tmp_path):
    space = export_space(generator, tmp_path / "space")
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "generator", "requirements.txt"]
    copied = {path.name: path.read_bytes() for path in (space / "generator").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in Path(generator).iterdir()}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(space), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Blocks 1", str(space / "generator")]


def test_what_the_hub_asks_of_a_space(generator, tmp_path):
    space = export_space(generator, tmp_path / "space")
    settings, body = front_matter(space)
    assert settings["sdk"] == "gradio"
    assert settings["sdk_version"] == gradio.__version__
    assert settings["app_file"] == "app.py"
    # The Hub's own default is older than what this package runs on.
    assert tuple(map(int, settings["python_version"].split("."))) >= (3, 11)
    assert settings["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    assert "`generator/`" in body
    requirements = (space / "requirements.txt").read_text().split()
    assert requirements == [f"hq_tokenizers[app]=={hq_tokenizers.__version__}"]


def test_a_generator_on_the_hub_is_named_not_copied(tmp_path):
    space = export_space("someone/cats", tmp_path / "space")
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert "GENERATOR = 'someone/cats'" in (space / "app.py").read_text()
    settings, body = front_matter(space)
    assert settings["models"] == ["someone/cats"]
    assert "`someone/cats`" in body


def test_an_earlier_export_is_replaced_as_a_whole(generator, tmp_path):
    space = export_space(generator, tmp_path / "space")
    (space / "generator" / "model-00002-of-00002.safetensors").write_bytes(b"of an earlier one")
    (space / ".gitattributes").write_text("kept")
    export_space(generator, space)
    assert {path.name for path in (space / "generator").iterdir()} == {path.name for path in Path(generator).iterdir()}
    assert (space / ".gitattributes").read_text() == "kept"
    export_space("someone/cats", space)
    assert not (space / "generator").exists()


@pytest.mark.parametrize("name", ["notes.txt", "app.py"])
def test_other_peoples_files_are_refused(generator, tmp_path, name):
    space = tmp_path / "space"
    space.mkdir()
    (space / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}, which no earlier export has written"):
        export_space(generator, space)
    assert [path.name for path in space.iterdir()] == [name]
    with pytest.raises(ValueError, match="is a file"):
        export_space(generator, space / name)


def test_a_space_is_not_written_over_its_own_generator(generator, tmp_path):
    space = export_space(generator, tmp_path / "space")
    with pytest.raises(ValueError, match="holds the generator"):
        export_space(str(space / "generator"), space)
    assert (space / "generator" / "config.json").is_file()
