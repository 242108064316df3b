"""FID against torch-fidelity, torchmetrics, scipy and closed forms; naming; every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from safetensors import safe_open
from torch.utils.data import Dataset

from hq_tokenizers.metrics.fid import FID
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork, inception_network, squeezenet_network
from hq_tokenizers.metrics.running.feature_statistics import load_statistics


class Tensors(Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def scipy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al.'s formula with scipy's matrix square root."""
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real))


def pixels_of(images: torch.Tensor) -> np.ndarray:
    return images.flatten(1)[:, :6].double().numpy()


def test_agrees_with_torch_fidelity_and_torchmetrics_on_one_inception(random_inception: Path) -> None:
    import torch_fidelity
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(3)
    fake = torch.randint(0, 180, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    real = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    metric = FID(
        weights=random_inception,
        kid=True,
        kid_subset_size=5,
        inception_score=True,
        inception_score_splits=1,
        precision_recall=True,
        allow_few_images=True,
    )
    metric.add_batch(predictions=fake[:4], references=real[:2])
    metric.add_batch(predictions=fake[4:])
    metric.add_batch(references=real[2:])
    ours = metric.compute()

    theirs = torch_fidelity.calculate_metrics(
        input1=Tensors(fake),
        input2=Tensors(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_inception),
        cuda=False,
        batch_size=5,
        save_cpu_ram=True,
        fid=True,
        kid=True,
        kid_subset_size=5,
        isc=True,
        isc_splits=1,
        prc=True,
        cache=False,
        verbose=False,
    )
    assert ours["frechet_distance"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["kernel_distance_mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert ours["classifier_score_mean"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert theirs["inception_score_mean"] > 1.01
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])

    torchmetrics_fid = FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(random_inception), antialias=False
    ).set_dtype(torch.float64)
    torchmetrics_fid.inception.to(torch.float32)
    torchmetrics_fid.inception._dtype = torch.float32
    torchmetrics_fid.update(real, real=True)
    torchmetrics_fid.update(fake, real=False)
    assert ours["frechet_distance"] == pytest.approx(float(torchmetrics_fid.compute()), rel=1e-6)

    # Weights that are not the published ones are said to be so, wherever the number goes.
    assert "fid" not in ours
    assert "not FID" in ours["provenance"]["metric"]
    assert "random_inception.pth" in ours["provenance"]["feature_network"]["name"]


def test_equals_scipy_for_any_batching_and_sides_of_different_number(
    pixel_network: FeatureNetwork, images: torch.Tensor, other_images: torch.Tensor
) -> None:
    expected = scipy_distance(pixels_of(images), pixels_of(other_images))
    for batch in (1, 7, 40):
        metric = FID(feature_network=pixel_network)
        for part in images.split(batch):
            metric.add_batch(predictions=part)
        for part in other_images.split(batch):
            metric.add_batch(references=part)
        assert metric.compute()["frechet_distance"] == pytest.approx(expected, rel=1e-9)


def test_closed_form_for_diagonal_gaussians() -> None:
    from hq_tokenizers.metrics.running.running_gaussian import RunningGaussian
    from hq_tokenizers.metrics.set_distances import frechet_distance

    a, b = torch.tensor([4.0, 1.0, 9.0]).double(), torch.tensor([1.0, 1.0, 16.0]).double()
    gaussians = [
        RunningGaussian(11, mean, torch.diag(10 * variance))
        for mean, variance in ((torch.zeros(3).double(), a), (torch.tensor([1.0, 2.0, -2.0]).double(), b))
    ]
    # |μ − μ'|² + Σ (σ − σ')² = 9 + (2 − 1)² + 0 + (3 − 4)²
    assert frechet_distance(*gaussians) == pytest.approx(11.0, rel=1e-12)


