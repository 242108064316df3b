from __future__ import annotations

from contextlib import closing
from itertools import islice

import pytest
import torch

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.passes import Position, Processes, build_passes
from hq_tokenizers.data.stream_loading import load_streamed_splits
from hq_tokenizers.data.streams import StreamFeed
from hq_tokenizers.options.data import DataConfig

from .shards import TOTAL, config_of, write_all, write_parquet, write_tar

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "webdataset": write_all(tmp_path_factory.mktemp("tar") / "data", write_tar, "tar"),
        "parquet": write_all(tmp_path_factory.mktemp("parquet") / "data", write_parquet, "parquet"),
    }


@pytest.fixture(params=["webdataset", "parquet", "rows"])
def data(request, folders):
    if request.param == "rows":
        return load_image_splits(DataConfig(name="parquet", path=str(folders["parquet"])), "train_split")[0]
    return load_streamed_splits(config_of(folders[request.param], request.param), classes=True)[0]


def taken(passes, first=Position(), processes=Processes(), number=0):  # noqa: B008
    """Levels of the batches, and where each ends."""
    with closing(passes.batches(number, first, CPU, processes)) as batches:
        found = [(batch["pixel_values"][:, 0, 0].mul(255).round().int(), end) for batch, end in batches]
    # The white edge is on the right of an image, or on the left of a mirrored one.
    return [([max(set(row[1:-1])) for row in rows.tolist()], end) for rows, end in found]


def test_a_pass_has_every_image_once_in_the_stored_order(data):
    batches = taken(build_passes(data, 4))
    assert [level for levels, _ in batches for level in levels] == list(range(TOTAL))
    assert [len(levels) for levels, _ in batches] == [4] * 7 + [2]
    assert [end[:2] for _, end in batches] == [(count, min(4 * count, TOTAL)) for count in range(1, 9)]


@pytest.mark.parametrize("processes", [1, 3])
def test_it_goes_on_from_the_end_of_any_batch_with_any_number_of_processes(data, processes):
    whole = taken(build_passes(data, 4))
    for cut in range(9):
        first = whole[cut - 1][1] if cut else Position()
        shares = [taken(build_passes(data, 4), first, Processes(processes, index)) for index in range(processes)]
        dealt = [shares[number % processes][number // processes] for number in range(8 - cut)]
        assert whole[:cut] + dealt == whole
        assert sum(map(len, shares)) == 8 - cut


def test_the_images_of_a_view_are_mirrored_as_in_that_pass_of_a_training(folders):
    """A training reads them in another order, but which are mirrored is decided by what they are."""

    def mirrored(batch):
        edges = batch["pixel_values"][:, 0, 0]
        return zip(edges[:, 1].mul(255).round().int().tolist(), (edges[:, 0] == 1).tolist(), strict=True)

    stream, *_ = load_streamed_splits(config_of(folders["webdataset"], horizontal_flip=True))
    feed = StreamFeed(stream, 5, seed=3)
    with closing(feed.rest_of_epoch(0, CPU)) as batches:
        trained = [pair for batch in islice(batches, 3 * TOTAL // 5) for pair in mirrored(batch)]
    views = []
    for number in range(3):
        with closing(build_passes(stream, 4, views=3, seed=3).batches(number, Position(), CPU, Processes())) as batches:
            views.append({level: flipped for batch, _ in batches for level, flipped in mirrored(batch)})
        assert views[-1] == dict(trained[TOTAL * number : TOTAL * (number + 1)])
    assert views[0] != views[1] != views[2]
    # One view is of the images as they are.
    with closing(build_passes(stream, 30, views=1).batches(0, Position(), CPU, Processes())) as batches:
        ((batch, _),) = batches
    assert not any(flipped for _, flipped in mirrored(batch))


def test_classes_go_along(folders):
    stream, validation, _ = load_streamed_splits(config_of(folders["webdataset"], label_column="cls"), classes=True)
    with closing(build_passes(stream, 7).batches(0, Position(), CPU, Processes())) as batches:
        labels = torch.cat([batch["labels"] for batch, _ in batches])
    assert labels.tolist() == [level % 5 for level in range(TOTAL)]
    assert validation.labels.tolist() == [level % 5 for level in range(100, 120)]
    assert stream.label_names is None


def test_classes_that_a_stream_cannot_have_are_refused(folders):
    with pytest.raises(ValueError, match=r"data\.label_column '__key__' holds no classes .* Columns that do: cls;"):
        load_streamed_splits(config_of(folders["webdataset"], label_column="__key__"), classes=True)
    stream, *_ = load_streamed_splits(config_of(folders["webdataset"], label_column="cls"), classes=True)
    vars(stream)["label_names"] = ["a", "b"]
    with (
        pytest.raises(ValueError, match=r"Row 2 of 'train, part 0'.* has the class 2 in the column 'cls'; .* 0 to 1\."),
        closing(build_passes(stream, 7).batches(0, Position(), CPU, Processes())) as batches,
    ):
        next(batches)
