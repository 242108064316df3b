from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.soft_codes import SoftCodes


def _encoded(sizes=(7, 40000), labels=True):
    layout = CodeLayout((CodeGroup(1, 2, (sizes[0],)), CodeGroup(2, 2, sizes)))
    highest = torch.tensor(layout.codebook_sizes)[layout.level_of_code()]
    codes = (torch.rand(5, layout.num_codes) * highest).int()
    codes[0] = highest - 1
    rows = CodeRows(codes, torch.tensor([0, 2, 1, 0, 2]) if labels else None)
    return EncodedImages(layout, {"train": rows, "validation": rows}, "some/tokenizer", "ab12", ["a", "b", "c"])


@pytest.mark.parametrize("sizes", [(7, 9), (7, 40000)])
@pytest.mark.parametrize("labels", [True, False])
def test_what_is_saved_is_loaded(tmp_path, sizes, labels):
    encoded = _encoded(sizes, labels)
    encoded.save(tmp_path)
    loaded = EncodedImages.load(tmp_path)
    assert loaded.layout == encoded.layout
    assert (loaded.tokenizer, loaded.tokenizer_sha256, loaded.label_names) == (
        "some/tokenizer",
        "ab12",
        ["a", "b", "c"],
    )
    for name, rows in encoded.splits.items():
        assert torch.equal(loaded.splits[name].codes, rows.codes)
        assert (loaded.splits[name].labels is None) == (not labels)
        if rows.labels is not None:
            assert torch.equal(loaded.splits[name].labels, rows.labels)


def test_the_folder_is_a_plain_data_set(tmp_path):
    from datasets import ClassLabel, List, Value, load_from_disk

    _encoded((7, 9)).save(tmp_path)
    rows = load_from_disk(str(tmp_path))["train"]
    assert rows.features["codes"] == List(Value("int16"), length=10)
    assert rows.features["labels"] == ClassLabel(names=["a", "b", "c"])
    assert json.loads((tmp_path / "codes.json").read_text())["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_large_codebooks_are_not_cut_to_16_bits(tmp_path):
    from datasets import load_from_disk

    encoded = _encoded((7, 40000))
    encoded.save(tmp_path)
    assert load_from_disk(str(tmp_path))["train"].features["codes"].feature.dtype == "int32"
    assert max(load_from_disk(str(tmp_path))["train"]["codes"][0]) == 39999


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="write them with `encode`"):
        EncodedImages.load(tmp_path)
    encoded = _encoded((7, 9))
    encoded.splits["train"].codes[1, 0] = 7
    encoded.save(tmp_path)
    with pytest.raises(ValueError, match=r"level 1 must lie in \[0, 7\)"):
        EncodedImages.load(tmp_path)


def test_batches():
    rows = _encoded((7, 9)).splits["train"]
    first, second = rows.batches([torch.tensor([4, 1]), torch.tensor([0])], torch.device("cpu"))
    assert torch.equal(first["codes"], rows.codes[[4, 1]].long())
    assert first["labels"].tolist() == [2, 2]
    assert second["codes"].dtype == torch.int64


def _with_soft_codes(encoded, k=3):
    train = encoded.splits["train"]
    codes = train.codes[:, :, None].repeat(1, 1, k)
    probabilities = torch.rand(codes.shape).softmax(-1).half()
    return replace(encoded, splits={**encoded.splits, "train": replace(train, soft=SoftCodes(codes, probabilities))})


@pytest.mark.parametrize("sizes", [(7, 9), (7, 40000)])
def test_soft_codes_are_saved_and_loaded(tmp_path, sizes):
    encoded = _with_soft_codes(_encoded(sizes))
    encoded.save(tmp_path)
    loaded, soft = EncodedImages.load(tmp_path), encoded.splits["train"].soft
    assert torch.equal(loaded.splits["train"].soft.codes, soft.codes)
    assert torch.equal(loaded.splits["train"].soft.probabilities, soft.probabilities)
    assert loaded.splits["validation"].soft is None
    assert loaded.splits["train"].sha256() == encoded.splits["train"].sha256()
    hard = replace(encoded.splits["train"], soft=None)
    assert hard.sha256() != encoded.splits["train"].sha256()


def test_batches_of_soft_codes():
    rows = _with_soft_codes(_encoded((7, 9))).splits["train"]
    (batch,) = rows.batches([torch.tensor([4, 1])], torch.device("cpu"))
    assert torch.equal(batch["soft_codes"], rows.soft.codes[[4, 1]].long())
    assert torch.equal(batch["soft_probabilities"], rows.soft.probabilities[[4, 1]].float())
    assert {name: column.dtype for name, column in batch.items()} == {
        "codes": torch.int64,
        "labels": torch.int64,
        "soft_codes": torch.int64,
        "soft_probabilities": torch.float32,
    }


