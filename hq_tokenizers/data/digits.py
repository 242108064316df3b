"""The embedded demonstration set: scikit-learn's 1,797 handwritten digits of 8×8 pixels, 17 grey levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

NUM_TRAINING_DIGITS = 1500
SIZE = 8
MAX_GREY_LEVEL = 16


def load_digits() -> DatasetDict:
    """The digits as a `DatasetDict` with the columns `image` (8×8 uint8 in 0…16) and `label` (0…9).

    The first 1,500 digits are the split "train", the last 297 "test": the set is ordered by writer, so that most
    writers of the held-out digits are not in the training split.
    """
    from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features
    from sklearn.datasets import load_digits as load_sklearn_digits

    digits = load_sklearn_digits()
    images, labels = digits.images.astype("uint8"), digits.target
    features = Features(
        {"image": Array2D((SIZE, SIZE), "uint8"), "label": ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    rows = {"train": slice(0, NUM_TRAINING_DIGITS), "test": slice(NUM_TRAINING_DIGITS, None)}
    return DatasetDict(
        {
            split: Dataset.from_dict({"image": list(images[part]), "label": labels[part]}, features=features)
            for split, part in rows.items()
        }
    )
