"""Fréchet distance between two sets of images, and what else the same features give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import evaluate
import torch

from hq_tokenizers.checks import check_minimum
from hq_tokenizers.metrics.image_inputs import as_pixels, check_rgb, quantize
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork, inception_network
from hq_tokenizers.metrics.provenance import check_equal
from hq_tokenizers.metrics.running.feature_statistics import (
    FeatureStatistics,
    StatisticsPair,
    load_statistics,
    save_statistics,
)
from hq_tokenizers.metrics.running.hash_sample import HashSample
from hq_tokenizers.metrics.running.running_inception_score import RunningInceptionScore
from hq_tokenizers.metrics.set_distances import check_covariances, frechet_distance, kernel_distance, precision_recall
from hq_tokenizers.metrics.streaming_metric import StreamingMetric

_CITATION = "Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule, 2017."


class FID(StreamingMetric[StatisticsPair]):
    """Fréchet inception distance, |μ − μ'|² + tr(Σ + Σ' − 2 (ΣΣ')^½), as torch-fidelity computes it; lower is closer.

    Predictions and references may differ in number and may be added separately. Float images are rounded to 8 bits, as
    they would be in a file. On any features but those of the published Inception weights the distance is not FID: it is
    then called `frechet_distance` (and `kernel_distance_*`, `classifier_score_*`), and `provenance` says why.

    Result: `fid`; with `kid`: `kid_mean`, `kid_std`; with `inception_score`: `inception_score_mean`,
    `inception_score_std`; with `precision_recall`: `precision`, `recall`, `f_score`; and `provenance`.

    Args:
        feature_network: Features to compare; default torch-fidelity's Inception network.
        weights: The Inception network's weight file, when it is not to come from torch's hub cache or a download.
        reference: A file of reference statistics written by `save_reference`, instead of reference images. Its name,
            split and resize filter are adopted.
        kid: Whether to compute the kernel distance over 100 random subsets of `kid_subset_size` kept features.
        inception_score: Whether to compute the Inception Score of the predictions over `inception_score_splits` parts.
        precision_recall: Whether to compute precision and recall (3 nearest neighbours) on the kept features; on this
            feature network, where torch-fidelity's default is VGG-16.
        max_features: For `kid` and `precision_recall`: number of features sampled of either set, uniformly over all
            images, copies included; the sample does not depend on order or processes. Nothing is kept unless one of
            them is asked for.
        kid_subset_size: Images per subset.
        inception_score_splits: Number of splits.
        allow_few_images: Whether to accept fewer images than a covariance of D features needs, D + 1.
        device: Where the network runs; default where each batch is.
        **options: See `StreamingMetric`.

    Raises:
        OSError: If the weights or the reference statistics cannot be had, saying how to get them.
        ValueError: If a number is out of its range, or the reference statistics were made with other weights or under
            another name, or lack features.
    """

    def __init__(
        self,
        *,
        feature_network: FeatureNetwork | None = None,
        weights: str | Path | None = None,
        reference: str | Path | None = None,
        kid: bool = False,
        inception_score: bool = False,
        precision_recall: bool = False,
        max_features: int = 10_000,
        kid_subset_size: int = 1000,
        inception_score_splits: int = 10,
        allow_few_images: bool = False,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        _check_counts(kid, kid_subset_size, precision_recall, max_features, inception_score, inception_score_splits)
        if feature_network is not None and weights is not None:
            raise ValueError("weights names the Inception network's file: give either weights or feature_network.")
        self._network = feature_network or inception_network(weights)
        self._max_features = max_features if kid or precision_recall else None
        self._kid_subset_size = kid_subset_size if kid else None
        self._splits = inception_score_splits if inception_score else None
        self._precision_recall = precision_recall
        self._allow_few_images = allow_few_images
        self._device = device
        self._reference = None
        if reference is not None:
            self._reference, header = load_statistics(reference)
            options = self._adopt(header, options, f"The reference statistics {reference}")
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fréchet distance between two sets of images, with KID, Inception Score, precision and recall.",
            citation=_CITATION,
            inputs_description="predictions, references: RGB images, uint8 or floats in [0, 1], (B, 3, H, W), or PIL.",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    @property
    def num_references(self) -> int:
        """Number of reference images: those added so far, or those of the reference statistics."""
        return self._references().identity.num_images

    @property
    def reference_size(self) -> list[int] | None:
        """[height, width] of the reference images; None while there are none."""
        return self._references().identity.image_size

    def save_reference(self, path: str | Path) -> None:
        """Writes the statistics of the references added or kept so far as safetensors, with their provenance as header.

        Raises:
            ValueError: If there are none.
        """
        references = self._references()
        if not references.identity.num_images:
            raise ValueError("There are no references to save: call add_batch(references=…) first.")
        save_statistics(path, references, self._describe(references))

    def keep_references(self) -> None:
        """Makes the references added so far those of every later result, as if they came from a file; starts afresh.

        With several processes, call `gather()` first: each keeps what it has.

        Raises:
            ValueError: If no references were added.
        """
        if not self._state.references.identity.num_images:
            raise ValueError("There are no references to keep: call add_batch(references=…) first.")
        self._reference = self._state.references
        self.reset()

    def merge(self, other: StreamingMetric[StatisticsPair]) -> None:
        """Adds what another metric of the same settings has seen.

        Raises:
            ValueError: If the settings, the image size, or the references that either is made with or keeps differ.
        """
        if isinstance(other, FID):
            ours, theirs = (metric._reference and metric._reference.identity.sha256 for metric in (self, other))
            check_equal({"reference": ours}, {"reference": theirs}, "The other metric")
            sides = {"predictions": other._state.predictions, "references": other._state.references}
            self._check_sizes({side: seen.identity.shape for side, seen in sides.items() if seen.identity.shape})
        super().merge(other)

    def _new_state(self) -> StatisticsPair:
        return StatisticsPair(
            FeatureStatistics(
                "predictions",
                sample=HashSample(self._max_features) if self._max_features else None,
                inception_score=RunningInceptionScore(self._splits) if self._splits else None,
            ),
            FeatureStatistics("references", sample=HashSample(self._max_features) if self._max_features else None),
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "feature_network": self._network.describe(),
            "max_features": self._max_features,
            "kid_subset_size": self._kid_subset_size,
            "inception_score_splits": self._splits,
        }

    def _update(self, inputs: dict[str, Any]) -> None:
        if self._reference is not None and inputs["references"] is not None:
            raise ValueError(
                "References come from the reference statistics this metric was made with; add predictions."
            )
        batches = []
        for side, statistics in (("references", self._state.references), ("predictions", self._state.predictions)):
            if inputs[side] is not None:
                pixels = as_pixels(inputs[side], side)
                check_rgb(pixels, side, self._network.name)
                statistics.identity.check_shape(tuple(pixels.shape[1:]), side)
                batches.append((statistics, quantize(pixels)))
        self._check_sizes({statistics.side: tuple(images.shape[1:]) for statistics, images in batches})
        extracted = [(statistics, images, *self._extract(images)) for statistics, images in batches]
        for statistics, images, features, logits in extracted:
            statistics.update(images, features, logits)

    def _extract(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        device = self._device or images.device
        self._network.module.to(device)
        features, logits = self._network(images.to(device))
        if self._splits and logits is None:
            raise ValueError(f"{self._network.name} has no class logits, which an Inception Score needs.")
        return features, logits

    def _references(self) -> FeatureStatistics:
        return self._state.references if self._reference is None else self._reference

    def _check_sizes(self, new: dict[str, tuple[int, ...]]) -> None:
        sizes = {
            "predictions": self._state.predictions.identity.shape,
            "references": self._references().identity.shape,
            **new,
        }
        predictions, references = sizes["predictions"], sizes["references"]
        if predictions is not None and references is not None and predictions != references:
            raise ValueError(
                f"image_size differs: predictions are {predictions[1]}×{predictions[2]}, references "
                f"{references[1]}×{references[2]}. The network sees resizing as a difference: bring both to one size "
                "by one filter first."
            )

    def _adopt(self, header: dict[str, Any], options: dict[str, Any], what: str) -> dict[str, Any]:
        network = self._network.describe()
        theirs = {key: header["feature_network"].get(key) for key in network}
        check_equal({"feature_network": network}, {"feature_network": theirs}, what)
        if self._max_features is not None:
            if header["max_features"] is None:
                raise ValueError(
                    f"{what} hold no features of single images, which kid and precision_recall need: write them again "
                    "with kid or precision_recall."
                )
            check_equal({"max_features": self._max_features}, {"max_features": header["max_features"]}, what)
        adopted = {
            "reference_name": header["reference"]["name"],
            "reference_split": header["reference"]["split"],
            "resize_filter": header["resize_filter"],
        }
        check_equal(
            {key: options[key] for key in adopted if key in options},
            {key: value for key, value in adopted.items() if key in options},
            what,
        )
        return {**options, **adopted}

    def _result(self) -> dict[str, Any]:
        predictions, references = self._state.predictions, self._references()
        for side in (predictions, references):
            if not side.identity.num_images:
                raise ValueError(
                    f"A distance needs both sides, there are no {side.side}: call add_batch({side.side}=…)."
                )
        self._check_sizes({})
        check_covariances({side.side: side.gaussian for side in (predictions, references)}, self._allow_few_images)
        official = self._network.is_fid_inception
        result: dict[str, Any] = {
            "fid" if official else "frechet_distance": frechet_distance(predictions.gaussian, references.gaussian)
        }
        if self._kid_subset_size:
            name = "kid" if official else "kernel_distance"
            mean, std = kernel_distance(predictions, references, self._kid_subset_size)
            result |= {f"{name}_mean": mean, f"{name}_std": std}
        if predictions.inception_score is not None:
            name = "inception_score" if official else "classifier_score"
            mean, std = predictions.inception_score.compute()
            result |= {f"{name}_mean": mean, f"{name}_std": std}
        if self._precision_recall:
            result |= precision_recall(predictions, references)
        return {**result, "provenance": self._describe(references)}

    def _describe(self, references: FeatureStatistics) -> dict[str, Any]:
        metric = "FID" if self._network.is_fid_inception else f"Fréchet distance on {self._network.name} (not FID)"
        return {
            **self._provenance(references.identity),
            "metric": metric,
            "feature_network": {**self._network.describe(), "weights_file": self._network.weights_file},
        }


def _check_counts(
    kid: bool, subset: int, precision_recall: bool, max_features: int, inception_score: bool, splits: int
) -> None:
    """Checks the numbers of those metrics that are asked for."""
    if kid:
        check_minimum("kid_subset_size", subset, 2)
        if max_features < subset:
            raise ValueError(f"max_features must be at least kid_subset_size, {subset}, got {max_features}.")
    if precision_recall:
        check_minimum("max_features", max_features, 4)
    if inception_score:
        check_minimum("inception_score_splits", splits, 1)
