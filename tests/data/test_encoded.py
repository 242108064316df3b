from __future__ import annotations

import json
from dataclasses import replace

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
    with pytest.raises(ValueError, match=r"level 0 must lie in \[0, 7\)"):
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
    with pytest.raises(ValueError, match=r"level 0 must lie in \[0, 7\)"):
        EncodedImages.load(tmp_path / "range")
