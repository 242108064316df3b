"""Codes of images on disk, what stage two trains on.

A folder made by `DatasetDict.save_to_disk` with the columns `codes` (fixed-length lists of int16 or int32 in the order
of `Codes.flatten`) and, for images with classes, `labels`; and `codes.json` with the layout and where they come from.
With soft targets the training split also has `soft_codes` (integers as well) and `soft_probabilities` (float16), k of
each per code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hq_tokenizers.codes import CodeLayout

from .images import Batch
from .soft_codes import SoftCodes

DESCRIPTION = "codes.json"


@dataclass(frozen=True)
class CodeRows:
    """One split of codes, in memory; a `BatchSource`.

    Args:
        codes: Integers (N, T), in the order of `Codes.flatten`.
        labels: LongTensor (N,) of classes, or None.
        soft: Posterior probabilities of the codes, for training; or None.
    """

    codes: torch.Tensor
    labels: torch.Tensor | None = None
    soft: SoftCodes | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def sha256(self) -> str:
        """Hash of codes, labels and posterior probabilities."""
        digest = hashlib.sha256(self.codes.int().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.long().numpy().tobytes())
        if self.soft is not None:
            digest.update(self.soft.codes.int().numpy().tobytes())
            digest.update(self.soft.probabilities.half().numpy().tobytes())
        return digest.hexdigest()

    def batches(self, index_batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[Batch]:
        """Batches {"codes": LongTensor (B, T), "labels": (B,) when there are classes}.

        With posterior probabilities also "soft_codes", LongTensor (B, T, k), and "soft_probabilities", float32
        (B, T, k).
        """
        columns = {"codes": self.codes}
        if self.labels is not None:
            columns["labels"] = self.labels
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
    """

    layout: CodeLayout
    splits: Mapping[str, CodeRows]
    tokenizer: str
    tokenizer_sha256: str
    label_names: list[str] | None = None

    def save(self, folder: str | Path) -> None:
        """Writes the folder."""
        from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

        length = self.layout.num_codes
        dtype = "int16" if max(self.layout.codebook_sizes) <= 2**15 else "int32"
        splits = {}
        for name, rows in self.splits.items():
            features = {"codes": List(Value(dtype), length=length)}
            columns: dict[str, Any] = {"codes": list(rows.codes.numpy().astype(dtype))}
            if rows.labels is not None:
                features["labels"] = ClassLabel(names=self.label_names) if self.label_names else Value("int64")
                columns["labels"] = rows.labels.numpy()
            if rows.soft is not None:
                for column, values, kind in (
                    ("soft_codes", rows.soft.codes, dtype),
                    ("soft_probabilities", rows.soft.probabilities, "float16"),
                ):
                    features[column] = List(Value(kind), length=length * values.shape[2])
                    columns[column] = list(values.flatten(1).numpy().astype(kind))
            splits[name] = Dataset.from_dict(columns, features=Features(features))
        DatasetDict(splits).save_to_disk(str(folder))
        description = {
            "code_layout": self.layout.to_dict(),
            "tokenizer": self.tokenizer,
            "tokenizer_sha256": self.tokenizer_sha256,
            "id2label": None if self.label_names is None else dict(enumerate(self.label_names)),
        }
        (Path(folder) / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load_description(folder: str | Path) -> dict[str, Any]:
        """Reads the description beside the codes.

        Raises:
            FileNotFoundError: If the folder holds no codes.
        """
        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} holds no codes (no {DESCRIPTION}): write them with `encode`, or set codes to the "
                "folder that has them."
            )
        return json.loads(path.read_text(encoding="utf-8"))

    @classmethod
    def load(cls, folder: str | Path) -> EncodedImages:
        """Reads a folder that `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no codes.
            ValueError: If the codes disagree with their layout.
        """
        from datasets import load_from_disk

        description = cls.load_description(folder)
        layout = CodeLayout.from_dict(description["code_layout"])
        names = description["id2label"]
        splits = {}
        for split, rows in load_from_disk(str(folder)).with_format("numpy").items():
            codes = torch.from_numpy(np.asarray(rows["codes"][:]).astype(np.int32))
            layout.unflatten(codes).validate()
            labels = torch.from_numpy(np.asarray(rows["labels"][:])) if "labels" in rows.column_names else None
            soft = _read_soft_codes(rows, layout) if "soft_codes" in rows.column_names else None
            splits[split] = CodeRows(codes, labels, soft)
        return cls(
            layout,
            splits,
            description["tokenizer"],
            description["tokenizer_sha256"],
            None if names is None else list(names.values()),
        )


def _read_soft_codes(rows: Any, layout: CodeLayout) -> SoftCodes:
    shape = (len(rows), layout.num_codes, -1)
    codes = torch.from_numpy(np.asarray(rows["soft_codes"][:]).astype(np.int32)).reshape(shape)
    probabilities = torch.from_numpy(np.asarray(rows["soft_probabilities"][:]).astype(np.float16)).reshape(shape)
    for column in codes.unbind(dim=2):
        layout.unflatten(column).validate()
    # Sums of k float16 values, each off by up to 2⁻¹² of itself or so.
    if not ((probabilities >= 0).all() and ((probabilities.float().sum(dim=2) - 1).abs() < 0.01).all()):
        raise ValueError("soft_probabilities must be at least 0 and sum to 1 for every code: encode the images again.")
    return SoftCodes(codes, probabilities)
