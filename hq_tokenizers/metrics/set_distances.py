"""Distances between two sets from their feature statistics, by torch-fidelity's formulas."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hq_tokenizers.metrics.running.feature_statistics import FeatureStatistics
from hq_tokenizers.metrics.running.running_gaussian import RunningGaussian

# torch-fidelity's defaults, of Bińkowski et al. 2018 and Kynkäänniemi et al. 2019.
_KID_SUBSETS = 100
_NEIGHBOURS = 3


def check_covariances(
    sides: Mapping[str, RunningGaussian],
    allow_few: bool,
    items: str = "images",
    remedy: str = "pass allow_few_images=True",
) -> None:
    """Checks that both sets have a covariance of full rank, or at least one that is defined.

    Args:
        sides: The features of each set, by what errors call it.
        allow_few: Whether no more items than features will do.
        items: What the sets are of, for errors.
        remedy: How few are allowed, for errors.

    Raises:
        ValueError: With fewer than D + 1 items of a set for D features, or, if few are allowed, fewer than 2.
    """
    for side, gaussian in sides.items():
        number, num_features = gaussian.count, len(gaussian.mean)
        if number < 2:
            raise ValueError(f"A covariance needs at least 2 {items}, there is {number} among the {side}.")
        if number <= num_features and not allow_few:
            raise ValueError(
                f"{number} {side} are too few {items} for the covariance of {num_features} features, which "
                f"needs at least {num_features + 1}: the distance would mostly measure their number. Add {items}, or "
                f"{remedy} for a number that only compares with others from as many {items}."
            )


def frechet_distance(predictions: RunningGaussian, references: RunningGaussian) -> float:
    """|μ − μ'|² + tr(Σ + Σ' − 2 (ΣΣ')^½) of two Gaussians with unbiased covariances, in float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    sides = [{"mu": g.mean.numpy(), "sigma": g.covariance.numpy()} for g in (predictions, references)]
    return fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID]


def kernel_distance(
    predictions: FeatureStatistics, references: FeatureStatistics, subset_size: int
) -> tuple[float, float]:
    """KID: mean and standard deviation over 100 random subsets of the unbiased MMD² with kernel (xᵀy/D + 1)³.

    Raises:
        ValueError: If a set has fewer kept features than a subset.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    features = _kept_features(predictions, references, subset_size, "KID", "add images or lower kid_subset_size")
    result = kid_features_to_metric(*features, kid_subsets=_KID_SUBSETS, kid_subset_size=subset_size, verbose=False)
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


def precision_recall(predictions: FeatureStatistics, references: FeatureStatistics) -> dict[str, float]:
    """Share of predictions near a reference, of references near a prediction, and their harmonic mean.

    "Near" means within the distance of the other's third nearest neighbour in its own set.

    Raises:
        ValueError: If a set has fewer than 4 kept features.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    features = _kept_features(predictions, references, _NEIGHBOURS + 1, "Precision and recall", "add images")
    return dict(prc_features_to_metric(*features, prc_neighborhood=_NEIGHBOURS, verbose=False))


def _kept_features(
    predictions: FeatureStatistics, references: FeatureStatistics, needed: int, what: str, remedy: str
) -> list[torch.Tensor]:
    kept = []
    for side in (predictions, references):
        features = side.sampled_features()
        if features is None:
            raise ValueError(f"{what} compares features, of which none were kept for the {side.side}.")
        kept.append(features)
        if len(kept[-1]) < needed:
            raise ValueError(
                f"{what} needs at least {needed} kept features a side, there are {len(kept[-1])} of the {side.side}: "
                f"{remedy}."
            )
    return kept
