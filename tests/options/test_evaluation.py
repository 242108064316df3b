from __future__ import annotations

import pytest

from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, FeatureConfig, MetricConfig
from hq_tokenizers.options.reading import load_options

LABEL_MAPS = {"tokenizer": "a", "data": DataConfig(label_map_classes=12)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of tokenizer, generator and images, got none"),
        ({"tokenizer": "a", "images": "b"}, "got tokenizer and images"),
        ({"tokenizer": "a", "kid": True}, "kid is an option of generator and images, not of tokenizer"),
        ({"tokenizer": "a", "reference": "b"}, "reference is an option of generator and images"),
        ({"images": "a", "images_dir": "b"}, "images_dir is an option of generator, not of images"),
        ({"images": "a", "beam_width": 2}, "beam_width is an option of tokenizer, not of images"),
        ({"generator": "a", "pairs": True}, "pairs is an option of images"),
        ({"tokenizer": "a", "num_images": 9}, "num_images is an option of generator, not of tokenizer: leave it out"),
        ({"images": "a", "seed": 1}, "seed is an option of generator, not of images"),
        ({"images": "a", "kid_subset_size": 10}, "kid_subset_size is an option of kid, which is false"),
        ({"generator": "a", "metrics": MetricConfig(lpips="vgg")}, "metrics.lpips is for reconstructions"),
        ({"images": "a", "metrics": MetricConfig(lpips="vgg")}, "metrics.lpips is for reconstructions"),
        ({**LABEL_MAPS, "metrics": MetricConfig(features="squeezenet")}, "metrics.features is for images, but data"),
        (
            {"generator": "a", "metrics": MetricConfig(lpips_weights="b")},
            "metrics.lpips_weights is for reconstructions",
        ),
        ({**LABEL_MAPS, "metrics": MetricConfig(feature_weights="b")}, "metrics.feature_weights is for images, but"),
        ({**LABEL_MAPS, "metrics": MetricConfig(allow_few_images=True)}, "metrics.allow_few_images is for images, but"),
        ({**LABEL_MAPS, "metrics": MetricConfig(lpips="alex")}, "metrics.lpips is for images, but data"),
        ({"images": "a", "pairs": True}, "pairs needs reference, the folder"),
        ({"images": "a", "pairs": True, "reference": "b.safetensors"}, "pairs needs reference, the folder"),
        ({"images": "a", "save_reference": "b.pt"}, "must end in .safetensors, got 'b.pt'"),
        ({"images": "a", "batch_size": 0}, "batch_size must be an integer from 1"),
        ({"generator": "a", "num_images": 0}, "num_images must be an integer from 1"),
        ({"images": "a", "metrics": MetricConfig(features=None)}, "nothing to measure"),
        ({"generator": "a", "metrics": MetricConfig(features=None)}, "judged by a Fréchet distance"),
        ({"images": "a", "kid": True, "metrics": MetricConfig(features=None)}, "kid needs a feature network"),
        (
            {"images": "a", "inception_score": True, "metrics": MetricConfig(features="squeezenet")},
            "needs class logits",
        ),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**options)


def test_what_goes_together():
    for options in ({"images": "a", "pairs": True, "reference": "b"}, {"tokenizer": "a"}):
        EvaluateConfig(**options, metrics=MetricConfig(lpips="vgg"))
    EvaluateConfig(generator="a", kid=True, kid_subset_size=10, num_images=5, seed=3)
    EvaluateConfig(**LABEL_MAPS, metrics=MetricConfig(lpips=None, features=None))


def test_weights_without_their_network():
    with pytest.raises(ValueError, match=r"metrics\.feature_weights is set, but metrics\.features is null"):
        FeatureConfig(features=None, feature_weights="a.pth")
    with pytest.raises(ValueError, match=r"metrics\.lpips_weights is set, but metrics\.lpips is null"):
        MetricConfig(lpips=None, lpips_weights="a.pth")


def test_few_images_of_no_network():
    with pytest.raises(ValueError, match=r"metrics\.allow_few_images is true, but metrics\.features is null"):
        FeatureConfig(features=None, allow_few_images=True)


def test_from_the_command_line():
    words = ["--tokenizer", "a", "--metrics.lpips", "null", "--metrics.features", "squeezenet"]
    metrics = load_options(EvaluateConfig, None, words).metrics
    assert (metrics.lpips, metrics.features) == (None, "squeezenet")
    with pytest.raises(
        ValueError, match=r"metrics.lpips must be one of 'auto', 'squeeze', 'alex', 'vgg' or null, got 'vgg19'"
    ):
        load_options(EvaluateConfig, None, ["--tokenizer", "a", "--metrics.lpips", "vgg19"])
