"""Pixel accuracy and IoU against scikit-learn and torchmetrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from hq_tokenizers.metrics.segmentation import Segmentation


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and references (6, 9, 7) of 5 classes; class 4 is in neither; a third of the pixels agree."""
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(0, 4, (6, 9, 7), generator=generator)
    predictions = torch.where(
        torch.rand(references.shape, generator=generator) < 0.3,
        references,
        torch.randint(0, 4, references.shape, generator=generator),
    )
    return predictions, references


def test_agrees_with_scikit_learn_and_torchmetrics(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, references = maps
    metric = Segmentation(num_classes=5)
    for part in range(0, 6, 4):
        metric.add_batch(predictions=predictions[part : part + 4], references=references[part : part + 4])
    result = metric.compute()
    truth, guess = references.flatten().numpy(), predictions.flatten().numpy()
    expected = jaccard_score(truth, guess, average=None, labels=range(4))
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert result["iou_per_class"][:4] == pytest.approx(list(expected))
    assert result["iou_per_class"][4] is None, "a class on neither side has no IoU"
    assert result["mean_iou"] == pytest.approx(expected.mean())
    torchmetrics_iou = MulticlassJaccardIndex(num_classes=5)(predictions, references)
    assert result["mean_iou"] == pytest.approx(float(torchmetrics_iou), rel=1e-6)


@pytest.mark.parametrize("ignored", [3, 255])
def test_ignored_label(maps: tuple[torch.Tensor, torch.Tensor], ignored: int) -> None:
    predictions, references = maps
    references = torch.where(references == 3, ignored, references)
    result = Segmentation(num_classes=4, ignore_index=ignored).compute(predictions=predictions, references=references)
    counted = references != ignored
    truth, guess = references[counted].numpy(), predictions[counted].numpy()
    assert result["pixel_accuracy"] == pytest.approx(accuracy_score(truth, guess))
    expected = jaccard_score(truth, guess, average=None, labels=range(3))
    assert result["iou_per_class"][:3] == pytest.approx(list(expected))
    if ignored == 3:
        assert result["iou_per_class"][3] is None
        assert result["mean_iou"] == pytest.approx(expected.mean())
    else:
        assert result["iou_per_class"][3] == 0, "a real class that is only ever predicted wrongly"


def test_pil_maps_and_single_examples(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = Segmentation(num_classes=5).compute(predictions=maps[0], references=maps[1])
    metric = Segmentation(num_classes=5)
    for prediction, reference in zip(*maps, strict=True):
        metric.add(prediction=prediction, reference=Image.fromarray(reference.numpy().astype(np.uint8)))
    assert metric.compute() == expected
    assert json.loads(json.dumps(expected)) == expected


def test_refusals(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, references = maps
    metric = Segmentation(num_classes=3)
    with pytest.raises(ValueError, match=r"predictions: labels lie in \[0, 3\), found 3. Raise num_classes"):
        metric.add_batch(predictions=predictions, references=references)
    with pytest.raises(ValueError, match="must have one shape"):
        metric.add_batch(predictions=predictions[:, :4], references=references)
    with pytest.raises(TypeError, match=r"got torch.float32. Class scores .* argmax\(dim=1\)"):
        metric.add_batch(predictions=predictions.float(), references=references)
    with pytest.raises(ValueError, match="got mode 'RGB'"):
        metric.add_batch(predictions=[Image.new("RGB", (4, 4))], references=references[:1])
    with pytest.raises(TypeError, match="got NoneType"):
        metric.add_batch(predictions=predictions)
    assert len(metric) == 0
    with pytest.raises(ValueError, match="at least 2, got 1"):
        Segmentation(num_classes=1)
    void = Segmentation(num_classes=3, ignore_index=255)
    void.add_batch(predictions=predictions.clamp(max=2), references=torch.full_like(references, 255))
    with pytest.raises(ValueError, match="Every reference pixel has the ignored label 255"):
        void.compute()
