from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hq_tokenizers import HQGeneratorModel
from hq_tokenizers.data.batches import BatchPlan
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.feeds import RowFeed
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.presets import hybrid_vae, sq_vae, vq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig
from hq_tokenizers.priors import RQPriorConfig, RQPriorModel
from hq_tokenizers.training.encoding import _Encoder, encode_images
from hq_tokenizers.training.prior import train_prior_and_save_generator


def _tokenizer(folder, **fields):
    AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8, **fields)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def never_encoding(monkeypatch):
    def fail(*arguments):
        raise AssertionError("encoded before everything was checked")

    monkeypatch.setattr("hq_tokenizers.training.encoding._Encoder.encode", fail)


@pytest.mark.parametrize("size", [16, [16, 8]])
def test_images_of_another_size_are_refused(tmp_path, never_encoding, size):
    tokenizer, output_dir = _tokenizer(tmp_path / "tokenizer", image_size=size), str(tmp_path / "codes")
    Image.new("L", (12, 12)).save(tmp_path / "a.png")
    data = DataConfig(name="imagefolder", path=str(tmp_path), validation_split="train", test_split="train")
    with pytest.raises(
        ValueError, match=r"images of 12×12 pixels, the tokenizer was trained on 16×.*set data\.image_size"
    ):
        encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=output_dir, data=data))
    # Whoever forgets the options of the data is not sent to resize the digits.
    with pytest.raises(ValueError, match=r"embedded digits, .*default of data\.name.* give data\.name, data\.path"):
        encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=output_dir))


@pytest.mark.parametrize(("labels", "strange"), [([0, 1, 2], "2"), ([3, 1], "3")])
def test_classes_that_the_training_split_lacks_are_refused(tmp_path, never_encoding, labels, strange):
    from datasets import Array2D, Dataset, Features, Value

    features = Features({"image": Array2D((8, 8), "uint8"), "label": Value("int64")})
    for split, classes in (("train", [0, 1, 1]), ("test", labels)):
        images = [np.zeros((8, 8), np.uint8)] * len(classes)
        rows = Dataset.from_dict({"image": images, "label": classes}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    files: dict = {"train": "train.parquet", "test": "test.parquet"}
    data = DataConfig(name="parquet", path=str(tmp_path), files=files)
    config = EncodeConfig(tokenizer=_tokenizer(tmp_path / "tokenizer"), output_dir=str(tmp_path / "codes"), data=data)
    with pytest.raises(
        ValueError, match=rf"data\.validation_split has images of the classes {strange}, which .* 0, 1\."
    ):
        encode_images(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"data\.validation_split has no classes"),
        ({"label_names": ["0", "2", "1", *"3456789"]}, r"classes 2, 1, which .*, or under another number"),
    ],
)
def test_classes_of_the_splits_have_to_agree(tmp_path, never_encoding, monkeypatch, change, message):
    def load(*arguments):
        train, validation = load_image_splits(*arguments)
        vars(validation).update(change)
        return train, validation

    monkeypatch.setattr("hq_tokenizers.training.encoding.load_image_splits", load)
    with pytest.raises(ValueError, match=message):
        encode_images(EncodeConfig(tokenizer=_tokenizer(tmp_path / "tokenizer"), output_dir=str(tmp_path / "codes")))


def test_what_is_no_tokenizer_is_named(tmp_path):
    config = EncodeConfig(tokenizer=str(tmp_path / "nothing"), output_dir=str(tmp_path / "codes"))
    with pytest.raises(ValueError, match=r"tokenizer '.*nothing' is neither .*`train-tokenizer` writes one"):
        encode_images(config)
    RQPriorConfig().save_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match="holds a model of type rq_prior, but a tokenizer is needed"):
        encode_images(replace(config, tokenizer=str(tmp_path / "prior")))
    folder = tmp_path / "weightless"
    sq_vae("digits").save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer '.*weightless': the tokenizer cannot be loaded"):
        encode_images(replace(config, tokenizer=str(folder)))


