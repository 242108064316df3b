from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers.data.batches import BatchPlan
from hq_tokenizers.data.feeds import RowFeed
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig

CPU = torch.device("cpu")
MEMORY = 2**30


@pytest.fixture
def photographs(tmp_path):
    """Ten images of 12×16 pixels, whose red is the column, green the row, and blue the number of the image."""
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(16) * 10, np.arange(12)[:, None] * 10
    for number in range(10):
        pixels[..., 2] = number * 20
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def rows_of(folder, memory_limit=MEMORY, **options):
    data = {"name": "imagefolder", "path": str(folder), "validation_split": "train", "num_workers": 0, **options}
    return load_image_splits(DataConfig(**data), "train_split", "validation_split", memory_limit=memory_limit)


def images_of(rows, noise=None, number=10, parts=1):
    batches = rows.batches(list(torch.arange(number).chunk(parts)), CPU, noise)
    return torch.cat([batch["pixel_values"] for batch in batches])


def is_image_or_mirrored(first, second):
    same = (first == second).flatten(1).all(1)
    mirrored = (first == second.flip(-1)).flatten(1).all(1)
    return same, mirrored


def test_flips_mirror_half_of_the_images_of_every_epoch():
    rows = load_image_splits(DataConfig(horizontal_flip=True), "train_split")[0]
    plain = images_of(rows, number=1000)
    flips = []
    for epoch in range(4):
        same, mirrored = is_image_or_mirrored(images_of(rows, (0, epoch), 1000), plain)
        assert (same | mirrored).all()
        flips.append(mirrored & ~same)
    share = torch.stack(flips).float()
    # Four standard deviations; no image is mirrored always, beyond chance (1 of 16 each way).
    assert abs(share.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert abs((share.sum(0) == 4).float().mean() - 1 / 16) < 0.04
    assert abs((flips[0] == flips[1]).float().mean() - 0.5) < 0.07


@pytest.mark.parametrize(
    "options",
    [
        {"random_crop": True, "image_size": 8},
        {"random_resized_crop": [0.3, 0.8], "image_size": 8, "horizontal_flip": True},
        {"color_jitter": [0.3, 0.3, 0.3, 0.1], "horizontal_flip": True},
    ],
)
def test_changes_depend_on_seed_epoch_and_row_alone(photographs, options):
    rows, plain = rows_of(photographs, **options)
    torch.manual_seed(0)
    first = images_of(rows, (3, 1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(images_of(rows, (3, 1), parts=4), first)
    assert torch.equal(torch.get_rng_state(), before)
    (workers, _) = rows_of(photographs, **{**options, "num_workers": 2})
    assert torch.equal(images_of(workers, (3, 1), parts=3), first)
    assert not torch.equal(images_of(rows, (3, 2)), first)
    assert not torch.equal(images_of(rows, (4, 1)), first)
    # Neither the validation split nor training images that are asked for as they are change.
    assert torch.equal(images_of(rows), images_of(plain))
    assert torch.equal(images_of(plain, (3, 1)), images_of(plain))


def test_flips_are_the_same_in_memory_and_read_as_needed(photographs):
    kept, _ = rows_of(photographs, horizontal_flip=True)
    lazy, _ = rows_of(photographs, memory_limit=0, horizontal_flip=True)
    assert kept.images is not None
    assert lazy.images is None
    assert torch.equal(images_of(kept, (0, 5)), images_of(lazy, (0, 5)))


def test_random_crops_are_parts_of_the_image_at_any_place(photographs):
    rows, _ = rows_of(photographs, random_crop=True, image_size=[12, 6])
    lefts = set()
    for epoch in range(8):
        pixels = images_of(rows, (0, epoch)).mul(255).round().int()
        for image in pixels:
            left = int(image[0, 0, 0]) // 10
            lefts.add(left)
            assert image[0, 0].tolist() == [(left + column) * 10 for column in range(6)]
            assert image[1, :, 0].tolist() == [row * 10 for row in range(12)]
    assert lefts == set(range(11))


def test_resized_crops_have_the_share_of_the_area_asked_for(photographs):
    rows, _ = rows_of(photographs, random_resized_crop=[0.2, 0.5], image_size=8)
    shares = []
    for epoch in range(5):
        pixels = images_of(rows, (0, epoch)).mul(25.5)
        # The slope of red along a row is what a pixel is wide, in pixels of the file; that of green, high.
        width = (pixels[:, 0, :, 5] - pixels[:, 0, :, 2]).mean(1) / 3 * 8
        height = (pixels[:, 1, 5] - pixels[:, 1, 2]).mean(1) / 3 * 8
        shares.append(width * height / (12 * 16))
    shares = torch.cat(shares)
    # Corners of boxes are whole pixels.
    assert shares.min() > 0.15
    assert shares.max() < 0.58
    assert 0.3 < shares.mean() < 0.4


def test_resized_crops_of_sharp_edges_stay_within_the_levels():
    digits = load_image_splits(DataConfig(random_resized_crop=[0.5, 1.0], image_size=8, num_workers=0), "train_split")[
        0
    ]
    pixels = images_of(digits, (0, 0), 200)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert torch.equal(pixels * 16, (pixels * 16).round())


def test_colours_change_as_far_as_asked_for_and_grey_levels_stay_levels(photographs):
    rows, plain = rows_of(photographs, color_jitter=[0.5, 0, 0, 0])
    ratio = images_of(rows, (0, 0))[:, 0, 0, 15] / images_of(plain)[:, 0, 0, 15]
    assert ratio.min() > 0.49
    assert ratio.std() > 0.1
    digits = load_image_splits(DataConfig(color_jitter=[0.5, 0.5, 0, 0], num_workers=0), "train_split")[0]
    levels = images_of(digits, (0, 0)) * 16
    assert torch.equal(levels, levels.round())
    assert not torch.equal(levels, images_of(digits) * 16)


def test_crops_of_label_maps_hold_their_classes_alone(tmp_path):
    labels = np.where(np.arange(16) < 8, 1, 4) * np.ones((12, 1))
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "a.png")
    options = {"label_map_classes": 5, "random_resized_crop": [0.2, 1.0], "image_size": 8, "horizontal_flip": True}
    rows, _ = rows_of(tmp_path, **options)
    maps = torch.cat([images_of(rows, (0, epoch), 1) for epoch in range(10)])
    assert maps.dtype == torch.long
    assert set(maps.unique().tolist()) == {1, 4}


def test_a_run_is_fed_the_same_images_by_any_number_of_processes(photographs):
    rows, _ = rows_of(photographs, random_resized_crop=[0.3, 0.8], image_size=8, horizontal_flip=True)

    def epoch_from(step, processes, index=0, parts=1):
        plan = BatchPlan(10, 4, 7, num_parts=parts, num_processes=processes, process_index=index)
        return torch.stack([batch["pixel_values"] for batch in RowFeed(rows, plan).rest_of_epoch(step, CPU)])

    whole = epoch_from(2, 1)
    assert torch.equal(epoch_from(3, 1), whole[1:])
    assert torch.equal(torch.cat([epoch_from(2, 2, index) for index in range(2)], dim=1), whole)
    assert torch.equal(epoch_from(2, 1, parts=2).view_as(whole), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_crop": True}, "data.random_crop needs data.image_size"),
        ({"random_crop": True, "random_resized_crop": [0.5, 1], "image_size": 8}, "set one of them"),
        ({"random_resized_crop": [0.5, 0.2], "image_size": 8}, "[smallest, largest], got [0.5, 0.2]"),
        ({"random_resized_crop": [0.0, 0.2], "image_size": 8}, "data.random_resized_crop must be"),
        ({"color_jitter": [0.5, 0.5]}, "data.color_jitter must be"),
        ({"color_jitter": [0.5, 0.5, 0.5, 0.6]}, "hue, the last, is at most 0.5, got 0.6"),
        ({"color_jitter": [0.5, 0.5, 0.5, 0.0], "label_map_classes": 3}, "the values of label maps"),
    ],
)
def test_changes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**options)


def test_arrays_have_nothing_to_cut():
    with pytest.raises(ValueError, match="has nothing to cut of images stored as arrays"):
        load_image_splits(DataConfig(random_crop=True, image_size=8), "train_split")
