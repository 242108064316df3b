"""Several processes give the result of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.metrics import FID, LPIPS, CodebookUsage, Reconstruction, Segmentation
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork

LAYOUT = CodeLayout((CodeGroup(2, 2, (8, 4)),))


def make_fid(network: FeatureNetwork) -> FID:
    return FID(
        feature_network=network,
        kid=True,
        kid_subset_size=10,
        precision_recall=True,
        max_features=12,
        inception_score=True,
        inception_score_splits=2,
    )


def shards(tensor: Any, rank: int) -> Any:
    """A third of the data goes to the first process, the rest to the second."""
    third = len(tensor) // 3
    return tensor[:third] if rank == 0 else tensor[third:]


def cases(network: FeatureNetwork, images: torch.Tensor) -> dict[str, tuple[Callable[[], Any], dict[str, Any]]]:
    generator = torch.Generator().manual_seed(5)
    codes = Codes((torch.randint(0, 4, (9, 2, 2, 2), generator=generator),), LAYOUT)
    labels = torch.randint(0, 3, (2, 9, 4, 4), generator=generator)
    return {
        "fid": (lambda: make_fid(network), {"predictions": images, "references": 255 - images[:30]}),
        "reconstruction": (Reconstruction, {"predictions": images, "references": images.flip(0)}),
        "codebook_usage": (CodebookUsage, {"codes": codes}),
        "segmentation": (lambda: Segmentation(num_classes=3), {"predictions": labels[0], "references": labels[1]}),
    }


def assert_close(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    ours, expected = dict(ours), dict(expected)
    assert ours.pop("provenance") == expected.pop("provenance"), (
        "count, hash and sizes are exactly those of one process"
    )
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, rel=1e-9), key


def run_process(network: FeatureNetwork, images: torch.Tensor, expected: dict[str, dict[str, Any]]) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    for name, (make, inputs) in cases(network, images).items():
        metric = make()
        metric.add_batch(**{key: shards(value, rank) for key, value in inputs.items()})
        metric.gather()
        with pytest.raises(RuntimeError, match="has been gathered already"):
            metric.gather()
        with pytest.raises(RuntimeError, match="has been gathered over processes"):
            metric.add_batch(**inputs)
        assert_close(metric.compute(), expected[name])
    # A process without any data takes part all the same.
    metric = Reconstruction()
    if rank == 1:
        metric.add_batch(predictions=images, references=images.flip(0))
    assert_close(metric.gather().compute(), expected["reconstruction"])


def test_two_gloo_processes_give_the_result_of_one(classifier_network: FeatureNetwork, images: torch.Tensor) -> None:
    expected = {name: make().compute(**inputs) for name, (make, inputs) in cases(classifier_network, images).items()}
    debug_launcher(run_process, args=(classifier_network, images, expected), num_processes=2)


def test_merge(classifier_network: FeatureNetwork, images: torch.Tensor) -> None:
    for make, inputs in cases(classifier_network, images).values():
        first, second, empty = make(), make(), make()
        for rank, metric in enumerate((first, second)):
            metric.add_batch(**{key: shards(value, rank) for key, value in inputs.items()})
        second.merge(empty)
        empty.merge(first)
        empty.merge(second)
        assert_close(empty.compute(), make().compute(**inputs))
        assert len(first) > 0, "merging leaves the other as it was"


def test_gather_with_one_process_does_nothing(images: torch.Tensor) -> None:
    metric = Reconstruction()
    metric.add_batch(predictions=images, references=images)
    assert metric.gather() is metric
    assert metric.gather().compute()["mse"] == 0


def test_merge_refuses_another_metric_setting_or_size(
    pixel_network: FeatureNetwork, classifier_network: FeatureNetwork, images: torch.Tensor, lpips_folder: Path
) -> None:
    with pytest.raises(ValueError, match="num_classes is 4 there and 3 here"):
        Segmentation(num_classes=3).merge(Segmentation(num_classes=4))
    with pytest.raises(ValueError, match="metric is 'reconstruction' there and 'codebook_usage' here"):
        CodebookUsage().merge(Reconstruction())
    with pytest.raises(ValueError, match="max_features is 12 there and None here"):
        FID(feature_network=pixel_network).merge(make_fid(pixel_network))
    lpips = LPIPS(weights=lpips_folder / "squeeze.backbone.pth")
    with pytest.raises(ValueError, match="metric is 'reconstruction' there and 'lpips' here"):
        lpips.merge(Reconstruction())
    small, large = Reconstruction(), Reconstruction()
    small.add_batch(predictions=images, references=images)
    large.add_batch(predictions=images.repeat(1, 1, 2, 2), references=images.repeat(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"so far \(3, 8, 8\), now \(3, 16, 16\)"):
        small.merge(large)
