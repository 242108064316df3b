"""Codes of images on disk, what stage two trains on.

A folder made by `DatasetDict.save_to_disk` with the columns `codes` (fixed-length lists of int16 or int32 in the order
of `Codes.flatten`) and, for images with classes, `labels`; and `codes.json` with the layout, where they come from, and
the SHA-256 of every split. Sounds also have `lengths`, their columns of the coarsest grid, after which all codes are 0,
and, where they have speakers, `speakers`.
With soft targets the training split also has `soft_codes` (integers as well) and `soft_probabilities` (float16), k of
each per code.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.files import naming_full_disk, read_json, sync, write_json

from .images import Batch
from .soft_codes import SoftCodes

if TYPE_CHECKING:
    from datasets import Dataset, Features

DESCRIPTION = "codes.json"
PARTS = ".parts"
"""What `encode` has finished of codes that are not complete yet, in the folder that they are for."""
# In the folder itself, which may be a mount point or a link: codes that are being written, and those they replace.
_NEW, _OLD = ".new", ".old"
# The order in which they go when new codes are in place: as long as there are old ones, `end_interrupted` knows.
_DONE = (_NEW, PARTS, _OLD)
_ROWS_AT_A_TIME = 10_000
# The columns in the order of their hash, and their types in memory.
_TYPES: dict[str, type] = {
    **{"codes": np.int32, "labels": np.int64, "speakers": np.int64, "lengths": np.int64},
    **{"soft_codes": np.int32, "soft_probabilities": np.float16},
}


@dataclass(frozen=True)
class CodeRows:
    """One split of codes, in memory; a `BatchSource`.

    Args:
        codes: Integers (N, T), in the order of `Codes.flatten`.
        labels: LongTensor (N,) of classes, or None.
        soft: Posterior probabilities of the codes, for training; or None.
        speakers: LongTensor (N,) of the speakers of sounds, or None.
        lengths: LongTensor (N,), of sounds the columns of the coarsest grid that are no padding; or None.
    """

    codes: torch.Tensor
    labels: torch.Tensor | None = None
    soft: SoftCodes | None = None
    speakers: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def sha256(self) -> str:
        """Hash of codes, labels, speakers, lengths and posterior probabilities."""
        columns = {"codes": self.codes, "labels": self.labels, "speakers": self.speakers, "lengths": self.lengths}
        if self.soft is not None:
            columns |= {"soft_codes": self.soft.codes, "soft_probabilities": self.soft.probabilities}
        there = {name: column for name, column in columns.items() if column is not None}
        return _sha256((name, [column.numpy()]) for name, column in there.items())

    def batches(self, index_batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[Batch]:
        """Batches {"codes": LongTensor (B, T), "labels": (B,) when there are classes, "speaker_ids" (B,) likewise}.

        With posterior probabilities also "soft_codes", LongTensor (B, T, k), and "soft_probabilities", float32
        (B, T, k).
        """
        columns = {"codes": self.codes}
        if self.labels is not None:
            columns["labels"] = self.labels
        if self.speakers is not None:
            columns["speaker_ids"] = self.speakers
        if self.soft is not None:
            columns |= {"soft_codes": self.soft.codes, "soft_probabilities": self.soft.probabilities}
        columns = {name: column.to(device) for name, column in columns.items()}
        for cpu_indices in index_batches:
            indices = cpu_indices.to(device, non_blocking=True)
            batch = {name: column[indices] for name, column in columns.items()}
            yield {name: rows.float() if rows.is_floating_point() else rows.long() for name, rows in batch.items()}


@dataclass(frozen=True)
class EncodedImages:
    """A folder of codes.

    Args:
        layout: Layout of the codes.
        splits: Rows by split: "train", "validation" and perhaps "test".
        tokenizer: Folder or Hub id of the tokenizer that made them.
        tokenizer_sha256: Hash of its weights, see `weights_sha256`.
        label_names: Names of the classes, or None.
        speaker_names: Names of the speakers, or None.
        views: How many times the training split is there, every time with other random changes of the images; 1: as it
            is.
        beam_width: How the levels of a position were chosen, see `HQVAEModel.encode`.
    """

    layout: CodeLayout
    splits: Mapping[str, CodeRows]
    tokenizer: str
    tokenizer_sha256: str
    label_names: list[str] | None = None
    speaker_names: list[str] | None = None
    views: int = 1
    beam_width: int = 1

    def save(self, folder: str | Path) -> None:
        """Writes the folder; codes that are there already are replaced when the new ones are complete.

        A process that is killed meanwhile leaves the old codes, the new ones, or a folder that `load` refuses. What
        else is in the folder stays.

        Raises:
            FileExistsError: If things of the same names are there that are no codes.
        """
        splits = {
            name: data_set(rows, self.layout, self.label_names, self.speaker_names)
            for name, rows in self.splits.items()
        }
        names = (self.label_names, self.speaker_names)
        description = describe_codes(
            self.layout, self.tokenizer, self.tokenizer_sha256, *names, self.views, self.beam_width
        )
        write_codes(folder, splits, description)

    @staticmethod
    def check_folder(folder: str | Path, splits: Iterable[str]) -> None:
        """Checks that `save` would replace nothing but codes.

        Args:
            folder: Where they are to go.
            splits: Names of the splits.

        Raises:
            FileExistsError: If it would.
        """
        root = Path(folder)
        if (root / DESCRIPTION).is_file() or (root / _NEW / DESCRIPTION).is_file():
            return
        strange = [name for name in (*splits, "dataset_dict.json") if (root / name).exists()]
        if strange:
            raise FileExistsError(
                f"output_dir {str(folder)!r} holds {', '.join(strange)}, which no `encode` wrote (no {DESCRIPTION}), "
                "and which codes would replace: choose another output_dir."
            )

    @staticmethod
    def load_description(folder: str | Path) -> dict[str, Any]:
        """Reads the description beside the codes.

        Raises:
            FileNotFoundError: If the folder holds no codes.
            ValueError: If the description is damaged.
        """
        path = Path(folder) / DESCRIPTION
        if not path.is_file() and any((Path(folder) / name).is_dir() for name in (_NEW, PARTS)):
            raise FileNotFoundError(
                f"{str(folder)!r} holds no complete codes, since an `encode` into it was interrupted: run it again."
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} holds no codes (no {DESCRIPTION}): write them with `encode`, or set codes to the "
                "folder that has them."
            )
        return _read_description(Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> EncodedImages:
        """Reads a folder that `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no codes.
            ValueError: If a split is not the one that was saved, cannot be read, or disagrees with the layout.
        """
        from datasets import load_from_disk

        description = cls.load_description(folder)
        layout = CodeLayout.from_dict(description["code_layout"])
        names = description["id2label"]
        try:
            splits = {split: _read_rows(rows) for split, rows in load_from_disk(str(folder)).items()}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"The codes in {str(folder)!r} cannot be read: encode the images again. ({error})"
            ) from error
        found, expected = {name: rows.sha256() for name, rows in splits.items()}, description.get("sha256", {})
        strange = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        if strange:
            raise ValueError(
                f"{', '.join(strange)} in {str(folder)!r} is not what {DESCRIPTION} says (sha256), so that the codes "
                "may be damaged or a mixture of two tokenizers': encode the images again."
            )
        for rows in splits.values():
            _check_values(rows, layout)
        return cls(
            layout,
            splits,
            description["tokenizer"],
            description["tokenizer_sha256"],
            None if names is None else list(names.values()),
            description.get("speaker_names"),
            description.get("views", 1),
            description.get("beam_width", 1),
        )


def describe_codes(
    layout: CodeLayout,
    tokenizer: str,
    tokenizer_sha256: str,
    label_names: Sequence[str] | None = None,
    speaker_names: Sequence[str] | None = None,
    views: int = 1,
    beam_width: int = 1,
) -> dict[str, Any]:
    """The description beside codes, but for their hashes; see `EncodedImages` for what it has."""
    return {
        "code_layout": layout.to_dict(),
        "tokenizer": tokenizer,
        "tokenizer_sha256": tokenizer_sha256,
        "id2label": None if label_names is None else dict(enumerate(label_names)),
        "speaker_names": speaker_names,
        "views": views,
        "beam_width": beam_width,
    }


def data_set(
    rows: CodeRows,
    layout: CodeLayout,
    label_names: Sequence[str] | None = None,
    speaker_names: Sequence[str] | None = None,
) -> Dataset:
    """A split in the types that go to disk, made part by part and without an object per row.

    Args:
        rows: The split.
        layout: Of the codes.
        label_names: Names of the classes, or None.
        speaker_names: Names of the speakers, or None.
    """
    from datasets import Dataset, Features, Value, concatenate_datasets

    dtype = "int16" if max(layout.codebook_sizes) <= 2**15 else "int32"
    values = {"codes": (rows.codes, dtype)}
    if rows.soft is not None:
        values |= {"soft_codes": (rows.soft.codes, dtype), "soft_probabilities": (rows.soft.probabilities, "float16")}
    numbers = {"labels": rows.labels, "speakers": rows.speakers, "lengths": rows.lengths}
    there = {name: column for name, column in numbers.items() if column is not None}
    parts = []
    for first in range(0, max(1, len(rows)), _ROWS_AT_A_TIME):
        part = slice(first, first + _ROWS_AT_A_TIME)
        columns = {name: _list_column(column[part], kind) for name, (column, kind) in values.items()}
        features: dict[str, Any] = {name: kind for name, (kind, _) in columns.items()}
        arrays: dict[str, Any] = {name: array for name, (_, array) in columns.items()}
        features |= dict.fromkeys(there, Value("int64"))
        arrays |= {name: column[part].numpy() for name, column in there.items()}
        parts.append(
            Dataset.from_dict(
                arrays, features=with_names(Features(features), labels=label_names, speakers=speaker_names)
            )
        )
    return concatenate_datasets(parts)


def with_names(features: Features, **names: Sequence[str] | None) -> Features:
    """The types of columns, those of classes with their names.

    Args:
        features: The types.
        **names: Names by column; None: there are none.
    """
    from datasets import ClassLabel

    named = {column: ClassLabel(names=list(given)) for column, given in names.items() if given and column in features}
    return type(features)({**features, **named})


def write_codes(folder: str | Path, splits: Mapping[str, Dataset], description: Mapping[str, Any]) -> None:
    """Writes a folder of codes as `EncodedImages.save` does, of splits that need not be in memory.

    Args:
        folder: The folder.
        splits: Made by `data_set`; they may lie in the `PARTS` of the folder, which are gone afterwards.
        description: Of `describe_codes`.

    Raises:
        FileExistsError: If things of the same names are there that are no codes.
        DiskFullError: If there was no space.
    """
    from datasets import DatasetDict

    root = Path(folder)
    EncodedImages.check_folder(root, splits)
    root.mkdir(parents=True, exist_ok=True)
    end_interrupted(root)
    new = root / _NEW
    hashes = {name: _sha256((column, _parts_of(rows, column)) for column in _TYPES) for name, rows in splits.items()}
    with naming_full_disk(root):
        DatasetDict(splits).save_to_disk(str(new))
        for path in new.rglob("*"):
            sync(path)
    # Its name says that the rest is complete, hence it comes last and whole.
    write_json(new / DESCRIPTION, {**description, "sha256": hashes})
    _put_in_place(root)


def _sha256(columns: Iterable[tuple[str, Iterable[np.ndarray]]]) -> str:
    """Hash of columns, each by its name and in parts, in the order of `_TYPES`."""
    digest = hashlib.sha256()
    for name, parts in columns:
        for part in parts:
            digest.update(np.ascontiguousarray(part, dtype=_TYPES[name]).data)
    return digest.hexdigest()


def _put_in_place(folder: Path) -> None:
    """Replaces the codes of a folder by the complete new ones inside it; can be repeated after a kill at any line."""
    new, old = folder / _NEW, folder / _OLD
    old.mkdir(exist_ok=True)
    names = sorted(path.name for path in new.iterdir() if path.name != DESCRIPTION)
    # Without a description the folder is refused, from here to the last of the new files.
    for name in (DESCRIPTION, *names):
        if (folder / name).exists():
            os.replace(folder / name, old / name)
    for name in (*names, DESCRIPTION):
        os.replace(new / name, folder / name)
    if (old / DESCRIPTION).is_file():
        earlier, now = (set(_read_description(place).get("sha256", {})) for place in (old, folder))
        for path in list(folder.iterdir()):
            if path.name in earlier - now:
                shutil.rmtree(path)
    _clear(folder, *_DONE)


def end_interrupted(folder: Path) -> None:
    """Ends a `save` that was interrupted: one that had begun to replace the codes is completed.

    Of any other is left only what is in the way. The `PARTS` that the codes were made from are kept until the codes are
    in place.
    """
    complete, in_place = (folder / _NEW / DESCRIPTION).is_file(), (folder / DESCRIPTION).is_file()
    if complete and not in_place:
        _put_in_place(folder)
    elif in_place and not complete and (folder / _OLD).exists():
        _clear(folder, *_DONE)
    else:
        _clear(folder, _OLD, _NEW)


def _clear(folder: Path, *names: str) -> None:
    for name in names:
        if (folder / name).exists():
            shutil.rmtree(folder / name)


def _read_description(folder: Path) -> dict[str, Any]:
    return read_json(folder / DESCRIPTION, "encode the images again")


def _list_column(values: torch.Tensor, dtype: str) -> tuple[Any, Any]:
    """Values (N, …) as a column of lists: its type, and an Arrow array that shares NumPy's memory."""
    import pyarrow
    from datasets import List, Value

    flat = np.ascontiguousarray(values.flatten(1).numpy(), dtype=dtype)
    length = flat.shape[1]
    return List(Value(dtype), length=length), pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(flat.ravel()), length
    )


def _read_rows(rows: Dataset) -> CodeRows:
    columns = {name: _read_column(rows, name) for name in _TYPES if name in rows.column_names}
    soft = None
    if "soft_codes" in columns:
        both = columns.pop("soft_codes"), columns.pop("soft_probabilities")
        soft = SoftCodes(*(column.reshape(*columns["codes"].shape, -1) for column in both))
    return CodeRows(**columns, soft=soft)


def _read_column(rows: Dataset, name: str) -> torch.Tensor:
    """A column (N,), or (N, length) of lists, copied part by part from the mapped file to its place in memory."""
    from datasets import List

    kind = rows.features[name]
    values = np.empty((len(rows), kind.length) if isinstance(kind, List) else (len(rows),), _TYPES[name])
    first = 0
    for part in _parts_of(rows, name):
        part = part.reshape(-1, *values.shape[1:])
        values[first : first + len(part)] = part
        first += len(part)
    return torch.from_numpy(values)


def _parts_of(rows: Dataset, name: str) -> Iterator[np.ndarray]:
    """The values of a column, part by part and flat; nothing where there is none of the name."""
    from datasets import List

    if name not in rows.column_names:
        return
    for part in rows.select_columns([name]).with_format("arrow").iter(_ROWS_AT_A_TIME):
        column = part.column(0).combine_chunks()
        array = column.flatten() if isinstance(rows.features[name], List) else column
        yield array.to_numpy(zero_copy_only=False)


def _check_values(rows: CodeRows, layout: CodeLayout) -> None:
    for part in rows.codes.split(_ROWS_AT_A_TIME):
        layout.unflatten(part).validate()
    if rows.soft is None:
        return
    for codes, probabilities in zip(
        rows.soft.codes.split(_ROWS_AT_A_TIME), rows.soft.probabilities.split(_ROWS_AT_A_TIME), strict=True
    ):
        for column in codes.unbind(dim=2):
            layout.unflatten(column).validate()
        # Sums of k float16 values, each off by up to 2⁻¹² of itself or so.
        if not ((probabilities >= 0).all() and ((probabilities.float().sum(dim=2) - 1).abs() < 0.01).all()):
            raise ValueError(
                "soft_probabilities must be at least 0 and sum to 1 for every code: encode the images again."
            )