def _tiny_hierarchy(folder):
    config = hybrid_vae("digits", hidden_size=8, codebook_dim=4, code_groups=["stride 4: 6", "stride 2: 9, 3"])
    config.initial_log_variance = 0.0
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def test_a_prior_on_the_codes_of_a_generator_becomes_one_with_its_tokenizer(tmp_path):
    tokenizer = AutoModel.from_pretrained(_tiny_hierarchy(tmp_path / "tokenizer"))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    first = RQPriorModel(RQPriorConfig(code_layout=tokenizer.code_layout().to_dict(), **small))
    HQGeneratorModel.from_sub_models(tokenizer, first).save_pretrained(tmp_path / "first")
    encode_images(EncodeConfig(tokenizer=str(tmp_path / "first"), output_dir=str(tmp_path / "codes")))
    train_prior_and_save_generator(
        PriorTrainingConfig(
            codes=str(tmp_path / "codes"),
            output_dir=str(tmp_path / "prior"),
            model={"model_type": "rq_prior", **small},
            max_steps=1,
        )
    )
    second = AutoModel.from_pretrained(tmp_path / "prior" / "generator")
    assert weights_sha256(second.image_tokenizer) == weights_sha256(tokenizer)


def test_codes_of_a_beam(tmp_path):
    tokenizer = _tiny_hierarchy(tmp_path / "tokenizer")
    model = AutoModel.from_pretrained(tokenizer).eval()
    with torch.no_grad():
        for book in model.quantizer[1].level_codebooks():
            book.weight.mul_(0.05)  # as small as the latents of fresh weights
    model.save_pretrained(tokenizer)
    (rows,) = load_image_splits(DataConfig(), "validation_split")
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    searched, greedy = (model.encode(batch["pixel_values"], beam_width=width).flatten().int() for width in (3, 1))
    assert not torch.equal(searched, greedy)
    config = EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes"), beam_width=3)
    encode_images(config)
    encoded = EncodedImages.load(tmp_path / "codes")
    assert encoded.beam_width == 3
    assert torch.equal(encoded.splits["validation"].codes, searched)
    # A generator of a prior on these codes reads images as they were read.
    prior = {"model_type": "rq_prior", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    options = PriorTrainingConfig(codes=config.output_dir, output_dir=str(tmp_path / "prior"), model=prior, max_steps=1)
    train_prior_and_save_generator(options)
    generator = AutoModel.from_pretrained(tmp_path / "prior" / "generator").image_tokenizer
    assert torch.equal(generator.encode(batch["pixel_values"]).flatten().int(), searched)
    # A tokenizer that searches by itself.
    model.config.beam_width = 3
    model.save_pretrained(tmp_path / "searching")
    encode_images(replace(config, tokenizer=str(tmp_path / "searching"), beam_width=None))
    assert EncodedImages.load(tmp_path / "codes").beam_width == 3
    encode_images(replace(config, tokenizer=str(tmp_path / "searching"), beam_width=1))
    assert torch.equal(EncodedImages.load(tmp_path / "codes").splits["validation"].codes, greedy)


def test_beams_that_cannot_be(tmp_path, never_encoding):
    several = _tiny_hierarchy(tmp_path / "several")
    with pytest.raises(ValueError, match="beam_width 2 chooses others: set beam_width to 1, or soft_targets to 0"):
        encode_images(EncodeConfig(tokenizer=several, output_dir=str(tmp_path / "soft"), beam_width=2, soft_targets=4))
    tokenizer, output_dir = _tokenizer(tmp_path / "tokenizer"), str(tmp_path / "codes")
    with pytest.raises(ValueError, match="beam_width is 2, but no grid of this tokenizer has several codes"):
        encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=output_dir, beam_width=2))


def test_soft_targets_are_the_likeliest_codes_of_the_posterior(tmp_path):
    tokenizer = _tiny_hierarchy(tmp_path / "tokenizer")
    config = EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes"), soft_targets=4)
    encode_images(config)
    encoded = EncodedImages.load(tmp_path / "codes")
    train, layout = encoded.splits["train"], encoded.layout
    assert encoded.splits["validation"].soft is None
    model = AutoModel.from_pretrained(tokenizer).eval()
    (rows,) = load_image_splits(config.data, "train_split")
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    # By hand, place after place in flattened order: group, position, depth.
    posterior = [level.flatten(1, 2).double().exp() for level in model.posterior(batch["pixel_values"])]
    place, first = 0, 0
    for group in layout.groups:
        for position in range(group.num_positions):
            for depth in range(group.depth):
                expected = posterior[first + depth][:, position]
                width = min(4, expected.shape[-1])
                kept = expected.sort(dim=-1, descending=True).values[:, :width]
                codes, probabilities = train.soft.codes[:, place].long(), train.soft.probabilities[:, place].double()
                torch.testing.assert_close(
                    probabilities[:, :width], kept / kept.sum(-1, keepdim=True), atol=1e-3, rtol=1e-3
                )
                torch.testing.assert_close(expected.gather(1, codes[:, :width]), kept, atol=1e-6, rtol=1e-4)
                assert not probabilities[:, width:].any()
                # The code itself is the likeliest one.
                assert torch.equal(codes[:, 0], train.codes[:, place].long())
                place += 1
        first += group.depth
    assert place == layout.num_codes


