"""Codes of images on disk, what stage two trains on.

A folder made by `DatasetDict.save_to_disk` with the columns `codes` (fixed-length lists of int16 or int32 in the order
of `Codes.flatten`) and, for images with classes, `labels`; and `codes.json` with the layout and where they come from.
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

DESCRIPTION = "codes.json"


@dataclass(frozen=True)
class CodeRows:
    """One split of codes, in memory; a `BatchSource`.

    Args:
        codes: Integers (N, T), in the order of `Codes.flatten`.
        labels: LongTensor (N,) of classes, or None.
    """

    codes: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def sha256(self) -> str:
        """Hash of codes and labels."""
        digest = hashlib.sha256(self.codes.int().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.long().numpy().tobytes())
        return digest.hexdigest()

    def batches(self, index_batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[Batch]:
        """Batches {"codes": LongTensor (B, T), "labels": (B,) when there are classes}."""
        codes = self.codes.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        for cpu_indices in index_batches:
            indices = cpu_indices.to(device, non_blocking=True)
            batch = {"codes": codes[indices].long()}
            yield batch if labels is None else {**batch, "labels": labels[indices]}


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

        dtype = "int16" if max(self.layout.codebook_sizes) <= 2**15 else "int32"
        splits = {}
        for name, rows in self.splits.items():
            features = {"codes": List(Value(dtype), length=self.layout.num_codes)}
            columns: dict[str, Any] = {"codes": list(rows.codes.numpy().astype(dtype))}
            if rows.labels is not None:
                features["labels"] = ClassLabel(names=self.label_names) if self.label_names else Value("int64")
                columns["labels"] = rows.labels.numpy()
            splits[name] = Dataset.from_dict(columns, features=Features(features))
        DatasetDict(splits).save_to_disk(str(folder))
        description = {
            "code_layout": self.layout.to_dict(),
            "tokenizer": self.tokenizer,
            "tokenizer_sha256": self.tokenizer_sha256,
            "id2label": None if self.label_names is None else dict(enumerate(self.label_names)),
        }
        (Path(folder) / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> EncodedImages:
        """Reads a folder that `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no codes.
            ValueError: If the codes disagree with their layout.
        """
        from datasets import load_from_disk

        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} holds no codes (no {DESCRIPTION}): write them with `encode`, or set codes to the "
                "folder that has them."
            )
        description = json.loads(path.read_text(encoding="utf-8"))
        layout = CodeLayout.from_dict(description["code_layout"])
        names = description["id2label"]
        splits = {}
        for split, rows in load_from_disk(str(folder)).with_format("numpy").items():
            codes = torch.from_numpy(np.asarray(rows["codes"][:]).astype(np.int32))
            layout.unflatten(codes).validate()
            labels = torch.from_numpy(np.asarray(rows["labels"][:])) if "labels" in rows.column_names else None
            splits[split] = CodeRows(codes, labels)
        return cls(
            layout,
            splits,
            description["tokenizer"],
            description["tokenizer_sha256"],
            None if names is None else list(names.values()),
        )