def test_same_set_has_distance_zero_and_perfect_precision(pixel_network: FeatureNetwork, images: torch.Tensor) -> None:
    metric = FID(feature_network=pixel_network, precision_recall=True, kid=True, kid_subset_size=20)
    result = metric.compute(predictions=images, references=images.flip(0))
    assert result["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert result["precision"] == result["recall"] == 1.0


def test_tensors_floats_and_pil_images_are_one_input(
    pixel_network: FeatureNetwork, images: torch.Tensor, other_images: torch.Tensor
) -> None:
    results = []
    for form in (
        images,
        images.float() / 255,
        images.double() / 255,
        [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images],
    ):
        metric = FID(feature_network=pixel_network)
        results.append(metric.compute(predictions=form, references=other_images))
    assert len({json.dumps(result, sort_keys=True) for result in results}) == 1


def test_add_takes_one_image(pixel_network: FeatureNetwork, images: torch.Tensor, other_images: torch.Tensor) -> None:
    metric = FID(feature_network=pixel_network)
    for image in images:
        metric.add(prediction=image)
    for image in other_images:
        metric.add(reference=Image.fromarray(image.permute(1, 2, 0).numpy()))
    expected = scipy_distance(pixels_of(images), pixels_of(other_images))
    assert metric.compute()["frechet_distance"] == pytest.approx(expected, rel=1e-9)


def test_inception_score_over_splits_is_torch_fidelitys_of_each_split(
    classifier_network: FeatureNetwork, images: torch.Tensor
) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    metric = FID(feature_network=classifier_network, inception_score=True, inception_score_splits=3)
    state = metric._new_state().predictions
    digests = state.identity.update(images, "predictions")
    split = torch.tensor([state.inception_score.split_of(digest) for digest in digests])
    logits = classifier_network(images)[1]
    scores = [isc_features_to_metric(logits[split == s], splits=1)["inception_score_mean"] for s in range(3)]
    assert min(scores) > 1.01
    result = metric.compute(predictions=images, references=images)
    assert result["classifier_score_mean"] == pytest.approx(np.mean(scores), rel=1e-9)
    assert result["classifier_score_std"] == pytest.approx(np.std(scores), rel=1e-9)


def test_features_are_kept_only_when_asked_and_never_beyond_the_stated_number(
    pixel_network: FeatureNetwork, images: torch.Tensor
) -> None:
    plain = FID(feature_network=pixel_network)
    plain.add_batch(predictions=images, references=images)
    assert plain._state.predictions.sample is None
    assert "kernel_distance_mean" not in plain.compute()

    metric = FID(feature_network=pixel_network, precision_recall=True, max_features=10)
    for part in images.split(7):
        metric.add_batch(predictions=part, references=part)
    assert len(metric._state.predictions.sampled_features()) == 10
    assert metric.compute()["provenance"]["max_features"] == 10


def test_a_collapsed_generator_is_not_flattered_by_the_sample() -> None:
    # 75 % of the samples are copies of one image. The unbiased MMD² with KID's kernel, over all pairs of the two sets,
    # written out in float64; and precision and recall of all features.
    generator = torch.Generator().manual_seed(2)
    references = torch.randint(0, 256, (2000, 3, 4, 4), dtype=torch.uint8, generator=generator)
    own = torch.randint(0, 256, (500, 3, 4, 4), dtype=torch.uint8, generator=generator)
    collapsed = torch.cat([own[:1].expand(1500, -1, -1, -1), own])
    module = torch.nn.Module()
    module.forward = lambda images: images.flatten(1)[:, :16].float() / 64 - 2
    network = FeatureNetwork.from_module(module, name="pixels", resize_filter="none")
    x, y = (module.forward(images).double() for images in (collapsed, references))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 16 + 1) ** 3

    within = sum(
        (kernel(side, side).sum() - kernel(side, side).diagonal().sum()) / (len(side) * (len(side) - 1))
        for side in (x, y)
    )
    expected = float(within - 2 * kernel(x, y).mean())

    def result(max_features: int) -> dict:
        metric = FID(
            feature_network=network, kid=True, kid_subset_size=250, precision_recall=True, max_features=max_features
        )
        return metric.compute(predictions=collapsed, references=references)

    everything = result(2000)
    for found in (everything, result(250), result(500)):
        # Two standard errors of a sample of 250. Keeping copies in or out together gave −0.01 and 0.51, not 7.5.
        assert found["kernel_distance_mean"] == pytest.approx(expected, rel=0.2)
        assert found["precision"] == pytest.approx(everything["precision"], abs=0.1)