def test_soft_targets_of_a_deterministic_tokenizer_are_refused(tmp_path, never_encoding):
    AutoModel.from_config(vq_vae("digits", hidden_size=8, codebook_size=8)).save_pretrained(tmp_path / "vq")
    config = EncodeConfig(tokenizer=str(tmp_path / "vq"), output_dir=str(tmp_path / "codes"), soft_targets=8)
    with pytest.raises(ValueError, match=r"soft_targets is 8, but .*quantizer 'vq', which has no posterior"):
        encode_images(config)
    with pytest.raises(ValueError, match="soft_targets must be an integer from 0 to 16,777,216, got -1"):
        EncodeConfig(soft_targets=-1)


def test_a_folder_of_other_things_is_refused(tmp_path, never_encoding):
    (tmp_path / "images" / "train").mkdir(parents=True)
    config = EncodeConfig(tokenizer=_tokenizer(tmp_path / "tokenizer"), output_dir=str(tmp_path / "images"))
    with pytest.raises(FileExistsError, match=r"output_dir '.*images' holds train, which no `encode` wrote"):
        encode_images(config)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_leaves_the_old_codes_the_new_ones_or_none(tmp_path):
    model = AutoModel.from_pretrained(_tokenizer(tmp_path / "old"))
    # The same codes under other numbers.
    model.quantizer.codebook.weight.data = model.quantizer.codebook.weight.data.flip(0)
    model.save_pretrained(tmp_path / "new")
    root = Path(__file__).parents[2]
    command = [sys.executable, str(Path(__file__).with_name("killed_encoding.py")), str(tmp_path), "20", "5"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert outcomes["complete"] == "new"
    refused = f"FileNotFoundError: '{tmp_path}/codes' holds no complete codes, since an `encode` into it was"
    kinds = [
        "refused" if outcome.startswith(refused) else outcome
        for outcome in (*outcomes["operations"].values(), *outcomes["timed"])
    ]
    assert len(kinds) == 25
    # The moments of the operations reach from the first to the last, so that every outcome occurs.
    assert set(kinds) == {"old", "refused", "new"}


def _images(data, split="train_split"):
    (rows,) = load_image_splits(data, split)
    return rows


def _codes(tokenizer, pixels):
    return AutoModel.from_pretrained(tokenizer).eval().encode(pixels).flatten()


def _varied_tokenizer(folder, **fields):
    """One whose codes differ: an untrained encoder's vectors are much the same, and here those are the codes."""
    model = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8, **fields)).eval()
    with torch.no_grad():
        latents, _ = model.encoder(_of_rows(_images(DataConfig()))["pixel_values"][:64])
        vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
        model.quantizer.codebook.weight.copy_(vectors[torch.linspace(0, len(vectors) - 1, 8).long()])
    model.save_pretrained(folder)
    return str(folder)


def _of_rows(rows, **noise):
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"), **noise)
    return batch


CHANGES = [{"horizontal_flip": True}, {"random_resized_crop": [0.3, 0.9], "image_size": 8, "num_workers": 0}]


