from __future__ import annotations

import os
import pickle
import sys
import types
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from hq_tokenizers.conversion.foreign_checkpoints import read_state


def test_the_first_key_that_is_there_counts(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "ema": {"a": torch.zeros(1)}, "step": 3}, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt", "ema", "model")["a"] == 0
    assert read_state(tmp_path / "x.pt", "model", "ema")["a"] == 1
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "y.pt")
    assert read_state(tmp_path / "y.pt", "ema").keys() == {"a"}


def test_objects_of_other_packages_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning's checkpoints have them, also as keys."""
    module = types.ModuleType("a_package_that_is_not_here")
    exec("class Callback:\n    def __init__(self): self.best = 3", module.__dict__)
    module.Callback.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    callbacks = {module.Callback: {"best": 1}, "one": module.Callback()}
    torch.save({"callbacks": callbacks, "state_dict": {"a": torch.ones(1)}}, tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    assert read_state(tmp_path / "last.ckpt", "state_dict").keys() == {"a"}


def test_containers_of_other_packages_are_refused_in_plain_words(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": defaultdict(list, {1: [2]})}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="such as containers of other packages' classes"):
        read_state(tmp_path / "last.ckpt", "state_dict")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "evil": _Evil(tmp_path / "made")}, tmp_path / "x.ckpt")
    (tmp_path / "y.ckpt").write_bytes(pickle.dumps(_Evil(tmp_path / "made")))
    for name in ("x.ckpt", "y.ckpt"):
        with pytest.raises(ValueError, match="cannot be read as weights alone"):
            read_state(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*x\.pt"):
        read_state(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no tensors"):
        read_state(tmp_path / "x.pt", "state_dict")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
        read_state(tmp_path / "x.safetensors")
