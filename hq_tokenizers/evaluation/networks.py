"""The metrics that stand on pretrained networks, built and tried out before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

from hq_tokenizers.metrics.fid import FID
from hq_tokenizers.metrics.lpips import LPIPS
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork, inception_network, squeezenet_network
from hq_tokenizers.metrics.streaming_metric import StreamingMetric
from hq_tokenizers.options.evaluation import FeatureConfig, MetricConfig

T = TypeVar("T")
Notes = dict[str, str]


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """Images as these networks see them: floats are clamped to [0, 1], and grey (B, 1, H, W) becomes (B, 3, H, W)."""
    images = images.clamp(0, 1) if images.is_floating_point() else images
    return images.expand(-1, 3, -1, -1)


def build_lpips(config: MetricConfig, image_size: tuple[int, int], identity: Mapping[str, str]) -> LPIPS:
    """LPIPS for images of this height and width.

    Args:
        config: Whose `lpips` is not None.
        image_size: Height and width.
        identity: Options of every metric that name the reference images.

    Raises:
        OSError, ValueError: If the weights cannot be had, or the images are too small.
    """
    net_type = "squeeze" if config.lpips in ("auto", None) else config.lpips
    image = torch.zeros(1, 3, *image_size)
    with advice("The option for weights is metrics.lpips_weights; metrics.lpips null leaves LPIPS out."):
        metric = LPIPS(net_type=net_type, weights=config.lpips_weights, **identity)  # type: ignore[arg-type]
        metric.add_batch(predictions=image, references=image)
    metric.reset()
    return metric


def build_feature_network(config: FeatureConfig) -> FeatureNetwork:
    """The network of the Fréchet distance.

    Raises:
        OSError, ValueError: If its weights cannot be had.
    """
    build = squeezenet_network if config.features == "squeezenet" else inception_network
    other = "inception" if config.features == "squeezenet" else "squeezenet"
    with advice(
        f"The option for weights is metrics.feature_weights; {other} is another choice of metrics.features, and null "
        "leaves the distance out where there are other figures: of a tokenizer, or of images with pairs true."
    ):
        return build(config.feature_weights)


def build_fid(config: FeatureConfig, num_images: int, num_references: int | None, **options: Any) -> FID:
    """A Fréchet distance for so many images a side.

    Args:
        config: Whose `features` is not None.
        num_images: Images to be judged.
        num_references: Images to compare with; None takes the number in the file of reference statistics.
        **options: Those of `FID`.

    Raises:
        OSError, ValueError: If weights or reference statistics cannot be had, or there are too few images.
    """
    network = build_feature_network(config)
    metric = FID(feature_network=network, allow_few_images=config.allow_few_images, **options)
    num_references = metric.num_references if num_references is None else num_references
    width = network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0].shape[1]
    for number, side in ((num_images, "images to judge"), (num_references, "images to compare with")):
        if number < 2:
            raise ValueError(f"{number} {side} are too few for a Fréchet distance: a covariance needs 2 at least.")
        if number <= width and not config.allow_few_images:
            raise ValueError(
                f"{number} {side} are too few for a Fréchet distance on the {width} features of {network.name}, which "
                f"needs {width + 1}: take more, or set metrics.allow_few_images true for a number that compares only "
                "with others from as many images."
            )
    return metric


def check_packages() -> None:
    """Checks that the packages of the extra `metrics` are installed.

    Raises:
        ValueError: If one is not.
    """
    missing = [name for name in ("torchmetrics", "torch_fidelity") if find_spec(name) is None]
    if missing:
        raise ValueError(f"The evaluation needs {' and '.join(missing)}: pip install 'hq_tokenizers[metrics]'.")


def unless_impossible(name: str, automatic: bool, notes: Notes, build: Callable[[], T]) -> T | None:
    """What `build` makes; where nobody asked for it and it cannot be made, None and a note under its name."""
    try:
        return build()
    except (OSError, ValueError) as error:
        if not automatic:
            raise
        notes[name] = str(error)
        return None


@contextmanager
def advice(text: str) -> Iterator[None]:
    """Adds the way out, in the words of the options, to what the metrics say in theirs."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{error} {text}") from error
    except ValueError as error:
        raise ValueError(f"{error} {text}") from error


def finish(metric: StreamingMetric[Any]) -> dict[str, Any]:
    """The metric's result over all processes, on each of them."""
    return metric.gather().compute()