@pytest.mark.parametrize("changes", CHANGES)
def test_view_k_is_the_training_images_of_epoch_k(tmp_path, changes):
    tokenizer, data = _varied_tokenizer(tmp_path / "tokenizer"), DataConfig(train_split="train[:100]", **changes)
    config = EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes"), data=data, batch_size=16)
    encode_images(replace(config, views=3, seed=5))
    encoded = EncodedImages.load(tmp_path / "codes")
    train, rows = encoded.splits["train"], _images(data)
    # A training with one batch an epoch, whose rows are put back in order by their plan.
    feed = RowFeed(rows, BatchPlan(100, 100, seed=5))
    for view in range(3):
        (batch,) = feed.rest_of_epoch(view, torch.device("cpu"))
        (order,) = feed.plan.rest_of_epoch(view)
        expected = torch.empty(100, train.codes.shape[1], dtype=torch.long)
        expected[order] = _codes(tokenizer, batch["pixel_values"])
        assert torch.equal(train.codes[100 * view : 100 * (view + 1)].long(), expected)
    assert torch.equal(train.labels, _of_rows(rows)["labels"].repeat(3))
    assert not torch.equal(train.codes[:100], train.codes[100:200])
    assert encoded.views == json.loads((tmp_path / "codes" / "codes.json").read_text())["views"] == 3
    # Validation is as it is, and with one view training is, too.
    validation = _of_rows(_images(data, "validation_split"))["pixel_values"]
    assert torch.equal(encoded.splits["validation"].codes.long(), _codes(tokenizer, validation))
    encode_images(config)
    once = EncodedImages.load(tmp_path / "codes")
    plain = _of_rows(_images(DataConfig(train_split="train[:100]")))["pixel_values"]
    assert torch.equal(once.splits["train"].codes.long(), _codes(tokenizer, plain))
    assert once.views == 1


def test_a_view_of_mirrored_images_has_each_as_it_is_or_mirrored(tmp_path):
    tokenizer, data = (
        _varied_tokenizer(tmp_path / "tokenizer"),
        DataConfig(train_split="train[:100]", horizontal_flip=True),
    )
    encode_images(EncodeConfig(tokenizer=tokenizer, output_dir=str(tmp_path / "codes"), data=data, views=2))
    views = EncodedImages.load(tmp_path / "codes").splits["train"].codes.long().split(100)
    pixels = _of_rows(_images(DataConfig(train_split="train[:100]")))["pixel_values"]
    plain, mirrored = _codes(tokenizer, pixels), _codes(tokenizer, pixels.flip(-1))
    for view in views:
        is_plain, is_mirrored = ((view == codes).all(1) for codes in (plain, mirrored))
        assert (is_plain | is_mirrored).all()
        assert 30 < is_mirrored.sum() < 70


def test_views_that_would_be_the_same_are_refused():
    with pytest.raises(ValueError, match=r"views is 10, but nothing changes .* set data\.horizontal_flip, .* at 1\."):
        EncodeConfig(views=10)
    with pytest.raises(ValueError, match="views must be an integer from 1 to 10,000, got 0"):
        EncodeConfig(views=0)


class _Interruption:
    """Ends an encoding after so many batches, and counts them."""

    def __init__(self, monkeypatch):
        self.batches, self.last = 0, None
        encode_batch = _Encoder._encode_batch

        def counted(encoder, *arguments):
            if self.batches == self.last:
                raise KeyboardInterrupt
            self.batches += 1
            return encode_batch(encoder, *arguments)

        monkeypatch.setattr(_Encoder, "_encode_batch", counted)

    def after(self, batches, config):
        self.batches, self.last = 0, batches
        with pytest.raises(KeyboardInterrupt):
            encode_images(config)
        self.batches, self.last = 0, None


@pytest.fixture
def interruption(monkeypatch):
    return _Interruption(monkeypatch)


def _hashes(folder):
    encoded = EncodedImages.load(folder)
    return encoded.tokenizer_sha256, {name: rows.sha256() for name, rows in encoded.splits.items()}


def _views_config(tmp_path, **options):
    """75 batches of each of two views, 15 of validation; a part has 16."""
    data = DataConfig(train_split="train[:300]", validation_split="test[:60]", horizontal_flip=True)
    return EncodeConfig(
        tokenizer=_varied_tokenizer(tmp_path / "tokenizer"),
        output_dir=str(tmp_path / "codes"),
        **{"batch_size": 4, "views": 2, "soft_targets": 2, "data": data, **options},
    )


def test_codes_that_will_be_replaced_are_mentioned(tmp_path, capsys):
    config = _views_config(tmp_path, views=1, data=DataConfig(train_split="train[:8]", validation_split="test[:4]"))
    said = "codes has codes, which the new ones replace once they are complete"
    for already_there in (False, True):
        encode_images(config)
        assert (said in capsys.readouterr().out) == already_there


