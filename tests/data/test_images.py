from __future__ import annotations

import io
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits

from hq_tokenizers import HQImageProcessor
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.sources import load_source, select_split
from hq_tokenizers.options.data import DataConfig

CPU = torch.device("cpu")
# Nothing is held out of data with one split only when the validation split is there.
WHOLE = {"validation_split": "train"}


def _all(rows):
    (batch,) = rows.batches([torch.arange(len(rows))], CPU)
    return batch


def _write_folder(root: Path, number: int = 6, size=(10, 8), mode: str = "RGB") -> np.ndarray:
    """Two classes of random PNG files; returns the pixels in the order of the file names."""
    rng = np.random.default_rng(0)
    shape = (number, size[0], size[1], 3) if mode == "RGB" else (number, *size)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    for index, image in enumerate(pixels):
        folder = root / ("cat" if index < number // 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return pixels


def test_digits_are_scikit_learns_in_order_and_exactly_scaled():
    train, held_out = load_image_splits(DataConfig(), "train_split", "validation_split")
    both = [_all(train), _all(held_out)]
    pixels = torch.cat([batch["pixel_values"] for batch in both])
    digits = sklearn_digits()
    assert (len(train), len(held_out)) == (1500, 297)
    assert torch.equal(pixels[:, 0], torch.from_numpy(digits.images / 16).float())
    assert torch.equal(pixels * 16, (pixels * 16).round())
    assert torch.cat([batch["labels"] for batch in both]).tolist() == digits.target.tolist()
    assert train.label_names == [str(digit) for digit in range(10)]


def test_image_folder_pixels_and_labels(tmp_path):
    pixels = _write_folder(tmp_path)
    (rows,) = load_image_splits(DataConfig(name="imagefolder", path=str(tmp_path), **WHOLE), "train_split")
    batch = _all(rows)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    torch.testing.assert_close(batch["pixel_values"].double(), expected, atol=1e-7, rtol=0)
    assert batch["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.label_names == ["cat", "dog"]


@pytest.mark.parametrize("workers", [0, 1])
def test_lazy_decoding_gives_the_batches_of_the_decoded_set(tmp_path, workers):
    _write_folder(tmp_path)
    config = DataConfig(name="imagefolder", path=str(tmp_path), num_workers=workers, **WHOLE)
    (eager,) = load_image_splits(config, "train_split")
    (lazy,) = load_image_splits(config, "train_split", memory_limit=0)
    assert eager.images is not None
    assert lazy.images is None
    batches = [torch.tensor([5, 0]), torch.tensor([3]), torch.tensor([1, 1, 4])]
    for one, other in zip(eager.batches(batches, CPU), lazy.batches(batches, CPU), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("memory_limit", [2**20, 0])
def test_the_hash_is_of_the_images_and_not_of_their_place(tmp_path, memory_limit):
    def sha256(folder, split="train", **options):
        config = DataConfig(name="imagefolder", path=folder, train_split=split, **options)
        return load_image_splits(config, "train_split", memory_limit=memory_limit)[0].sha256()

    _write_folder(tmp_path / "first")
    first = sha256(str(tmp_path / "first"))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    assert sha256(f"{tmp_path}/second/", num_workers=0) == first
    assert sha256(str(tmp_path / "first"), "train[:5]") != first
    image = tmp_path / "second" / "dog" / "005.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    assert sha256(str(tmp_path / "second")) != first


def test_the_hash_of_many_encoded_images_is_of_some_spread_evenly(tmp_path, monkeypatch):
    pixels = _write_folder(tmp_path)
    config = DataConfig(name="imagefolder", path=str(tmp_path))
    (lazy,) = load_image_splits(config, "train_split", memory_limit=0)
    monkeypatch.setattr("hq_tokenizers.data.images.HASHED_ROWS", 3)
    decoded = [np.asarray(Image.open(io.BytesIO(raw))) for raw in lazy._lazy.some_encoded(3)]
    assert all(np.array_equal(image, pixels[index]) for image, index in zip(decoded, (0, 2, 5), strict=True))
    first = lazy.sha256()
    monkeypatch.undo()
    assert lazy.sha256() != first


def test_equal_numbers_of_another_scale_are_other_images():
    digits = load_image_splits(DataConfig(), "train_split")[0]
    first = digits.sha256()
    digits.image_format = replace(digits.image_format, max_value=255)
    assert digits.sha256() != first


def test_resizing_keeps_the_centre_and_the_aspect_ratio(tmp_path):
    # A wide image: left third black, middle white, right third black. The centre crop sees white only.
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    config = DataConfig(name="imagefolder", path=str(tmp_path), image_size=4, num_channels=3, validation_split="train")
    (rows,) = load_image_splits(config, "train_split")
    pixel_values = _all(rows)["pixel_values"]
    assert pixel_values.shape == (1, 3, 4, 4)
    assert pixel_values[..., 1:3].min() > 0.99
    assert rows.labels is None


def test_parquet_with_slices(tmp_path):
    from datasets import load_dataset

    pixels = _write_folder(tmp_path / "images", number=8, mode="L")
    load_dataset("imagefolder", data_dir=str(tmp_path / "images"))["train"].to_parquet(tmp_path / "set-0.parquet")
    config = DataConfig(
        name="parquet",
        path=str(tmp_path),
        files={"train": "set-*.parquet"},
        train_split="train[:5]",
        validation_split="train[5:]",
    )
    train, validation = load_image_splits(config, "train_split", "validation_split")
    joined = torch.cat([_all(train)["pixel_values"], _all(validation)["pixel_values"]])
    assert (len(train), len(validation)) == (5, 3)
    torch.testing.assert_close(joined[:, 0].double(), torch.from_numpy(pixels).double() / 255, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("path", "name"),
    [("photos", "imagefolder"), ("data/train-*.parquet", "parquet"), ("train.tar", "webdataset"), (None, "digits")],
)
def test_a_path_alone_is_enough(path, name):
    assert DataConfig(path=path).name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "imagefolder"}, "needs data.path"),
        ({"files": {"train": "train.parquet"}}, "data.name is digits"),
        ({"name": "imagefoldr", "path": "x"}, "no kind of files and no USER/NAME of the Hub. Did you mean imagefolder"),
        ({"num_channels": 2}, "data.num_channels must be one of 1, 3 or null, got 2"),
        ({"image_size": 0}, "data.image_size must be an integer from 1 to 65,536 or a list of them of length 2"),
        ({"image_size": [8, 8, 8]}, "or a list of them of length 2 or null, got [8, 8, 8]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "trian"}, "'trian' is not one of train (1500 rows), test (297 rows)"),
        ({"train_split": "train[:1501]"}, "reaches beyond the data"),
        ({"train_split": "train[:0]"}, "selects no rows"),
        ({"image_column": "img"}, "Image columns: image; all columns: image, label"),
        ({"label_column": "digit"}, "Columns that are: label"),
        ({"image_size": 16}, "data.image_size must be [8, 8]"),
        ({"num_channels": 3}, "data.num_channels must be 1"),
    ],
)
def test_wrong_options_name_the_accepted_values(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_image_splits(DataConfig(**options), "train_split")


def test_images_of_different_sizes_need_a_size(tmp_path):
    _write_folder(tmp_path, size=(10, 8))
    Image.new("RGB", (9, 9)).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(ValueError, match=r"9×9 pixels among images of 10×8: set data\.image_size"):
        load_image_splits(DataConfig(name="imagefolder", path=str(tmp_path), **WHOLE), "train_split")
    config = DataConfig(name="imagefolder", path=str(tmp_path), image_size=8, **WHOLE)
    (rows,) = load_image_splits(config, "train_split")
    assert _all(rows)["pixel_values"].shape == (7, 3, 8, 8)


def test_missing_files_say_what_is_there(tmp_path):
    (tmp_path / "other.parquet").touch()
    config = DataConfig(name="parquet", path=str(tmp_path), files={"train": "mnist-*.parquet"})
    with pytest.raises(FileNotFoundError, match=r"mnist-\*\.parquet'; the folder holds other\.parquet"):
        load_source(config)


def test_unreachable_hub_data_set(monkeypatch):
    with pytest.raises(ConnectionError, match="neither digits, imagefolder, audiofolder, parquet nor webdataset"):
        load_source(DataConfig(name="nobody/nothing"))


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train[10%:20%]", range(150, 300)), ("test[-7:]", range(290, 297)), ("train[:3]", range(3))],
)
def test_slices_select_the_rows_of_python_slices(split, expected):
    source = load_source(DataConfig())
    rows = select_split(source, split)
    name = split.partition("[")[0]
    assert rows["label"][:] == [source[name]["label"][index] for index in expected]


