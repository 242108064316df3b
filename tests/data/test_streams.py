from __future__ import annotations

import io
import re
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.stream_loading import load_streamed_splits
from hq_tokenizers.data.streams import StreamFeed, StreamState
from hq_tokenizers.options.training import TokenizerTrainingConfig

from .shards import SHARDS, TOTAL, config_of, png, write_all, write_parquet, write_tar

CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path):
    return write_all(tmp_path / "shards", write_tar, "tar")


def stream_of(folder, **options):
    return load_streamed_splits(config_of(folder, **options))[0]


def levels_of(feed, step, number):
    """The grey levels of the next batches."""
    with closing(feed.rest_of_epoch(step, CPU)) as batches:
        taken = [batch["pixel_values"][:, 0, 0, 1] for batch in islice(batches, number)]
    return [levels.mul(255).round().int().tolist() for levels in taken]


def flat(batches):
    return [level for batch in batches for level in batch]


@pytest.mark.parametrize(
    ("name", "write", "ending"), [("webdataset", write_tar, "tar"), ("parquet", write_parquet, "parquet")]
)
def test_every_pass_gives_every_image_once_in_another_order(tmp_path, name, write, ending):
    folder = write_all(tmp_path / "data", write, ending)
    levels = flat(levels_of(StreamFeed(stream_of(folder, name=name), 5, seed=0), 0, 12))
    first, second = levels[:TOTAL], levels[TOTAL:]
    assert sorted(first) == sorted(second) == list(range(TOTAL))
    assert first != second
    assert first != sorted(first)
    assert levels_of(StreamFeed(stream_of(folder, name=name), 5, seed=0), 0, 12)[5] == levels[25:30]
    assert flat(levels_of(StreamFeed(stream_of(folder, name=name), 5, seed=1), 0, 6)) != first


def test_what_the_hub_has_is_read_by_whole_files(tmp_path):
    """`datasets` takes a folder for an id as well."""
    folder = write_all(tmp_path / "data", write_parquet, "parquet")
    stream, validation, _ = load_streamed_splits(config_of(None, name=str(folder), path=None))
    assert stream.num_parts == len(SHARDS)
    assert sorted(flat(levels_of(StreamFeed(stream, 5, seed=0), 0, 6))) == list(range(TOTAL))
    assert len(validation) == 20


def test_a_folder_of_images_can_be_streamed(tmp_path):
    for level in range(12):
        (tmp_path / ("train" if level < 9 else "test")).mkdir(exist_ok=True)
        (tmp_path / ("train" if level < 9 else "test") / f"{level:02d}.png").write_bytes(png(level))
    stream, validation, test = load_streamed_splits(config_of(tmp_path, "imagefolder"))
    assert sorted(flat(levels_of(StreamFeed(stream, 3, seed=0), 0, 3))) == list(range(9))
    assert validation.images[:, 0, 0, 0].tolist() == [9, 10, 11]
    assert test is validation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 4, 7, 11])
def test_it_continues_after_the_batches_that_were_taken(shards, cut, workers):
    options = {"horizontal_flip": True, "num_workers": workers}
    whole = levels_of(StreamFeed(stream_of(shards), 4, seed=3), 0, 14)
    feed = StreamFeed(stream_of(shards, **options), 4, seed=3)
    first = levels_of(feed, 0, cut)
    state = {name: tensor.clone() for name, tensor in feed.state_dict().items()}
    # Another one, in another process for all it knows.
    other = StreamFeed(stream_of(shards, **options), 4, seed=3)
    other.load_state_dict(state)
    assert first + levels_of(other, cut, 14 - cut) == whole
    assert first + levels_of(feed, cut, 14 - cut) == whole
    assert other.state == feed.state


def test_random_changes_differ_between_passes_and_not_between_workers(shards):
    options = {"color_jitter": [0.9, 0, 0, 0]}

    def passes(workers):
        feed = StreamFeed(stream_of(shards, num_workers=workers, **options), TOTAL, seed=0)
        batches = feed.rest_of_epoch(0, CPU)
        return [next(batches)["pixel_values"] for _ in range(2)]

    first, second = passes(0), passes(2)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0].flatten().sort().values, first[1].flatten().sort().values)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_a_pass(shards, processes):
    """Five read rows of every shard, of which there are four; fewer have shards of their own."""
    stream = stream_of(shards)
    counts = Counter()
    for index in range(processes):
        images = stream.read(StreamState(), 0, processes, index)
        for image in images:
            if image.state.passes:
                break
            counts[np.asarray(Image.open(io.BytesIO(image.raw["bytes"])))[0, 0]] += 1
    assert counts == Counter(range(TOTAL))


