"""What a distance between sets needs of each set, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hq_tokenizers.metrics.running.hash_sample import HashSample
from hq_tokenizers.metrics.running.running_gaussian import RunningGaussian
from hq_tokenizers.metrics.running.running_inception_score import RunningInceptionScore
from hq_tokenizers.metrics.running.set_identity import SetIdentity
from hq_tokenizers.tensor_files import read_tensors

_WRITERS = "evaluate --save_reference, or FID.save_reference, writes them"
_FORMAT = "hq_tokenizers feature statistics 1"


@dataclass
class FeatureStatistics:
    """Running statistics of one set of images.

    Args:
        side: What error messages call the set.
        identity: Which images were seen.
        gaussian: Mean and covariance of their features.
        sample: A bounded sample of the features themselves, when one is asked for.
        inception_score: Class statistics, when asked for.
        saved_sample: The sample's features, of statistics that come from a file and take no more images.
    """

    side: str
    identity: SetIdentity = field(default_factory=SetIdentity)
    gaussian: RunningGaussian = field(default_factory=RunningGaussian)
    sample: HashSample | None = None
    inception_score: RunningInceptionScore | None = None
    saved_sample: torch.Tensor | None = None

    def sampled_features(self) -> torch.Tensor | None:
        """The sample (n, D) float32 of the features; None where none was asked for."""
        return self.saved_sample if self.sample is None else self.sample.features()

    def update(self, images: torch.Tensor, features: torch.Tensor, logits: torch.Tensor | None) -> None:
        """Adds uint8 images (B, 3, H, W) with their features (B, D) and, for an Inception Score, logits."""
        self._check_width(features.shape[1])
        digests = self.identity.update(images, self.side)
        self.gaussian.update(features)
        if self.sample is not None:
            self.sample.update(digests, features)
        if self.inception_score is not None and logits is not None:
            self.inception_score.update(digests, logits)

    def merge(self, other: FeatureStatistics) -> None:
        """Adds the images another one has seen."""
        self.check_mergeable(other)
        self.identity.merge(other.identity, self.side)
        self.gaussian.merge(other.gaussian)
        if self.sample is not None and other.sample is not None:
            self.sample.merge(other.sample)
        if self.inception_score is not None and other.inception_score is not None:
            self.inception_score.merge(other.inception_score)

    def check_mergeable(self, other: FeatureStatistics) -> None:
        """Checks that the images of another one can be added.

        Raises:
            ValueError: If their shape or the number of features differs.
        """
        if other.identity.shape is not None:
            self.identity.check_shape(other.identity.shape, self.side)
            self._check_width(len(other.gaussian.mean))

    def _check_width(self, width: int) -> None:
        if self.gaussian.count and width != len(self.gaussian.mean):
            raise ValueError(
                f"{self.side}: the feature network gave {len(self.gaussian.mean)} features before and {width} now: it "
                "must give equally many for all images."
            )


@dataclass
class StatisticsPair:
    """The statistics of both sides of a comparison."""

    predictions: FeatureStatistics
    references: FeatureStatistics

    @property
    def num_images(self) -> int:
        """Number of predictions; of references while there are no predictions."""
        return self.predictions.identity.num_images or self.references.identity.num_images

    def merge(self, other: StatisticsPair) -> None:
        """Adds what another pair has seen; both sides are checked before either is merged."""
        self.check_mergeable(other)
        self.predictions.merge(other.predictions)
        self.references.merge(other.references)

    def check_mergeable(self, other: StatisticsPair) -> None:
        """Checks that what another pair has seen can be added.

        Raises:
            ValueError: If a shape or the number of features differs.
        """
        self.predictions.check_mergeable(other.predictions)
        self.references.check_mergeable(other.references)


def save_statistics(path: str | Path, statistics: FeatureStatistics, header: Mapping[str, Any]) -> None:
    """Writes statistics as safetensors, with the header as JSON in the file's metadata.

    Args:
        path: The file to write; missing folders are made.
        statistics: At least one image's.
        header: A result's provenance.
    """
    from safetensors.torch import save_file

    tensors = {"mean": statistics.gaussian.mean, "scatter": statistics.gaussian.scatter}
    sample = statistics.sampled_features()
    if sample is not None:
        tensors["sample_features"] = sample
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": _FORMAT,
        "header": json.dumps(header),
        "shape": json.dumps(statistics.identity.shape),
        "sha256": statistics.identity.sha256,
        "num_images": str(statistics.identity.num_images),
    }
    save_file(tensors, path, metadata=metadata)


def load_statistics(path: str | Path) -> tuple[FeatureStatistics, dict[str, Any]]:
    """Reads what `save_statistics` wrote: the statistics and their header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There are no reference statistics at {path}; {_WRITERS}.")
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error} {_WRITERS[0].upper()}{_WRITERS[1:]}.") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} holds no {_FORMAT!r} but {metadata.get('format')!r}; {_WRITERS}.")
    missing = {"num_images", "shape", "sha256", "header"} - set(metadata) | {"mean", "scatter"} - set(tensors)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}, which statistics have; {_WRITERS}.")
    num_images = int(metadata["num_images"])
    statistics = FeatureStatistics(
        "references",
        SetIdentity(num_images, tuple(json.loads(metadata["shape"])), int(metadata["sha256"], 16)),
        RunningGaussian(num_images, tensors["mean"], tensors["scatter"]),
    )
    statistics.saved_sample = tensors.get("sample_features")
    return statistics, json.loads(metadata["header"])
