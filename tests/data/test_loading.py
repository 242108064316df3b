"""From options to images: columns, missing and broken images, one split only."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
import torch

from hq_tokenizers.cli import main
from hq_tokenizers.data.loading import load_image_folder, load_image_splits
from hq_tokenizers.image_decoding import UnreadableImageError
from hq_tokenizers.options.data import DataConfig


def load(path, *options, **settings):
    config = DataConfig(name="parquet", path=str(path), **settings)
    return load_image_splits(config, *(options or ("train_split",)))


WHOLE = {"validation_split": "train"}


class TestColumns:
    def columns(self, files):
        return {
            "bytes": files,
            "large bytes": pa.array(files, pa.large_binary()),
            "records": [
                {"bytes": file, "path": None if file is None else f"{index}.png"} for index, file in enumerate(files)
            ],
            "records of bytes": [{"bytes": file} for file in files],
            "bytes in views": pa.array(files).cast(pa.binary()).cast(pa.binary_view()),
            "records with an index": [{"index": 0, "bytes": file, "path": None} for file in files],
        }

    @pytest.mark.parametrize(
        "kind", ["bytes", "large bytes", "bytes in views", "records", "records of bytes", "records with an index"]
    )
    def test_bytes_are_images_without_a_word_that_they_are(self, write_parquet, png_of, levels, kind):
        column = self.columns([png_of(level) for level in range(4)])[kind]
        (rows,) = load(write_parquet({"picture": column, "id": list("abcd")}), **WHOLE)
        assert levels(rows) == [0, 1, 2, 3]
        (batch,) = rows.batches([torch.tensor([2])], torch.device("cpu"))
        assert batch["pixel_values"].tolist() == torch.full((1, 1, 4, 4), 2 / 255).tolist()

    @pytest.mark.parametrize("kind", ["bytes", "records", "records of bytes"])
    def test_rows_without_an_image_are_left_out_with_their_classes(self, write_parquet, png_of, levels, kind, capsys):
        column = self.columns([None if level in (0, 3) else png_of(level) for level in range(5)])[kind]
        path = write_parquet({"image": column, "label": [0, 1, 2, 3, 4]})
        (rows,) = load(path, **WHOLE)
        assert levels(rows) == [1, 2, 4]
        assert rows.labels.tolist() == [1, 2, 4]
        assert "data: 2 of 5 rows of 'train' have no image and are left out." in capsys.readouterr().out

    def test_missing_records(self, write_parquet, png_of, levels):
        records = [None, {"bytes": png_of(7), "path": "a.png"}]
        (rows,) = load(write_parquet({"image": records}), **WHOLE)
        assert levels(rows) == [7]
        with pytest.raises(ValueError, match=r"data\.train_split 'train' has no rows with an image"):
            load(write_parquet({"image": pa.array([None, None], pa.binary())}), **WHOLE)

    def test_slices_count_the_rows_of_the_file(self, write_parquet, png_of, levels):
        path = write_parquet({"image": [None if level == 1 else png_of(level) for level in range(6)]})
        first, rest = load(
            path, "train_split", "validation_split", train_split="train[:3]", validation_split="train[3:]"
        )
        assert (levels(first), levels(rest)) == ([0, 2], [3, 4, 5])

    def test_several_columns_of_images_need_a_name(self, write_parquet, png_of, levels):
        path = write_parquet({"image": [png_of(3)] * 2, "small": [png_of(4)] * 2})
        with pytest.raises(ValueError, match=r"several image columns: image, small\. Set data\.image_column"):
            load(path, **WHOLE)
        (rows,) = load(path, image_column="small", **WHOLE)
        assert levels(rows) == [4, 4]

    def test_bytes_of_other_things_are_no_images(self, write_parquet, png_of, levels):
        images = [None, png_of(3), png_of(5)]
        (rows,) = load(write_parquet({"hash": [b"ab", b"cd", b"ef"], "image": images}), **WHOLE)
        assert levels(rows) == [3, 5]
        # Where no column begins with an image, the choice is the user's.
        with pytest.raises(ValueError, match="several image columns: hash, image"):
            load(write_parquet({"hash": [b"ab"], "image": [png_of(3)[:40]]}), **WHOLE)

    @pytest.mark.parametrize("kind", ["string", "large_string", "record"])
    def test_paths_of_images(self, image_folder, write_parquet, levels, kind):
        paths = [str(image_folder / "cat" / f"{index}.png") for index in range(3)] + [None]
        column = (
            [{"bytes": None, "path": path} for path in paths]
            if kind == "record"
            else pa.array(paths, getattr(pa, kind)())
        )
        path = write_parquet({"name": list("abcd"), "photo": column})
        (rows,) = load(path, **WHOLE)
        assert levels(rows) == [0, 40, 80]
        (lazy,) = load_image_splits(DataConfig(name="parquet", path=str(path), **WHOLE), "train_split", memory_limit=0)
        first = lazy.sha256()
        (image_folder / "cat" / "1.png").write_bytes((image_folder / "cat" / "2.png").read_bytes())
        assert lazy.sha256() != first
        (image_folder / "cat" / "1.png").unlink()
        with pytest.raises(UnreadableImageError, match=r"There is no image file '.*cat/1\.png'"):
            load(path, **WHOLE)

    def test_what_is_not_read_is_said(self, write_parquet):
        path = write_parquet({"image": ["iVBORw0KGgo="], "url": ["https://a.b/c.png"], "label": [1]})
        with pytest.raises(ValueError, match=r"no image column.* image \(string\).* label \(int64\)\. Read are images"):
            load(path, **WHOLE)


class TestOneSplit:
    @pytest.fixture
    def path(self, write_parquet, png_of):
        levels = range(50)
        return write_parquet({"image": [png_of(level) for level in levels], "label": [level // 25 for level in levels]})

    def test_a_random_tenth_is_held_out_and_that_is_said(self, path, levels, capsys):
        train, held_out = load(path, "train_split", "validation_split")
        assert sorted(levels(train) + levels(held_out)) == list(range(50))
        assert len(held_out) == 5
        assert levels(held_out) == sorted(levels(held_out))
        # Of data in the order of their classes, the last tenth would be one class.
        assert set(held_out.labels.tolist()) == {0, 1}
        said = capsys.readouterr().out
        assert said.count("there is one split only, 'train' (50 rows): a random tenth of it is held out as 'test'") == 1

    def test_every_command_holds_out_the_same(self, path, levels):
        train, held_out = load(path, "train_split", "validation_split")
        assert levels(load(path, "train_split")[0]) == levels(train)
        assert levels(load(path, "validation_split")[0]) == levels(held_out)

    @pytest.mark.parametrize(
        "settings", [{"validation_split": "train"}, {"test_split": "train"}, {"train_split": "train[:50]"}]
    )
    def test_nothing_is_held_out_of_splits_that_were_chosen(self, path, levels, settings, capsys):
        assert levels(load(path, "train_split", **settings)[0]) == list(range(50))
        assert "held out" not in capsys.readouterr().out

    def test_nothing_is_held_out_where_there_are_two(self, tmp_path, write_parquet, png_of, levels):
        for split, level in (("train", 1), ("test", 2)):
            write_parquet({"image": [png_of(level)] * 20}, f"{split}.parquet")
        train, test = load(tmp_path, "train_split", "validation_split")
        assert (set(levels(train)), set(levels(test)), len(train), len(test)) == ({1}, {2}, 20, 20)

    @pytest.mark.parametrize("settings", [{}, {"train_split": "train[:25]", "validation_split": "train[25:]"}])
    def test_both_parts_have_the_same_classes(self, path, settings):
        """Also where one part does not show them all."""
        train, held_out = load(path, "train_split", "validation_split", **settings)
        assert train.label_names == held_out.label_names == ["0", "1"]

    def test_one_image_cannot_be_split(self, write_parquet, png_of):
        for images in ([png_of(0)], [png_of(0), None]):
            with pytest.raises(ValueError, match=r"'train', and one image in it, which cannot be split in two"):
                load(write_parquet({"image": images}), "train_split", "validation_split")

    def test_missing_images_do_not_count(self, write_parquet, png_of, levels):
        path = write_parquet({"image": [png_of(level) if level % 2 else None for level in range(40)]})
        train, held_out = load(path, "train_split", "validation_split")
        assert (len(train), len(held_out)) == (18, 2)
        assert sorted(levels(train) + levels(held_out)) == list(range(1, 40, 2))


class TestBrokenImages:
    def test_all_are_named_at_once(self, image_folder):
        for name in ("cat/1.png", "dog/2.png"):
            path = image_folder / name
            path.write_bytes(path.read_bytes()[:50])
        config = DataConfig(name="imagefolder", path=str(image_folder), **WHOLE)
        for load_images in (
            lambda: load_image_splits(config, "train_split"),
            lambda: load_image_folder(config, image_folder, "images"),
        ):
            with pytest.raises(UnreadableImageError, match="2 of 6 images cannot be read") as caught:
                load_images()
            assert str(caught.value).count("cat/1.png") == 1
            assert str(caught.value).count("dog/2.png") == 1
            assert "\n" not in str(caught.value)

    def test_rows_are_named_by_their_number_in_the_file(self, write_parquet, png_of):
        images = [None, *(png_of(level) for level in range(1, 30))]
        images[17] = images[17][:50]
        path = write_parquet({"image": images})
        for settings in (WHOLE, {}):
            with pytest.raises(UnreadableImageError, match=r"^Row 17 of 'train': The image cannot be read"):
                load(path, "train_split", "validation_split", **settings)
        records = [{"bytes": image, "path": f"{index}.png"} for index, image in enumerate(images)]
        with pytest.raises(
            UnreadableImageError, match=r"^Row 0 of 'train' \(0\.png\): There is no image file '0\.png'"
        ):
            load(write_parquet({"image": records}), **WHOLE)
        records[0] = None
        with pytest.raises(UnreadableImageError, match=r"^Row 17 of 'train' \(17\.png\): The image cannot be read"):
            load(write_parquet({"image": records}), **WHOLE)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_images_read_while_training_are_named_in_one_line(self, image_folder, workers):
        path = image_folder / "dog" / "0.png"
        path.write_bytes(path.read_bytes()[:50])
        config = DataConfig(name="imagefolder", path=str(image_folder), num_workers=workers, **WHOLE)
        (rows,) = load_image_splits(config, "train_split", memory_limit=0)
        with pytest.raises(UnreadableImageError, match=r"^The image '.*dog/0\.png' cannot be read .*leave it out\.$"):
            list(rows.batches([torch.arange(6)], torch.device("cpu")))

    def test_the_first_image_and_a_file_that_vanished(self, image_folder, png_of):
        (image_folder / "cat" / "0.png").write_bytes(b"")
        config = DataConfig(name="imagefolder", path=str(image_folder), **WHOLE)
        with pytest.raises(UnreadableImageError, match=r"cat/0\.png' cannot be read"):
            load_image_splits(config, "train_split")
        (image_folder / "cat" / "0.png").write_bytes(png_of(0))
        (rows,) = load_image_splits(config, "train_split", memory_limit=0)
        (image_folder / "cat" / "1.png").unlink()
        with pytest.raises(UnreadableImageError, match=r"There is no image file '.*cat/1\.png'"):
            list(rows.batches([torch.arange(6)], torch.device("cpu")))

    def test_images_that_do_not_fit_are_named_too(self, write_parquet, png_of):
        images = [png_of(0), png_of(7, width=9), png_of(1)]
        with pytest.raises(ValueError, match=r"^Row 1 of 'train': Found an image of 4×9 pixels among images of 4×4"):
            load(write_parquet({"image": images}), **WHOLE)

    @pytest.mark.parametrize(
        "words",
        [
            ["train-tokenizer", "--model", "{preset: sq_vae, network: digits}", "--batch_size", "2"],
            ["evaluate", "--images", "FOLDER", "--reference", "FOLDER"],
            ["evaluate", "--tokenizer", "TOKENIZER"],
            ["encode", "--tokenizer", "TOKENIZER"],
        ],
        ids=["train-tokenizer", "evaluate images", "evaluate tokenizer", "encode"],
    )
    def test_every_command_names_them(self, image_folder, tmp_path, words):
        from hq_tokenizers import SQVAEConfig, SQVAEModel

        tokenizer = SQVAEConfig(image_size=4, num_channels=1, hidden_size=8, num_downsampling=1, codebook_size=4)
        SQVAEModel(tokenizer).save_pretrained(tmp_path / "tokenizer")
        path = image_folder / "dog" / "0.png"
        path.write_bytes(path.read_bytes()[:50])
        places = {"FOLDER": str(image_folder), "TOKENIZER": str(tmp_path / "tokenizer")}
        data = ["--data.name", "imagefolder", "--data.path", str(image_folder), "--data.validation_split", "train"]
        output = ["--output_dir", str(tmp_path / "run")]
        with pytest.raises(SystemExit, match=rf"^error: The image '{re.escape(str(path))}' cannot be read"):
            main([places.get(word, word) for word in words] + data + output)