def test_parts_of_a_step_and_processes_take_their_share_of_a_batch(shards):
    feed = StreamFeed(stream_of(shards), 12, seed=0, num_parts=2, num_processes=3, process_index=1)
    assert list(map(len, levels_of(feed, 0, 4))) == [2] * 4
    with pytest.raises(ValueError, match="does not split evenly over 3 processes × 2"):
        StreamFeed(stream_of(shards), 8, seed=0, num_parts=2, num_processes=3)
    ended = StreamFeed(stream_of(shards), 2, seed=0, num_parts=2)
    assert len(list(ended.rest_of_epoch(998, CPU))) == 4


def test_other_images_than_those_that_were_seen_are_refused(shards):
    feed = StreamFeed(stream_of(shards), 4, seed=0)
    levels_of(feed, 0, 3)
    order = np.random.default_rng((0, 0, 0)).permutation(4)
    write_tar(shards / f"train-{order[1]}.tar", range(200, 200 + SHARDS[order[1]]))
    write_tar(shards / f"train-{order[0]}.tar", range(230, 230 + SHARDS[order[0]]))
    other = StreamFeed(stream_of(shards), 4, seed=0)
    other.load_state_dict(feed.state_dict())
    with pytest.raises(ValueError, match="hold other images, or in another order, than when this run read them"):
        levels_of(other, 3, 1)


def test_the_hash_is_of_names_and_sizes(shards, tmp_path):
    first = stream_of(shards).sha256()
    assert stream_of(shards).sha256() == first
    shards.rename(tmp_path / "elsewhere")
    assert stream_of(tmp_path / "elsewhere").sha256() == first
    write_tar(tmp_path / "elsewhere" / "train-3.tar", range(20))
    assert stream_of(tmp_path / "elsewhere").sha256() != first


def test_validation_is_of_the_first_images(shards):
    _, validation, test = load_streamed_splits(config_of(shards, max_validation_images=7, test_split="test"))
    assert validation.images[:, 0, 0, 0].tolist() == test.images[:, 0, 0, 0].tolist() == list(range(100, 107))
    assert validation.labels is None


def test_of_one_split_the_first_part_is_held_out(shards):
    (shards / "test.tar").unlink()
    stream, validation, _ = load_streamed_splits(config_of(shards))
    assert sorted(validation.images[:, 0, 0, 0].tolist()) == list(range(10))
    assert sorted(flat(levels_of(StreamFeed(stream, 5, seed=0), 0, 4))) == list(range(10, TOTAL))
    for number in range(1, 4):
        (shards / f"train-{number}.tar").unlink()
    with pytest.raises(ValueError, match="in one part"):
        load_streamed_splits(config_of(shards))
    assert stream_of(shards, validation_split="train").parts == (0,)


def test_rows_without_an_image_are_left_out_and_broken_ones_named(tmp_path):
    write_all(tmp_path / "data", write_parquet, "parquet")
    images = [{"bytes": png(1), "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"no", "path": "x.png"}]
    parquet.write_table(pa.table({"image": images}), tmp_path / "data" / "train-0.parquet")
    for number in range(1, 4):
        (tmp_path / "data" / f"train-{number}.parquet").unlink()
    feed = StreamFeed(stream_of(tmp_path / "data", name="parquet"), 2, seed=0)
    with pytest.raises(ValueError, match=re.escape("Row 3 of 'train, part 0' (x.png)")):
        levels_of(feed, 0, 1)


def test_streams_are_for_training_a_tokenizer(shards):
    with pytest.raises(ValueError, match=re.escape("set data.streaming false, and of a large split")):
        load_image_splits(config_of(shards), "train_split")
    whole, _ = load_image_splits(
        replace(config_of(shards), streaming=False, shuffle_buffer=1000), "train_split", "validation_split"
    )
    assert sorted(whole.images[:, 0, 0, 0].tolist()) == list(range(TOTAL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digits", "path": None}, "the digits are embedded"),
        ({"streaming": False}, "data.shuffle_buffer is for streams"),
        ({"shuffle_buffer": 0}, "data.shuffle_buffer must be"),
    ],
)
def test_options_of_streams_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config_of(tmp_path, **options)


def test_wrong_splits_and_a_run_of_no_length_are_refused(shards):
    with pytest.raises(ValueError, match="'train\\[:5\\]' is not one of train, test; of streams"):
        stream_of(shards, train_split="train[:5]")
    with pytest.raises(ValueError, match=r"data\.streaming needs max_steps"):
        TokenizerTrainingConfig(data=config_of(shards))
