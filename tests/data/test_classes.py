"""Which columns are classes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig


@pytest.fixture
def load(write_parquet, png_of):
    def load(labels, label_column=None, column="label"):
        path = write_parquet({"image": [png_of(9)] * len(labels), column: labels})
        config = DataConfig(name="parquet", path=str(path), validation_split="train", label_column=label_column)
        (rows,) = load_image_splits(config, "train_split")
        return None if rows.labels is None else rows.labels.tolist(), rows.label_names

    return load


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat", "dog"], "holds texts, not classes"),
        ([0.5, 1.5], "holds numbers that are not whole by type"),
        ([1.0, float("nan")], "holds numbers that are not whole by type"),
        ([True, False], "holds truth values"),
        ([0, -1], "holds -1 to 0; classes go from 0"),
        ([-1, -1], "holds -1 to -1; classes go from 0"),
        ([[1, 2], [3]], "holds lists or records"),
        ([0, None], "has 1 rows without a class"),
    ],
)
def test_a_column_that_happens_to_be_called_label_is_left_out_and_that_is_said(load, labels, said, capsys):
    assert load(labels) == (None, None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data: the column 'label'")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "set data.label_column" in lines[0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["dog", "cat", "dog"], ([1, 0, 1], ["cat", "dog"])),
        ([2.0, 0.0], ([2, 0], ["0", "1", "2"])),
        ([True, False], ([1, 0], ["0", "1"])),
        ([1, 0], ([1, 0], ["0", "1"])),
    ],
)
@pytest.mark.parametrize("column", ["label", "kind"])
def test_a_column_that_was_chosen_is_taken(load, labels, expected, column):
    assert load(labels, column, column) == expected


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.5, 1.0], "holds fractions or NaN"),
        ([1.0, float("nan")], "holds fractions or NaN"),
        ([0, -1], "holds -1 to 0; classes go from 0"),
        ([[1, 2], [3]], "holds lists or records, not classes. Choose another column, or none"),
        ([0, None], "has 1 rows without a class"),
    ],
)
def test_a_column_that_was_chosen_and_cannot_be_classes_is_refused(load, labels, said):
    with pytest.raises(ValueError, match=f"data.label_column 'label' {re.escape(said)}"):
        load(labels, "label")


def test_of_a_column_without_a_single_class_nothing_is_said(load, capsys):
    """What `datasets` makes of folders that are splits, train/ and test/."""
    assert load([None, None]) == (None, None)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"data\.label_column 'label' "):
        load([None, None], "label")


def test_none_means_no_classes(load, capsys):
    assert load([0, 1], "none") == (None, None)
    assert load(["cat", "dog"], "none") == (None, None)
    assert "label" not in capsys.readouterr().out


@pytest.mark.parametrize("label_column", [None, "label"])
@pytest.mark.parametrize("value", [10**12, 100_000, np.float64(1e30)])
def test_numbers_that_count_no_classes_are_refused_before_they_are_named(load, label_column, value):
    if isinstance(value, float) and label_column is None:
        pytest.skip("floats are no classes unless the column is chosen")
    with pytest.raises(ValueError, match=rf"'label' holds the class {re.escape(str(value))}, but there can be 100,000"):
        load([value, value], label_column)


def test_texts_have_one_number_in_all_splits(tmp_path, write_parquet, png_of):
    write_parquet({"image": [png_of(0)] * 3, "kind": ["b", "c", "d"]}, "train.parquet")
    write_parquet({"image": [png_of(0)] * 2, "kind": ["d", "a"]}, "test.parquet")
    config = DataConfig(name="parquet", path=str(tmp_path), label_column="kind")
    train, test = load_image_splits(config, "train_split", "validation_split")
    assert train.label_names == test.label_names == ["a", "b", "c", "d"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2, 3], [3, 0])
