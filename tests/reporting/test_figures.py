from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers.files import DiskFullError
from hq_tokenizers.reporting.figures import (
    code_grid_image,
    image_grid,
    magnified,
    reconstruction_grid,
    save_curves,
)
from hq_tokenizers.reporting.trackers import TENSORBOARD
from hq_tokenizers.reporting.tracking import HISTORY, Tracker, read_history, summary


def test_grid_places_every_image():
    images = torch.rand(5, 3, 70, 64)
    grid = image_grid(images, columns=3)
    assert grid.shape == (2 * 72 + 2, 3 * 66 + 2, 3)
    for index, image in enumerate(images):
        top, left = index // 3 * 72 + 2, index % 3 * 66 + 2
        shown = grid[top : top + 70, left : left + 64]
        expected = (image * 255).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown, expected)
    assert (grid[74:, 134:] == 255).all()


def test_small_grey_images_are_enlarged_and_clamped():
    images = torch.tensor([[-1.0, 2.0], [0.5, 0.0]]).reshape(1, 1, 2, 2)
    grid = image_grid(images, columns=8)
    assert grid.shape == (68, 68, 3)
    assert (grid[2:34, 2:34] == 0).all()
    assert (grid[2:34, 34:66] == 255).all()
    assert (grid[34:66, 2:34] == 128).all()


@pytest.mark.parametrize("size", [1, 8, 28, 33, 63, 64, 100])
def test_no_tile_is_smaller_than_64_pixels(size):
    side = image_grid(torch.rand(1, 1, size, size), 1).shape[0] - 4
    assert side >= 64
    assert side % size == 0


@pytest.mark.parametrize(("size", "factor"), [((28, 28), 12), ((8, 12), 40), ((400, 500), 1)])
def test_magnified_pixels_are_squares(size, factor):
    image = Image.fromarray((torch.rand(*size[::-1]) * 255).byte().numpy())
    enlarged = np.asarray(magnified(image, 320))
    assert enlarged.shape == (size[1] * factor, size[0] * factor)
    for row, column in np.ndindex(factor, factor):
        assert (enlarged[row::factor, column::factor] == np.asarray(image)).all()


@pytest.mark.parametrize("num_codes", [4, 64, 4096])
def test_code_grids_have_a_colour_for_every_code(num_codes):
    indices = torch.randint(num_codes, (3, 5), generator=torch.Generator().manual_seed(0))
    indices[0, 0], indices[2, 4] = num_codes - 1, num_codes - 1
    grid = code_grid_image(indices, num_codes, side=300)
    assert grid.shape == (300, 500, 3)
    # Beside the white line and the number, which is in the middle.
    colours = {tuple(grid[row * 100 + 5, column * 100 + 5]): indices[row, column] for row, column in np.ndindex(3, 5)}
    assert len(colours) == len(indices.unique())
    assert (grid[5, 5] == grid[205, 405]).all()
    numbered = [len(np.unique(grid[r : r + 98, c : c + 98].reshape(-1, 3), axis=0)) for r, c in ((1, 1), (1, 101))]
    assert min(numbered) > 2


def test_code_grids_of_many_positions_have_no_numbers():
    indices = torch.arange(64 * 64).reshape(64, 64)
    grid = code_grid_image(indices, 4096, side=64)
    assert grid.shape == (64, 64, 3)
    assert (code_grid_image(indices, 4096, side=128) == grid.repeat(2, 0).repeat(2, 1)).all()


def ink(grid):
    """Where something darker than white stands."""
    return (grid < 255).any(axis=2)


def test_titles_stand_above_their_images():
    images = torch.ones(5, 1, 64, 64)
    plain, titled = image_grid(images, 2), image_grid(images, 2, ["", "dog", "", "", "cat"])
    strip = (titled.shape[0] - plain.shape[0]) // 2
    assert 12 <= strip <= 24
    marks = ink(titled)
    assert marks[:strip, 68:].any()
    assert not marks[:strip, :68].any()
    third = strip + 2 * 66
    assert not marks[strip:third].any()
    assert marks[third : third + strip, :66].any()
    assert not marks[third + strip :].any()


def test_titles_are_cut_where_the_next_begins():
    images = torch.ones(3, 1, 64, 64)
    long = "a name of which there is far too much to fit"
    alone, followed = image_grid(images, 3, [long]), image_grid(images, 3, [long, "b"])
    assert ink(alone)[:, 70:].any()
    assert not ink(followed)[:, 64:68].any()
    assert ink(followed)[:, :64].any()


def test_versions_stand_below_each_other():
    images, reconstructions = torch.zeros(3, 1, 64, 64), torch.ones(3, 1, 64, 64) / 2
    grid = reconstruction_grid({"original": images, "reconstruction": reconstructions}, columns=2)
    strip = (grid.shape[0] - 2) // 4 - 66
    rows = [strip + 2 + (66 + strip) * row for row in range(4)]
    assert [grid[top, 2, 0] for top in rows] == [0, 128, 0, 128]
    assert [grid[top, 68, 0] for top in rows] == [0, 128, 255, 255]
    titles = [grid[top - strip - 2 : top - 2] for top in rows]
    assert all(ink(title).any() for title in titles)
    np.testing.assert_array_equal(titles[0], titles[2])
    assert not np.array_equal(titles[0], titles[1])
    named = reconstruction_grid({"original": images}, columns=2, blocks=("best", "worst"))
    assert not np.array_equal(named[:strip], titles[0])