def test_sums_of_splits():
    assert select_split(load_source(DataConfig()), "train+test").num_rows == 1797


def _load_one(folder, **options):
    (rows,) = load_image_splits(DataConfig(name="imagefolder", path=str(folder), **WHOLE, **options), "train_split")
    return _all(rows)["pixel_values"]


def test_grey_of_16_bits_is_not_saturated(tmp_path):
    values = np.array([[0, 257, 514], [32896, 65278, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = torch.from_numpy(values.astype(np.float64) / 65535).float()
    torch.testing.assert_close(_load_one(tmp_path)[0, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "I;16"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_training_and_inference_see_the_same_pixels(tmp_path, mode, num_channels):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 5, 4), dtype=np.uint8), "RGBA")
    image = image.quantize(8) if mode == "P" else image.convert("I" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image) * 257).astype(np.uint16))
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        opened.load()
        processed = HQImageProcessor(num_channels=num_channels)(opened)["pixel_values"]
    torch.testing.assert_close(_load_one(tmp_path, num_channels=num_channels), processed)
    if mode == "RGBA" and num_channels == 3:
        rgba = np.asarray(image).astype(float) / 255
        over_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        np.testing.assert_allclose(processed[0].permute(1, 2, 0).numpy(), over_white, atol=1.01 / 255)