def test_broken_soft_codes_are_refused(tmp_path):
    encoded = _with_soft_codes(_encoded((7, 9)))
    encoded.splits["train"].soft.probabilities[0, 0] *= 0.5
    encoded.save(tmp_path / "sum")
    with pytest.raises(ValueError, match="soft_probabilities must be at least 0 and sum to 1"):
        EncodedImages.load(tmp_path / "sum")
    encoded = _with_soft_codes(_encoded((7, 9)))
    encoded.splits["train"].soft.codes[0, 0, 2] = 7
    encoded.save(tmp_path / "range")
    with pytest.raises(ValueError, match=r"level 1 must lie in \[0, 7\)"):
        EncodedImages.load(tmp_path / "range")


def _other(encoded):
    """The same images in the codes of another tokenizer."""
    splits = {name: replace(rows, codes=rows.codes.flip(0)) for name, rows in encoded.splits.items()}
    return replace(encoded, splits=splits, tokenizer_sha256="cd34")


def test_codes_replace_codes_and_nothing_else(tmp_path):
    first = _encoded((7, 9))
    first = replace(first, splits=first.splits | {"test": first.splits["train"]})
    first.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    second = _other(_encoded((7, 9)))
    second.save(tmp_path)
    loaded = EncodedImages.load(tmp_path)
    assert loaded.tokenizer_sha256 == "cd34"
    assert {name: rows.sha256() for name, rows in loaded.splits.items()} == {
        name: rows.sha256() for name, rows in second.splits.items()
    }
    names = {"train", "validation", "dataset_dict.json", "codes.json", "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_is_no_codes_is_not_replaced(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "image.png").write_text("an image")
    with pytest.raises(FileExistsError, match=r"holds train, which no `encode` wrote .*choose another output_dir"):
        _encoded((7, 9)).save(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["train", "image.png"]


def test_a_mixture_is_refused(tmp_path):
    encoded = _encoded((7, 9))
    encoded.save(tmp_path / "first")
    _other(encoded).save(tmp_path / "second")
    shutil.rmtree(tmp_path / "first" / "train")
    shutil.copytree(tmp_path / "second" / "train", tmp_path / "first" / "train")
    with pytest.raises(ValueError, match=r"^train in '.*first' is not what codes.json says .*encode the images again"):
        EncodedImages.load(tmp_path / "first")


def test_damaged_codes_are_refused(tmp_path):
    _encoded((7, 9)).save(tmp_path)
    (file,) = (tmp_path / "validation").glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read: encode the images again"):
        EncodedImages.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot be read: encode the images again"):
        EncodedImages.load(tmp_path)


def test_a_truncated_description_is_named(tmp_path):
    _encoded((7, 9)).save(tmp_path)
    description = tmp_path / "codes.json"
    description.write_text(description.read_text()[:50])
    with pytest.raises(ValueError, match=r"codes\.json is damaged, .*: encode the images again"):
        EncodedImages.load(tmp_path)


def test_many_parts_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr("hq_tokenizers.data.encoded._ROWS_AT_A_TIME", 2)
    encoded = _with_soft_codes(_encoded((7, 40000)))
    encoded.save(tmp_path)
    loaded = EncodedImages.load(tmp_path)
    for name, rows in encoded.splits.items():
        assert torch.equal(loaded.splits[name].codes, rows.codes)
        assert torch.equal(loaded.splits[name].labels, rows.labels)
    soft = encoded.splits["train"].soft
    assert torch.equal(loaded.splits["train"].soft.codes, soft.codes)
    assert torch.equal(loaded.splits["train"].soft.probabilities, soft.probabilities)


# Prints the bytes by which the peak of memory rises. A first small folder pays for what is loaded once.
MEMORY = """
import resource, sys, torch
from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
layout = CodeLayout((CodeGroup(4, 8, (512,)),))
peaks = []
for number in (10, 500_000):
    if sys.argv[1] == "save":
        rows = CodeRows(torch.full((number, 32), 7, dtype=torch.int32))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        EncodedImages(layout, {"train": rows}, "nowhere", "-").save(f"{sys.argv[2]}/{number}")
    else:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        EncodedImages.load(f"{sys.argv[2]}/{number}")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(1024 * (peaks[3] - peaks[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_memory_stays_close_to_the_data(tmp_path):
    """32 MB on disk, and twice that as int32 in memory; the mapped file counts as well."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for what, limit in (("save", 80e6), ("load", 150e6)):
        command = [sys.executable, "-c", MEMORY, what, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) < limit, what