@pytest.mark.parametrize(
    ("batches", "left"), [(15, 165), (16, 149), (74, 165 - 64), (75, 165 - 75), (100, 165 - 91), (160, 165 - 150)]
)
def test_an_interrupted_encoding_goes_on_after_the_last_part(tmp_path, interruption, capsys, batches, left):
    config = _views_config(tmp_path)
    encode_images(replace(config, output_dir=str(tmp_path / "whole")))
    interruption.after(batches, config)
    with pytest.raises(FileNotFoundError, match="an `encode` into it was interrupted: run it again"):
        EncodedImages.load(tmp_path / "codes")
    capsys.readouterr()
    encode_images(config)
    assert interruption.batches == left
    assert _hashes(tmp_path / "codes") == _hashes(tmp_path / "whole")
    said = f"codes has {(165 - left) * 4:,} rows of an interrupted `encode`, which goes on after them."
    assert (said in capsys.readouterr().out) == (left < 165)
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == sorted(
        ["codes.json", "dataset_dict.json", "train", "validation"]
    )


def test_codes_that_are_there_stay_until_the_new_ones_are_complete(tmp_path, interruption):
    config = _views_config(tmp_path)
    encode_images(replace(config, views=1))
    earlier = _hashes(tmp_path / "codes")
    interruption.after(40, config)
    assert _hashes(tmp_path / "codes") == earlier
    encode_images(config)
    assert interruption.batches == 165 - 32
    assert EncodedImages.load(tmp_path / "codes").views == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size was 4, is 8"),
        ({"soft_targets": 0}, "soft_targets was 2, is 0"),
        ({"views": 3}, "views was 2, is 3"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"tokenizer": "other"}, "tokenizer_sha256 was '"),
        ({"data.train_split": "train[1:301]"}, "train_classes was .*; train_rows_sha256 was '"),
        ({"data.validation_split": "test[:61]"}, "validation_classes was .*; validation_rows_sha256 was '"),
        ({"data.label_column": "none"}, "train_classes was '.*', is None; validation_classes was"),
        ({"data.color_jitter": [0.1, 0.1, 0.0, 0.0]}, r"data.color_jitter was not set, is \[0.1, 0.1, 0.0, 0.0\]"),
    ],
)
def test_parts_of_another_call_are_refused_by_what_differs(tmp_path, interruption, change, message):
    config = _views_config(tmp_path)
    interruption.after(40, config)
    ((name, value),) = change.items()
    if name == "tokenizer":
        other = _varied_tokenizer(tmp_path / "other", initial_log_variance=0.5)
        changed = replace(config, tokenizer=other)
    elif name.startswith("data."):
        changed = replace(config, data=replace(config.data, **{name.removeprefix("data."): value}))
    else:
        changed = replace(config, **change)
    way_out = f"choose another output_dir .*, or delete '{tmp_path}/codes/.parts' to start over"
    with pytest.raises(
        ValueError, match=rf"holds the parts of unfinished codes of another call \({message}.*{way_out}"
    ):
        encode_images(changed)
    # The refused call has left them as they were.
    encode_images(config)
    assert interruption.batches == 165 - 32


def test_the_way_out_of_parts_of_another_call(tmp_path, interruption):
    config = _views_config(tmp_path)
    interruption.after(40, config)
    shutil.rmtree(tmp_path / "codes" / ".parts")
    encode_images(replace(config, seed=1))
    assert interruption.batches == 165
    # Where nothing was finished there is nothing to mix with.
    interruption.after(10, config)
    encode_images(replace(config, batch_size=8))
    assert len(EncodedImages.load(tmp_path / "codes").splits["train"]) == 600


def test_a_missing_part_is_named(tmp_path, interruption):
    config = _views_config(tmp_path)
    interruption.after(40, config)
    (tmp_path / "codes" / ".parts" / "train-00000-0000000000-0000000016.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"no part before train-00000-0000000016-0000000032\.arrow"):
        encode_images(config)


def test_the_same_files_in_another_folder_go_on(tmp_path, interruption):
    for folder in ("here", "there"):
        for number in range(80):
            path = tmp_path / folder / "train" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    config = _views_config(
        tmp_path, batch_size=2, views=1, data=DataConfig(name="imagefolder", path=str(tmp_path / "here"))
    )
    encode_images(replace(config, output_dir=str(tmp_path / "whole")))
    interruption.after(20, config)
    encode_images(replace(config, data=replace(config.data, path=str(tmp_path / "there"))))
    assert interruption.batches == 40 - 16
    assert _hashes(tmp_path / "codes") == _hashes(tmp_path / "whole")