@pytest.mark.parametrize(("size", "num_channels"), [(8, 3), ([12, 5], 1), (40, 3)])
def test_training_and_inference_resize_alike(tmp_path, size, num_channels):
    """To the rounding of stored pixels to 8 bits."""
    colours = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "image.png")
    trained = _load_one(tmp_path, image_size=size, num_channels=num_channels)
    processor = HQImageProcessor.for_image_size(size, num_channels)
    inferred = processor(Image.open(tmp_path / "image.png"))["pixel_values"]
    torch.testing.assert_close(trained, inferred, rtol=0, atol=0.5 / 255 + 1e-6)


def test_colour_is_not_dropped_because_the_first_image_is_grey(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"mode RGB in a set whose first image is grey: set data\.num_channels"):
        _load_one(tmp_path)
    assert _load_one(tmp_path, num_channels=3).shape == (2, 3, 4, 4)
    assert _load_one(tmp_path, num_channels=1).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("bool", [[True, False], [False, True]], None),
        ("uint8", [[255, 0], [0, 255]], None),
        ("uint16", [[300, 0], [0, 1]], "integers from 0 to 255, found .* from 0 to 300"),
        ("float32", [[0.5, 0.0], [0.0, 1.0]], "must be integers from 0 to 255, found float"),
    ],
)
def test_images_stored_as_arrays(tmp_path, dtype, values, message):
    from datasets import Array2D, Dataset, Features

    rows = Dataset.from_dict({"image": [np.array(values, dtype)]}, features=Features({"image": Array2D((2, 2), dtype)}))
    rows.to_parquet(tmp_path / "a.parquet")
    config = DataConfig(name="parquet", path=str(tmp_path / "a.parquet"), validation_split="train")
    if message is None:
        (rows,) = load_image_splits(config, "train_split")
        assert _all(rows)["pixel_values"][0, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    else:
        with pytest.raises(ValueError, match=message):
            load_image_splits(config, "train_split")


@pytest.mark.parametrize("workers", [0, 1])
def test_lazy_decoding_draws_from_no_noise_of_the_run(tmp_path, workers):
    _write_folder(tmp_path)
    config = DataConfig(name="imagefolder", path=str(tmp_path), validation_split="train", num_workers=workers)
    (lazy,) = load_image_splits(config, "train_split", memory_limit=0)
    before = torch.get_rng_state()
    assert len(list(lazy.batches([torch.tensor([5, 0]), torch.tensor([3])], CPU))) == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_decoding_goes_on_when_the_whole_group_is_told_to_stop(tmp_path, number):
    """A terminal sends Ctrl-C to all processes of a command; `timeout` and batch systems do so with SIGTERM."""
    _write_folder(tmp_path)
    config = DataConfig(name="imagefolder", path=str(tmp_path), validation_split="train", num_workers=1)
    (lazy,) = load_image_splits(config, "train_split", memory_limit=0)
    batches = lazy.batches([torch.tensor([index % 6]) for index in range(20)], CPU)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert len(list(batches)) == 19
