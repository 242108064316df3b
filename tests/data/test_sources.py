"""Folders and parquet files as people have them."""

from __future__ import annotations

import os
import re

import pyarrow as pa
import pytest

from hq_tokenizers.data.loading import load_image_folder, load_image_splits
from hq_tokenizers.data.sources import load_source
from hq_tokenizers.options.data import DataConfig

LEVELS = [0, 40, 80, 120, 160, 200]


def load_split(root):
    config = DataConfig(name="imagefolder", path=str(root), validation_split="train")
    (rows,) = load_image_splits(config, "train_split")
    return rows


def load_folder(root):
    return load_image_folder(DataConfig(), root, "images")[0]


def add_hidden(root, png):
    for path in (root / ".ipynb_checkpoints" / "0-checkpoint.png", root / "cat" / ".ipynb_checkpoints" / "0.png"):
        path.parent.mkdir()
        path.write_bytes(png)
    (root / "cat" / "._0.png").write_bytes(b"\0\5\x16\7resource fork")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "cat" / "0.png").write_bytes(b"resource fork")


def add_folder(root, png):
    (root / "cat" / "x.png").mkdir()


def add_other_files(root, png):
    for name in (
        "a.zip",
        "b.tar.gz",
        "m.fits",
        "n.ico",
        "o.iim",
        "a.pdf",
        "b.h5",
        "c.mpg",
        "d.eps",
        "e.grib",
        "notes.txt",
        "0.png.bak",
        "0.png.json",
        "Thumbs.db",
    ):
        (root / "dog" / name).write_bytes(b"no image")
    (root / "README.md").write_text("no image")


def add_dangling_link(root, png):
    (root / "cat" / "gone.png").symlink_to("/nowhere/gone.png")


@pytest.mark.parametrize("add", [add_hidden, add_folder, add_other_files, add_dangling_link])
def test_what_is_no_image_does_not_count(image_folder, png_of, levels, add):
    add(image_folder, png_of(9))
    rows = load_split(image_folder)
    assert levels(rows) == LEVELS
    assert rows.label_names == ["cat", "dog"]
    assert levels(load_folder(image_folder)) == LEVELS


def test_links_and_endings_in_capitals_count(image_folder, png_of, levels):
    (image_folder / "dog" / "2.png").rename(image_folder / "dog" / "2.PNG")
    (image_folder / "dog" / "3.png").symlink_to(image_folder / "cat" / "0.png")
    assert levels(load_split(image_folder)) == [*LEVELS, 0]
    assert levels(load_folder(image_folder)) == [*LEVELS, 0]


def test_splits_by_folder_names(image_folder, levels):
    os.rename(image_folder / "cat", image_folder / "train")
    os.rename(image_folder / "dog", image_folder / "test")
    config = DataConfig(name="imagefolder", path=str(image_folder))
    train, test = load_image_splits(config, "train_split", "validation_split")
    assert (levels(train), levels(test)) == (LEVELS[:3], LEVELS[3:])


def test_patterns(image_folder, levels):
    config = DataConfig(
        name="imagefolder", path=str(image_folder.parent), files={"train": "*/cat/*", "test": ["*/dog/0.png"]}
    )
    train, test = load_image_splits(config, "train_split", "validation_split")
    assert (levels(train), levels(test)) == (LEVELS[:3], [120])
    files = {"train": "cat/*", "test": "dog/[01].png"}
    config = DataConfig(name="imagefolder", path=str(image_folder), files=files)
    train, test = load_image_splits(config, "train_split", "validation_split")
    assert (levels(train), levels(test)) == (LEVELS[:3], LEVELS[3:5])


@pytest.mark.parametrize("path", ["data.parquet", "./data.parquet", ".", "data*.parquet"])
def test_relative_paths(tmp_path, monkeypatch, write_parquet, png_of, path):
    write_parquet({"image": [png_of(0)] * 3})
    monkeypatch.chdir(tmp_path)
    assert load_source(DataConfig(name="parquet", path=path))["train"].num_rows == 3
    source = load_source(DataConfig(name="parquet", path=".", files={"train": path if "data" in path else "*"}))
    assert source["train"].num_rows == 3


def test_relative_folders(image_folder, monkeypatch, levels):
    monkeypatch.chdir(image_folder)
    assert levels(load_split(".")) == LEVELS
    assert levels(load_folder(".")) == LEVELS
    assert levels(load_split("cat")) == LEVELS[:3]
    assert levels(load_split("dog/1.png")) == LEVELS[4:5]


@pytest.mark.parametrize("load", [load_split, load_folder])
def test_names_that_are_not_utf_8_are_refused(image_folder, png_of, load):
    with open(os.fsencode(image_folder / "cat") + b"/caf\xe9.png", "wb") as file:
        file.write(png_of(9))
    with pytest.raises(ValueError, match=r"cat/caf\\xe9\.png' is not UTF-8: rename the file"):
        load(image_folder)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("imagefolder", [], "holds no files"),
        ("imagefolder", ["a.txt", "b.pdf"], "holds no image files"),
        ("imagefolder", ["a.zip", "b.txt"], r"holds no image files\. Unpack the archive a\.zip"),
        ("imagefolder", ["my_metadata.csv", "metadata.csv"], "holds no image files"),
        ("imagefolder", ["a.parquet", "b.parquet"], "holds no image files. It holds 2 for data.name parquet: set that"),
        ("parquet", ["a.txt"], "holds no parquet files"),
        ("parquet", ["a.PNG", "b.txt"], "holds no parquet files. It holds 1 for data.name imagefolder: set that"),
    ],
)
def test_folders_without_data(tmp_path, name, files, message):
    for file in files:
        (tmp_path / file).write_text("no data")
    with pytest.raises(FileNotFoundError, match=f"data.path .*{message}"):
        load_source(DataConfig(name=name, path=str(tmp_path)))


def test_a_file_of_the_other_kind(image_folder, write_parquet):
    path = write_parquet({"price": [1.5]})
    with pytest.raises(FileNotFoundError, match=r"holds no image files\. It holds 1 for data.name parquet"):
        load_source(DataConfig(name="imagefolder", path=str(path)))
    with pytest.raises(FileNotFoundError, match=r"holds no parquet files\. It holds 1 for data.name imagefolder"):
        load_source(DataConfig(name="parquet", path=str(image_folder / "cat" / "0.png")))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metadata.csv", "x,y\n1,2\n", "`file_name`"),
        ("metadata.csv", "", "No columns"),
        ("metadata.jsonl", "{no json", ""),
        ("metadata.parquet", "no parquet", ""),
    ],
)
def test_metadata_that_say_nothing_of_the_images_are_named(image_folder, name, text, reason):
    (image_folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^.*/{name} cannot be joined .*{reason}.* or rename it") as caught:
        load_split(image_folder)
    assert "\n" not in str(caught.value)


def test_metadata_of_the_images(image_folder, levels):
    lines = ['{"file_name": "cat/0.png", "caption": "a"}', '{"file_name": "dog/1.png", "caption": "b"}']
    (image_folder / "metadata.jsonl").write_text("\n".join(lines))
    assert levels(load_split(image_folder)) == [0, 160]


def test_a_split_of_another_name_is_suggested(image_folder):
    os.rename(image_folder / "cat", image_folder / "train")
    os.rename(image_folder / "dog", image_folder / "val")
    config = DataConfig(name="imagefolder", path=str(image_folder))
    with pytest.raises(ValueError, match=r"'test' is not one of .* Set data.validation_split to validation\."):
        load_image_splits(config, "train_split", "validation_split")


def test_the_folder_of_a_file_that_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, hint in (("empty", "the folder holds nothing"), ("gone", f"the folder '{tmp_path}/gone' does not exist")):
        with pytest.raises(FileNotFoundError, match=f"nothing matches '{tmp_path}/{name}/a.parquet'; {hint}"):
            load_source(DataConfig(name="parquet", path=str(tmp_path / name), files={"train": "a.parquet"}))


def test_parquet_files_that_do_not_belong_together(tmp_path, write_parquet, png_of):
    write_parquet({"image": [png_of(0)] * 3}, "images.parquet")
    write_parquet({"price": [1.5], "city": ["Ulm"]}, "sales.parquet")
    with pytest.raises(ValueError, match="do not have the same columns") as caught:
        load_source(DataConfig(name="parquet", path=str(tmp_path)))
    said = str(caught.value)
    assert "images.parquet has image; sales.parquet has city, price" in said
    assert "data.files" in said
    assert "\n" not in said
    source = load_source(DataConfig(name="parquet", path=str(tmp_path), files={"train": "im*.parquet"}))
    assert source["train"].column_names == ["image"]


def test_parquet_files_whose_types_do_not_belong_together(tmp_path, write_parquet, png_of):
    write_parquet({"image": [png_of(0)] * 3}, "a.parquet")
    write_parquet({"image": [[1, 2]]}, "b.parquet")
    with pytest.raises(ValueError, match=f"^data.path {re.escape(repr(str(tmp_path)))} cannot be read: .*"):
        load_source(DataConfig(name="parquet", path=str(tmp_path)))


def test_a_broken_parquet_file_is_named(tmp_path, write_parquet, png_of):
    path = write_parquet({"image": [png_of(0)] * 3}, "a.parquet")
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"^.*/b\.parquet is no parquet file, or broken: "):
        load_source(DataConfig(name="parquet", path=str(tmp_path)))


def test_parquet_files_without_rows(tmp_path, write_parquet, png_of):
    write_parquet({"image": pa.array([], pa.binary())}, "a.parquet")
    with pytest.raises(ValueError, match="hold no rows"):
        load_source(DataConfig(name="parquet", path=str(tmp_path)))
    write_parquet({"image": [png_of(0)] * 3}, "b.parquet")
    assert load_source(DataConfig(name="parquet", path=str(tmp_path)))["train"].num_rows == 3


def test_other_files_beside_parquet_files(tmp_path, write_parquet, png_of):
    write_parquet({"image": [png_of(0)] * 3}, "a.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "._a.parquet").write_bytes(b"resource fork")
    assert load_source(DataConfig(name="parquet", path=str(tmp_path)))["train"].num_rows == 3
