from __future__ import annotations

import copy
import errno
import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hq_tokenizers.files import (
    DiskFullError,
    naming_full_disk,
    read_json,
    replacing,
    replacing_files,
    sync,
    write_json,
    write_text,
)


@contextmanager
def files_of_at_most(size: int):
    """The nearest thing to a full disk that needs no disk: every file is refused more bytes than these."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """And its name is on the disk before the writer goes on."""
    done = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_replace(source, target):
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert done == ["a.json.partial", "rename", tmp_path.name]
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"ä": [1]}


def test_an_interruption_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def write_half():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["text", "tensors", "picture"])
def test_a_full_disk_names_the_file_and_spares_the_old_one(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_text("before")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write = {
        "text": lambda partial: partial.write_text("x" * 10_000),
        "tensors": lambda partial: save_file({"a": torch.zeros(5000)}, partial),
        "picture": lambda partial: Image.fromarray(pixels).save(partial, format="PNG"),
    }[kind]

    def write_file():
        with files_of_at_most(4096), naming_full_disk("somewhere else"), replacing(path) as partial:
            write(partial)

    with pytest.raises(DiskFullError, match="free some space on that disk, then") as caught:
        write_file()
    assert str(path) in str(caught.value)
    assert "somewhere else" not in str(caught.value)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_pass_as_they_are():
    with pytest.raises(PermissionError), naming_full_disk("a"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(ValueError, match="os error 2"), naming_full_disk("a"):
        raise ValueError("I/O error: gone (os error 2)")


@pytest.mark.parametrize("content", [b"", b'{"a": [1, 2', b"\x00" * 20, b'{"a": "\xff"}'])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged, it holds no whole JSON \(.*\): throw it away\."):
        read_json(path, "throw it away")


def test_a_file_system_that_cannot_sync_folders_is_lived_with(tmp_path, monkeypatch):
    (tmp_path / "a").touch()

    def refuse(descriptor):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="no"):
        sync(tmp_path / "a")


def test_the_files_of_a_library_take_their_places_together(tmp_path):
    folder = tmp_path / "model"
    for content in ("first", "second"):
        with replacing_files(folder) as new:
            (new / "part").mkdir()
            for name in ("config.json", "part/weights"):
                (new / name).write_text(content)
    assert {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()} == {
        "config.json": "second",
        "part/weights": "second",
    }

    def write_half():
        with files_of_at_most(4096), replacing_files(folder) as new:
            (new / "config.json").write_text("third")
            save_file({"a": torch.zeros(5000)}, new / "weights")

    with pytest.raises(DiskFullError, match=r"no space to write .*model "):
        write_half()
    assert (folder / "config.json").read_text() == "second"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "part"]


def test_other_processes_hear_of_a_full_disk_in_the_same_words() -> None:
    """They get the error as `__reduce__` takes it apart, which is how `copy` makes another one as well."""
    error = DiskFullError("a/b", OSError(errno.ENOSPC, "No space left on device"))
    received = copy.copy(error)
    assert received is not error
    assert (str(received), received.errno) == (str(error), errno.ENOSPC)
    assert "a/b" in str(received)
    assert "No space left" in str(received)