def test_provenance_names_everything_and_is_json(
    pixel_network: FeatureNetwork, images: torch.Tensor, other_images: torch.Tensor
) -> None:
    metric = FID(
        feature_network=pixel_network, reference_name="noise", reference_split="train", resize_filter="box filter"
    )
    provenance = metric.compute(predictions=images, references=other_images)["provenance"]
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["metric"] == "Fréchet distance on pixels (not FID)"
    assert provenance["feature_network"]["name"] == "pixels"
    assert len(provenance["feature_network"]["weights_sha256"]) == 64
    assert provenance["reference"]["name"] == "noise"
    assert provenance["reference"]["split"] == "train"
    assert provenance["reference"]["num_images"] == 30
    assert provenance["num_images"] == 40
    assert provenance["image_size"] == [8, 8]
    assert provenance["resize_filter"] == "box filter"
    assert provenance["library_versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"hq_tokenizers", "evaluate", "torch-fidelity"} <= set(provenance["library_versions"])


def test_only_the_published_inception_is_called_fid(
    images: torch.Tensor, other_images: torch.Tensor, pixel_network: FeatureNetwork
) -> None:
    official = FeatureNetwork("inception-v3-compat", pixel_network.module, "none", "0" * 64, is_fid_inception=True)
    metric = FID(feature_network=official, kid=True, kid_subset_size=20)
    result = metric.compute(predictions=images, references=other_images)
    assert {"fid", "kid_mean", "kid_std"} <= set(result)
    assert result["provenance"]["metric"] == "FID"


def test_compute_starts_afresh(pixel_network: FeatureNetwork, images: torch.Tensor, other_images: torch.Tensor) -> None:
    metric = FID(feature_network=pixel_network)
    first = metric.compute(predictions=images, references=other_images)
    assert len(metric) == 0
    assert metric.compute(predictions=images, references=other_images) == first


class TestReferenceStatistics:
    @pytest.fixture
    def file(self, tmp_path: Path, pixel_network: FeatureNetwork, other_images: torch.Tensor) -> Path:
        metric = FID(feature_network=pixel_network, reference_name="noise", reference_split="train", kid=True)
        metric.add_batch(references=other_images)
        metric.save_reference(tmp_path / "deep" / "noise.safetensors")
        return tmp_path / "deep" / "noise.safetensors"

    def test_give_the_result_of_the_images(
        self, file: Path, pixel_network: FeatureNetwork, images: torch.Tensor, other_images: torch.Tensor
    ) -> None:
        options = {"feature_network": pixel_network, "kid": True, "kid_subset_size": 20}
        direct = FID(**options, reference_name="noise", reference_split="train")
        stored = FID(**options, reference=file)
        expected = direct.compute(predictions=images, references=other_images)
        assert stored.compute(predictions=images) == expected
        assert stored.compute(predictions=images) == expected, "the reference outlives a compute()"

    def test_carry_the_header_in_the_metadata(self, file: Path) -> None:
        with safe_open(file, framework="pt") as handle:
            header = json.loads(handle.metadata()["header"])
        assert header["reference"]["name"] == "noise"
        assert header["feature_network"]["name"] == "pixels"
        assert header["image_size"] == [8, 8]
        assert header["num_images"] == 30

    def test_refuse_other_weights_naming_both(self, file: Path, pixel_network: FeatureNetwork) -> None:
        pixel_network.module.logits += 1
        other = FeatureNetwork.from_module(pixel_network.module, name="pixels", resize_filter="none")
        with pytest.raises(ValueError, match="weights_sha256") as error:
            FID(feature_network=other, reference=file)
        assert other.weights_sha256 in str(error.value)
        assert pixel_network.weights_sha256 in str(error.value)

    def test_refuse_another_network_size_name_or_reference_images(
        self, file: Path, pixel_network: FeatureNetwork, images: torch.Tensor
    ) -> None:
        renamed = FeatureNetwork.from_module(pixel_network.module, name="pixels again", resize_filter="none")
        with pytest.raises(ValueError, match=r"feature_network\.name is 'pixels' there and 'pixels again' here"):
            FID(feature_network=renamed, reference=file)
        with pytest.raises(ValueError, match="reference_split is 'train' there and 'test' here"):
            FID(feature_network=pixel_network, reference=file, reference_split="test")
        with pytest.raises(ValueError, match="max_features is 10000 there and 50 here"):
            FID(feature_network=pixel_network, reference=file, kid=True, kid_subset_size=10, max_features=50)
        metric = FID(feature_network=pixel_network, reference=file)
        with pytest.raises(ValueError, match="predictions are 16×16, references 8×8"):
            metric.add_batch(predictions=images.repeat(1, 1, 2, 2))
        with pytest.raises(ValueError, match="come from the reference statistics"):
            metric.add_batch(references=images)

    def test_without_features_cannot_give_kid(
        self, tmp_path: Path, pixel_network: FeatureNetwork, images: torch.Tensor
    ) -> None:
        metric = FID(feature_network=pixel_network)
        metric.add_batch(references=images)
        metric.save_reference(tmp_path / "plain.safetensors")
        with pytest.raises(ValueError, match="no features of single images, which kid and precision_recall need"):
            FID(feature_network=pixel_network, reference=tmp_path / "plain.safetensors", kid=True)

    def test_may_be_kept_for_several_results(
        self, tmp_path: Path, pixel_network: FeatureNetwork, images: torch.Tensor
    ) -> None:
        options = {"feature_network": pixel_network, "kid": True, "kid_subset_size": 5, "precision_recall": True}
        kept = FID(**options)
        with pytest.raises(ValueError, match="no references to keep"):
            kept.keep_references()
        kept.add_batch(references=images)
        kept.save_reference(tmp_path / "before.safetensors")
        kept.keep_references()
        kept.save_reference(tmp_path / "after.safetensors")
        (before, header), (after, same) = (
            load_statistics(tmp_path / f"{name}.safetensors") for name in ("before", "after")
        )
        assert header["reference"] == same["reference"]
        assert torch.equal(before.gaussian.mean, after.gaussian.mean)
        assert before.identity == after.identity
        for predictions in (images.flip(-1), 1 - images if images.is_floating_point() else 255 - images):
            plain = FID(**options)
            expected = plain.compute(predictions=predictions, references=images)
            assert kept.compute(predictions=predictions) == expected

    def test_must_be_the_same_for_merging(self, pixel_network: FeatureNetwork, images: torch.Tensor) -> None:
        half = len(images) // 2
        kept, same, other, fresh = (FID(feature_network=pixel_network) for _ in range(4))
        for metric, references in ((kept, images), (same, images), (other, images.flip(-1))):
            metric.add_batch(references=references)
            metric.keep_references()
        kept.add_batch(predictions=images[:half])
        for metric in (same, other, fresh):
            metric.add_batch(predictions=images[half:], references=None if metric is not fresh else images)
        for stranger in (other, fresh):
            with pytest.raises(ValueError, match="reference"):
                kept.merge(stranger)
            with pytest.raises(ValueError, match="reference"):
                stranger.merge(kept)
        kept.merge(same)
        assert kept.compute()["frechet_distance"] == pytest.approx(0, abs=1e-9)

    def test_say_what_a_wrong_file_is(self, tmp_path: Path, pixel_network: FeatureNetwork) -> None:
        from safetensors.torch import save_file

        with pytest.raises(FileNotFoundError, match="save_reference"):
            FID(feature_network=pixel_network, reference=tmp_path / "absent.safetensors")
        (tmp_path / "text").write_text("mean")
        with pytest.raises(ValueError, match="no safetensors file"):
            FID(feature_network=pixel_network, reference=tmp_path / "text")
        metadata = {"format": "hq_tokenizers feature statistics 1"}
        save_file({"mean": torch.zeros(1)}, tmp_path / "half.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match="lacks header, num_images, scatter, sha256, shape, which statistics have"):
            FID(feature_network=pixel_network, reference=tmp_path / "half.safetensors")
        save_file({"mean": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="holds no 'hq_tokenizers feature statistics 1' but None"):
            FID(feature_network=pixel_network, reference=tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="no references to save"):
            FID(feature_network=pixel_network).save_reference(tmp_path / "empty.safetensors")


class TestRefusals:
    @pytest.fixture
    def metric(self, pixel_network: FeatureNetwork) -> FID:
        return FID(feature_network=pixel_network)

    def test_one_image(self, metric: FID, images: torch.Tensor) -> None:
        metric.add_batch(predictions=images[:1], references=images)
        with pytest.raises(ValueError, match="at least 2 images, there is 1 among the predictions"):
            metric.compute()

    def test_too_few_images_for_the_covariance(self, metric: FID, images: torch.Tensor) -> None:
        metric.add_batch(predictions=images, references=images[:6])
        with pytest.raises(ValueError, match=r"6 references are too few .* 6 features, which needs at least 7"):
            metric.compute()
        metric.add_batch(references=images[6:7])
        assert metric.compute()["frechet_distance"] > 0, "what was added before the refusal is kept"

    def test_few_images_when_allowed(self, pixel_network: FeatureNetwork, images: torch.Tensor) -> None:
        metric = FID(feature_network=pixel_network, allow_few_images=True)
        result = metric.compute(predictions=images, references=images[:4])
        expected = scipy_distance(pixels_of(images), pixels_of(images[:4]))
        assert result["frechet_distance"] == pytest.approx(expected, rel=1e-5)

    def test_nothing_or_one_side(self, metric: FID, images: torch.Tensor) -> None:
        with pytest.raises(ValueError, match="has seen no predictions"):
            metric.compute()
        with pytest.raises(ValueError, match="takes predictions, references; got none"):
            metric.add_batch()
        metric.add_batch(predictions=images)
        with pytest.raises(ValueError, match="there are no references"):
            metric.compute()

    def test_grey_images(self, metric: FID, images: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"predictions: pixels looks at RGB .* images.expand\(-1, 3, -1, -1\)"):
            metric.add_batch(predictions=images[:, :1])

    def test_sizes_that_differ(self, metric: FID, images: torch.Tensor) -> None:
        with pytest.raises(ValueError, match="predictions are 8×8, references 16×16"):
            metric.add_batch(predictions=images, references=images.repeat(1, 1, 2, 2))
        assert len(metric) == 0, "a refused batch leaves no trace"
        metric.add_batch(predictions=images)
        with pytest.raises(ValueError, match=r"predictions: all have one shape .* \(3, 8, 8\), now \(3, 16, 16\)"):
            metric.add_batch(predictions=images.repeat(1, 1, 2, 2))

    def test_nan_pixels_and_nan_features(self, metric: FID, images: torch.Tensor) -> None:
        broken = images.float() / 255
        broken[5, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="references: image 5 of the batch has NaN"):
            metric.add_batch(predictions=images, references=broken)
        assert len(metric) == 0
        network = FeatureNetwork.from_module(torch.nn.Identity(), name="bad", resize_filter="none")
        with pytest.raises(ValueError, match=r"must return features of shape \(40, D\)"):
            FID(feature_network=network).add_batch(predictions=images)

    def test_kid_and_precision_with_too_few_features(self, pixel_network: FeatureNetwork, images: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"KID needs at least 1000 .* lower kid_subset_size"):
            FID(feature_network=pixel_network, kid=True).compute(predictions=images, references=images)
        few = FID(feature_network=pixel_network, precision_recall=True, allow_few_images=True)
        with pytest.raises(ValueError, match="Precision and recall needs at least 4 kept features"):
            few.compute(predictions=images, references=images[:3])

    def test_inception_score_without_logits_or_with_empty_splits(
        self, pixel_network: FeatureNetwork, classifier_network: FeatureNetwork, images: torch.Tensor
    ) -> None:
        with pytest.raises(ValueError, match="pixels has no class logits"):
            FID(feature_network=pixel_network, inception_score=True).add_batch(predictions=images)
        metric = FID(feature_network=classifier_network, inception_score=True, inception_score_splits=100)
        with pytest.raises(ValueError, match="lower inception_score_splits"):
            metric.compute(predictions=images, references=images)

    def test_logits_that_are_not_finite_and_outputs_that_are_no_tensors(self, images: torch.Tensor) -> None:
        for output, message in (((torch.ones(40, 2), torch.full((40, 3), torch.nan)), "logits"), ({}, "got dict")):
            module = torch.nn.Module()
            module.forward = lambda images, output=output: output
            network = FeatureNetwork.from_module(module, name="odd", resize_filter="none")
            with pytest.raises(ValueError, match=message):
                FID(feature_network=network, inception_score=True).add_batch(predictions=images)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kid": True, "kid_subset_size": 1}, "kid_subset_size must be at least 2, got 1"),
            ({"kid": True, "kid_subset_size": 10, "max_features": 5}, "at least kid_subset_size, 10, got 5"),
            ({"precision_recall": True, "max_features": -1}, "max_features must be at least 4, got -1"),
            (
                {"inception_score": True, "inception_score_splits": 0},
                "inception_score_splits must be at least 1, got 0",
            ),
        ],
    )
    def test_numbers_out_of_range(self, pixel_network: FeatureNetwork, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FID(feature_network=pixel_network, **options)

    def test_what_is_refused_changes_nothing(self, images: torch.Tensor) -> None:
        widths = iter((4, 4, 5, 4, 4))
        module = torch.nn.Module()
        module.forward = lambda images: images.flatten(1)[:, : next(widths)].float()
        network = FeatureNetwork.from_module(module, name="odd", resize_filter="none")
        metric, other = (FID(feature_network=network, allow_few_images=True) for _ in range(2))
        metric.add_batch(references=images)
        other.add_batch(predictions=images[..., :2, :2])
        with pytest.raises(ValueError, match="gave 4 features before and 5 now"):
            metric.add_batch(references=images)
        assert metric.num_references == len(images)
        with pytest.raises(ValueError, match="image_size differs: predictions are 2×2"):
            metric.merge(other)
        other.add_batch(references=images[..., :2, :2])
        with pytest.raises(ValueError, match="references: all have one shape within a set"):
            metric.merge(other)
        assert metric._state.predictions.identity.num_images == 0
        metric.add_batch(predictions=images)
        assert metric.compute()["frechet_distance"] == pytest.approx(0, abs=1e-6)

    def test_wrong_options(self, pixel_network: FeatureNetwork) -> None:
        with pytest.raises(TypeError, match=r"FID has no option refrence; its options are .*reference"):
            FID(feature_network=pixel_network, refrence="x")
        with pytest.raises(ValueError, match=r"merge processes by gather\(\)"):
            FID(feature_network=pixel_network, num_process=2)
        with pytest.raises(ValueError, match="either weights or feature_network"):
            FID(feature_network=pixel_network, weights="x.pth")
        with pytest.raises(ValueError, match="needs a name"):
            FeatureNetwork.from_module(torch.nn.Identity(), name="", resize_filter="none")

    def test_inception_from_a_file_of_something_else(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="does not hold torch-fidelity's Inception weights"):
            inception_network(tmp_path / "other.pth")


def test_squeezenet_distance_is_named_and_equals_its_definition(lpips_folder: Path, images: torch.Tensor) -> None:
    import torchvision

    network = squeezenet_network(lpips_folder / "squeeze.backbone.pth")
    reference = torchvision.models.squeezenet1_1(weights=None).features.eval()
    reference.load_state_dict(torch.load(lpips_folder / "squeeze.backbone.pth", weights_only=True))
    transform = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms(crop_size=128, resize_size=128)
    noise = torch.randint(0, 256, (2, 3, 200, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for batch in (noise, images):
        with torch.no_grad():
            # Of uint8 images torchvision's transform would round the resized ones to 8 bits.
            expected = reference(transform(batch.float() / 255)).mean(dim=(2, 3))
            features, logits = network(batch)
        assert logits is None
        assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5)

    metric = FID(feature_network=network, allow_few_images=True)
    result = metric.compute(predictions=images, references=255 - images)
    assert result["frechet_distance"] > 1
    assert "435cedb387e95bc8" in result["provenance"]["feature_network"]["weights_file"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(images)[0], features)
    assert result["provenance"]["metric"] == (
        "Fréchet distance on squeezenet1_1 features, global average pooling (not FID)"
    )