def test_curves_of_one_and_several_levels(tmp_path):
    history = [
        {"step": 1, "split": "train", "loss": 2.0, "entropy": [1.0, 2.0]},
        {"step": 2, "split": "train", "loss": 1.0, "entropy": [0.5, 1.0]},
        {"step": 2, "split": "validation", "loss": 1.5},
    ]
    save_curves(history, {"loss": ["loss"], "entropy": ["entropy"], "absent": ["fid"]}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1000, 400)
    save_curves(history, {title: ["loss"] for title in "abcdef"}, tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.size == (2000, 800)
    save_curves([], {"loss": ["loss"]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_legends_are_words_and_levels_count_from_one(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    legends = {}
    monkeypatch.setattr(
        Axes, "set_title", lambda axis, title: legends.update({title: axis.get_legend_handles_labels()[1]})
    )
    history = [{"step": 1, "split": "train", "loss": 2.0, "batch_perplexity": [3.0, 4.0], "dead_rate": [0.5]}]
    panels = {"loss": ["loss"], "perplexity": ["perplexity", "batch_perplexity"], "dead": ["dead_rate"]}
    save_curves(history, panels, tmp_path / "curves.png")
    assert legends == {
        "loss": ["train"],
        "perplexity": ["batch perplexity, level 1, train", "batch perplexity, level 2, train"],
        "dead": ["train"],
    }


def _record(step, split="train", **figures):
    return {"step": step, "epoch": step / 10, "split": split, **figures}


def test_tracker_keeps_the_history_up_to_where_a_run_continues(tmp_path, capsys):
    with Tracker(tmp_path, "t", 10) as tracker:
        for step in (1, 2, 3):
            tracker.record(_record(step, loss=float(step)))
    with Tracker(tmp_path, "t", 10, first_step=2) as tracker:
        tracker.record(_record(3, "validation", loss=0.1 + 0.2))
    assert [record["step"] for record in read_history(tmp_path)] == [1, 2, 3]
    assert read_history(tmp_path)[-1] == _record(3, "validation", loss=0.1 + 0.2)
    assert "step 3/10, epoch 0.30: validation loss 0.3" in capsys.readouterr().out


def test_tensorboard_has_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, "t", 10) as tracker:
        tracker.record(_record(4, loss=0.5, perplexity=[3.0, 5.0]))
        tracker.image("pictures", np.zeros((4, 4, 3), np.uint8), 4)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "train/epoch",
        "train/perplexity/level_1",
        "train/perplexity/level_2",
    }
    assert events.Scalars("train/perplexity/level_2")[0].value == 5.0
    assert events.Tags()["images"] == ["pictures"]


def test_other_processes_are_silent(tmp_path, capsys):
    with Tracker(tmp_path / "run", "t", 10, active=False) as tracker:
        tracker.record(_record(1, "validation", loss=1.0))
        tracker.say("hello")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_summary_shows_what_matters():
    record = _record(1, loss=-12.345, mse=0.00123, batch_perplexity=[10.4], perplexity=[20.6, 7.0])
    assert summary(record) == "MSE 0.00123, perplexity 21/7, loss -12.35"
    figures = {"mse": 0.00123, "psnr": 29.104, "usage": [0.412, 0.05], "loss": 310.2}
    assert summary(_record(1, **figures)) == "MSE 0.00123, PSNR 29.10 dB, usage 41/5 %, loss 310.2"
    assert summary(_record(1, loss=2.1, bits_per_code=3.03)) == "3.030 bits/code, loss 2.1"
    assert summary(_record(1, batch_perplexity=[10.4], images_per_second=99.6)) == "perplexity 10, 100 images/s"
    assert summary(_record(1, mse=0.00123, perplexity=[])) == "MSE 0.00123"
    assert summary(_record(1, ssim=0.91234)) == "SSIM 0.912"
    kinds = {"mse": 0.01, "mse_argmax": 0.011, "mse_relaxed": 0.0051, "mse_sampled": 0.02}
    assert summary(_record(1, **kinds)) == "MSE 0.01, relaxed 0.0051, sampled 0.02"
    rate = {"residual_energy": [0.512, 0.0876], "kl_bits_per_image": 297.6, "histogram_bits_per_image": 740.2}
    assert summary(_record(1, **rate)) == "left over 0.51/0.088, KL 298 bits, histogram 740 bits"


def test_label_maps_have_one_colour_per_class():
    label_map = torch.tensor([[[0, 1], [2, 0]]])
    grid = image_grid(label_map, columns=1)[2:66, 2:66]
    corners = [grid[:32, :32], grid[:32, 32:], grid[32:, :32], grid[32:, 32:]]
    colours = [{tuple(pixel) for pixel in corner.reshape(-1, 3).tolist()} for corner in corners]
    assert all(len(colour) == 1 for colour in colours)
    assert colours[0] == colours[3]
    assert colours[0] != colours[1] != colours[2] != colours[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("full", [HISTORY, TENSORBOARD])
def test_a_full_disk_is_named_without_the_traceback_of_a_thread(tmp_path, capfd, full):
    hook = threading.excepthook

    def write():
        with Tracker(tmp_path, "test", 100) as tracker:
            for path in [tmp_path / HISTORY] if full == HISTORY else list((tmp_path / TENSORBOARD).iterdir()):
                # In one step: TensorBoard's thread would make the file again in between.
                link = tmp_path / "full"
                link.symlink_to("/dev/full")
                link.replace(path)
            tracker.record(_record(1, loss=1.0))

    with pytest.raises(DiskFullError, match=f"no space to write .*{full}"):
        write()
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook
