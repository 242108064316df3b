from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig

CPU = torch.device("cpu")


def _load(folder, **options):
    config = DataConfig(name="imagefolder", path=str(folder), validation_split="train", label_map_classes=5, **options)
    (rows,) = load_image_splits(config, "train_split")
    (batch,) = rows.batches([torch.arange(len(rows))], CPU)
    return batch["pixel_values"]


def _write(folder, maps, mode="L"):
    for index, label_map in enumerate(maps):
        image = Image.fromarray(label_map)
        if mode == "P":
            image.putpalette([200, 10, 10, 3, 3, 3, 9, 80, 9, 0, 0, 0, 7, 7, 7] + [0] * 753)
        image.save(folder / f"{index}.png")


@pytest.mark.parametrize("mode", ["L", "P"])
def test_pixels_are_class_numbers_whatever_the_palette(tmp_path, mode):
    maps = np.random.default_rng(0).integers(0, 5, (3, 6, 8), dtype=np.uint8)
    _write(tmp_path, maps, mode)
    pixel_values = _load(tmp_path)
    assert pixel_values.dtype == torch.long
    assert torch.equal(pixel_values, torch.from_numpy(maps).long())


def test_resizing_invents_no_class(tmp_path):
    # Classes 0 and 4 only: any interpolation would give some 1, 2 or 3 at the border.
    label_map = np.zeros((12, 20), np.uint8)
    label_map[:, 10:] = 4
    _write(tmp_path, [label_map])
    small = _load(tmp_path, image_size=[6, 10])
    expected = torch.zeros(1, 6, 10, dtype=torch.long)
    expected[..., 5:] = 4
    assert torch.equal(small, expected)
    large = _load(tmp_path, image_size=[24, 40])
    assert torch.equal(large, expected.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), 5, np.uint8), "Found a label map with class 5; data.label_map_classes 5 means classes 0 to 4"),
        (np.zeros((4, 4, 3), np.uint8), "found one of mode RGB"),
        (np.zeros((4, 4), np.uint16), "found one of mode I;16"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path, pixels, message):
    _write(tmp_path, [pixels])
    with pytest.raises(ValueError, match=re.escape(message)):
        _load(tmp_path)


def test_arrays_are_label_maps_too():
    (rows,) = load_image_splits(DataConfig(label_map_classes=17), "train_split")
    (images,) = load_image_splits(DataConfig(), "train_split")
    (labels,) = rows.batches([torch.arange(5)], CPU)
    (pixels,) = images.batches([torch.arange(5)], CPU)
    assert torch.equal(labels["pixel_values"], (pixels["pixel_values"][:, 0] * 16).round().long())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_map_classes": 1}, "data.label_map_classes must be an integer from 2 to 256 or null, got 1"),
        ({"label_map_classes": 300}, "data.label_map_classes must be an integer from 2 to 256 or null, got 300"),
        ({"label_map_classes": 5, "num_channels": 1}, "label maps (data.label_map_classes) have no channels"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**options)


def test_camvid_resized_keeps_its_classes_in_place(data_folder):
    config = DataConfig(
        name="parquet",
        path=str(data_folder),
        files={"train": "camvid-val.parquet"},
        validation_split="train",
        image_column="label_map",
        label_map_classes=12,
        image_size=[48, 64],
    )
    (rows,) = load_image_splits(config, "train_split")
    (batch,) = rows.batches([torch.arange(len(rows))], CPU)
    assert batch["pixel_values"].shape == (101, 48, 64)
    import io

    import pyarrow.parquet as parquet

    raw = parquet.read_table(data_folder / "camvid-val.parquet").column("label_map")[7].as_py()["bytes"]
    full = np.asarray(Image.open(io.BytesIO(raw)))
    # 360×480 → 48×64 by a factor of 7.5: the nearest pixel to the centre of every cell.
    rows_, columns = (np.floor((np.arange(n) + 0.5) * 7.5).astype(int) for n in (48, 64))
    assert (batch["pixel_values"][7].numpy() == full[np.ix_(rows_, columns)]).all()
