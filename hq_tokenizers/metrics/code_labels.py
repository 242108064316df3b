"""What codes say about labels that are aligned with them."""

from __future__ import annotations

import numpy as np
import torch


def code_label_counts(codes: torch.Tensor, labels: torch.Tensor, codebook_size: int, num_labels: int) -> torch.Tensor:
    """How often each code comes with each label: float64 (codebook_size, num_labels). Counts of batches add up.

    Args:
        codes: Integers of any shape, one level.
        labels: Integers of the same shape, such as the phone or the speaker at each position.
        codebook_size: Number of codes K.
        num_labels: Number of labels.
    """
    pairs = codes.flatten().long() * num_labels + labels.flatten().long()
    counts = torch.bincount(pairs, minlength=codebook_size * num_labels)
    return counts.reshape(codebook_size, num_labels).double()


def normalized_mutual_information(counts: torch.Tensor) -> float:
    """I(code; label) over the mean of the two entropies, in [0, 1], as scikit-learn computes it.

    Args:
        counts: Of `code_label_counts`, over all batches.
    """
    from sklearn.metrics import normalized_mutual_info_score

    table = counts.cpu().numpy().astype(np.int64)
    code, label = table.nonzero()
    often = table[code, label]
    return float(normalized_mutual_info_score(np.repeat(label, often), np.repeat(code, often)))
