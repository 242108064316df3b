"""What a sample is conditioned on: a class, a speaker, free-form vectors of an encoder, all of them, or nothing.

Shape legend: N inputs, B rows, S conditioning vectors, E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

NULL_LABEL = -1
_WORDS = {"class_labels": ("class", "classes"), "speaker_ids": ("speaker", "speakers")}


@dataclass(frozen=True)
class Conditions:
    """The conditions of B rows.

    Args:
        labels: LongTensor (B,), `NULL_LABEL` for no class.
        vectors: (B, S, E), or None for none at all.
        mask: BoolTensor (B, S), True where a vector is to be seen; a row without any has no vectors. None exactly when
            `vectors` is None.
        speakers: LongTensor (B,), `NULL_LABEL` for no speaker; None for a prior that knows none.
    """

    labels: torch.Tensor
    vectors: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    speakers: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def hide(self, rows: torch.Tensor) -> Conditions:
        """Takes everything from the rows where the BoolTensor (B,) is True."""
        mask = None if self.mask is None else self.mask & ~rows[:, None]
        speakers = None if self.speakers is None else self.speakers.masked_fill(rows, NULL_LABEL)
        return Conditions(self.labels.masked_fill(rows, NULL_LABEL), self.vectors, mask, speakers)

    def drop(self, share: float) -> Conditions:
        """Label dropout: hides the whole condition of a random share of the rows, by torch's global noise."""
        return self.hide(torch.rand(self.labels.shape, device=self.labels.device) < share)

    def with_null(self) -> Conditions:
        """The B rows, then the same rows without any condition: the two branches of guidance."""
        null = self.hide(torch.ones_like(self.labels, dtype=torch.bool))

        def both(given: torch.Tensor | None, hidden: torch.Tensor | None) -> torch.Tensor | None:
            return None if given is None or hidden is None else torch.cat([given, hidden])

        return Conditions(
            torch.cat([self.labels, null.labels]),
            both(self.vectors, null.vectors),
            both(self.mask, null.mask),
            both(self.speakers, null.speakers),
        )

    def repeat(self, num_inputs: int, num_images: int, device: torch.device) -> Conditions:
        """B = num_inputs · num_images rows, input-major, from num_inputs rows or one for all."""

        def spread(tensor: torch.Tensor | None) -> torch.Tensor | None:
            if tensor is None:
                return None
            return tensor.to(device).expand(num_inputs, *tensor.shape[1:]).repeat_interleave(num_images, dim=0)

        labels = spread(self.labels)
        assert labels is not None  # there always are labels
        return Conditions(labels, spread(self.vectors), spread(self.mask), spread(self.speakers))

    def given(self) -> torch.Tensor:
        """Which rows have a condition, BoolTensor (B,)."""
        found = self.labels != NULL_LABEL
        found = found if self.speakers is None else found | (self.speakers != NULL_LABEL)
        return found if self.mask is None else found | self.mask.any(dim=1)

    def any_given(self) -> bool:
        """Whether any row has a condition. Reads the values, hence synchronises."""
        return bool(self.given().any())


class ClassEmbedding(nn.Module):
    """One vector per class, or speaker, and one for "no class".

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


def as_labels(
    class_labels: torch.Tensor | Sequence[int] | int | None, num_classes: int, name: str = "class_labels"
) -> torch.Tensor:
    """Checks labels, of classes or of speakers, and makes them a LongTensor (N,); None is one null label.

    Args:
        class_labels: The labels.
        num_classes: Number of classes, or of speakers.
        name: What errors call them, "class_labels" or "speaker_ids".

    Raises:
        ValueError: If a label is neither in [0, num_classes) nor −1, or the labels are not one list of integers.
    """
    if class_labels is None:
        return torch.tensor([NULL_LABEL])
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are integers of shape (batch,), got {class_labels!r}.") from error
    if labels.ndim > 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"{name} are integers of shape (batch,), got {labels.dtype} of shape {tuple(labels.shape)}.")
    labels = labels.reshape(-1).long()
    check_label_range(labels, num_classes, name)
    return labels


def check_label_range(labels: torch.Tensor, num_classes: int, name: str = "class_labels") -> None:
    """Checks the values of the labels (N,), of classes or of speakers. Reads them, hence synchronises.

    Raises:
        ValueError: If a label is neither in [0, num_classes) nor −1.
    """
    wrong = labels[(labels < NULL_LABEL) | (labels >= num_classes)]
    if wrong.numel():
        one, many = _WORDS[name]
        accepted = (
            f"0 to {num_classes - 1}, or -1 for no {one}" if num_classes else f"-1 or None only: it has no {many}"
        )
        kind = "Class label" if one == "class" else "Speaker"
        raise ValueError(f"{kind} {int(wrong[0])} is out of range; this prior accepts {accepted}.")


def check_vectors(
    encoder_hidden_states: torch.Tensor | None,
    encoder_attention_mask: torch.Tensor | None,
    cross_attention_dim: int | None,
    num_rows: int | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Checks conditioning vectors and gives them a boolean mask.

    Args:
        encoder_hidden_states: (B, S, E), or None.
        encoder_attention_mask: (B, S), True or 1 where a vector counts; None where all do.
        cross_attention_dim: E of the model; None for one without cross-attention.
        num_rows: B, where it is fixed.

    Raises:
        ValueError: If the model takes no vectors, or a shape is wrong.
    """
    if encoder_hidden_states is None:
        if encoder_attention_mask is not None:
            raise ValueError("encoder_attention_mask needs encoder_hidden_states.")
        return None, None
    shape = tuple(encoder_hidden_states.shape)
    if cross_attention_dim is None:
        raise ValueError(
            "encoder_hidden_states need a prior with cross-attention: set cross_attention_dim in its configuration to "
            f"their width ({shape[-1] if shape else 'E'})."
        )
    rows = "batch" if num_rows is None else num_rows
    fits = len(shape) == 3 and shape[1] >= 1 and shape[2] == cross_attention_dim
    if not fits or (num_rows is not None and shape[0] != num_rows):
        raise ValueError(
            f"encoder_hidden_states must have shape ({rows}, length, {cross_attention_dim}) with a length of at least "
            f"1, got {shape}."
        )
    if encoder_attention_mask is None:
        mask = torch.ones(shape[:2], dtype=torch.bool, device=encoder_hidden_states.device)
        return encoder_hidden_states, mask
    if encoder_attention_mask.shape != shape[:2]:
        raise ValueError(
            f"encoder_attention_mask must have shape {shape[:2]}, one value per vector, got "
            f"{tuple(encoder_attention_mask.shape)}."
        )
    return encoder_hidden_states, encoder_attention_mask.bool()
