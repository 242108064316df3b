"""Files of tensors: read whole, or refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hq_tokenizers.tensor_files import model_files, read_tensors, tensor_types

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(3)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "model.safetensors", metadata={"who": "me"})
    return tmp_path / "model.safetensors"


def test_what_was_saved_is_read(file: Path) -> None:
    tensors, metadata = read_tensors(file)
    assert metadata == {"who": "me"}
    assert set(tensors) == set(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert tensor_types(file) == {"a": "F32", "b": "I64"}
    assert model_files(file.parent) == [file]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"PK\3\4" + content,
        lambda content: content[:8] + b"\xff" * (len(content) - 8),
    ],
)
@pytest.mark.parametrize("read", [read_tensors, tensor_types])
def test_damage_is_named(file: Path, damage: Callable[[bytes], bytes], read: Callable[[Path], object]) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or no safetensors file: \w") as caught:
        read(file)
    assert len(str(caught.value).splitlines()) == 1


def test_shards_are_those_of_the_index(file: Path) -> None:
    folder = file.parent
    file.rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(STATE, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_files(folder) == [folder / "model-00001-of-00001.safetensors"]
    assert model_files(folder, "fp16") == []
    (folder / "model.fp16.safetensors").touch()
    assert model_files(folder, "fp16") == [folder / "model.fp16.safetensors"]


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "C:x.safetensors"]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"index\.json names the file .*; only safetensors files in its own folder"):
        model_files(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map"', "is damaged: Expecting"),
        ("[]", 'is damaged: it has no "weight_map"'),
        ('{"metadata": {}}', 'is damaged: it has no "weight_map"'),
        ('{"weight_map": {"a": 1}}', 'is damaged: it has no "weight_map"'),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "names the file 'model-1.safetensors', which is not there"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "names the file .*; only safetensors files in its own"),
    ],
)
def test_an_index_that_is_damaged(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/model\.safetensors\.index\.json {message}"):
        model_files(tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"{tmp_path} has weights as a pickle only \(pytorch_model.bin\)"):
        model_files(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert model_files(tmp_path) == []
