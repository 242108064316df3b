"""Class labels as vectors, with a null class for unconditional sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

NULL_LABEL = -1


class ClassEmbedding(nn.Module):
    """One vector per class and one for "no class".

    Args:
        num_classes: Number of classes; with 0 only the null class is left.
        hidden_size: Width of the vectors.
    """

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """LongTensor (B,), `NULL_LABEL` for no class → (B, hidden_size)."""
        return self.table(labels.where(labels >= 0, self.num_classes))


def as_labels(class_labels: torch.Tensor | Sequence[int] | int | None, num_classes: int) -> torch.Tensor:
    """Checks labels and makes them a LongTensor (N,); None is one null label.

    Raises:
        ValueError: If a label is neither in [0, num_classes) nor −1, or the labels are not one list of integers.
    """
    if class_labels is None:
        return torch.tensor([NULL_LABEL])
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"class_labels are integers of shape (batch,), got {class_labels!r}.") from error
    if labels.ndim > 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(
            f"class_labels are integers of shape (batch,), got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    labels = labels.reshape(-1).long()
    check_label_range(labels, num_classes)
    return labels


def check_label_range(labels: torch.Tensor, num_classes: int) -> None:
    """Checks the values of the labels (N,). Reads them, hence synchronises.

    Raises:
        ValueError: If a label is neither in [0, num_classes) nor −1.
    """
    wrong = labels[(labels < NULL_LABEL) | (labels >= num_classes)]
    if wrong.numel():
        accepted = (
            f"0 to {num_classes - 1}, or -1 for no class" if num_classes else "-1 or None only: it has no classes"
        )
        raise ValueError(f"Class label {int(wrong[0])} is out of range; this prior accepts {accepted}.")
