"""The samples of a generator, drawn by the command, against those of a call of the model."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.image_sets import check_sizes
from hq_tokenizers.evaluation.references import Reference, data_identity
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, MetricConfig

DATA = DataConfig(validation_split="test[:40]")


def _evaluate(generator_dir, folder, **options):
    options = {"data": DATA, "num_images": 20, "seed": 3, "batch_size": 6, **options}
    return evaluate(EvaluateConfig(generator=str(generator_dir), output_dir=str(folder), **options))


@pytest.fixture
def drawn(generator):
    """Samples 0 to 19 of seed 3, uint8 (20, 1, 8, 8), one by one."""
    images = [generator.generate(index % 3, generator=3 + index).images for index in range(20)]
    return (torch.cat(images).clamp(0, 1) * 255).round().byte()


def test_distance_from_a_split(six_pixels, generator_dir, tmp_path, drawn, held_out, distance_of):
    expected = distance_of(drawn, (held_out * 255).round().byte())
    report = _evaluate(generator_dir, tmp_path)
    assert report["results"]["fid"]["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert report["subject"]["generation"]["temperature"] == 1.0
    assert report["results"]["fid"]["provenance"]["num_images"] == 20
    other = _evaluate(generator_dir, tmp_path, batch_size=20)
    assert other["results"]["fid"]["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    cold = _evaluate(generator_dir, tmp_path, generation={"temperature": 0.1})
    assert cold["results"]["fid"]["frechet_distance"] != pytest.approx(expected, rel=1e-3)


def test_kept_samples(six_pixels, generator_dir, tmp_path, drawn, monkeypatch):
    kept = tmp_path / "kept"
    options = {"images_dir": str(kept), "num_images": 20}
    first = _evaluate(generator_dir, tmp_path / "first", **options)["results"]["fid"]
    assert len(list(kept.glob("*.png"))) == 20
    as_folder = evaluate(EvaluateConfig(images=str(kept), output_dir=str(tmp_path / "folder"), data=DATA))
    assert as_folder["results"]["fid"]["frechet_distance"] == pytest.approx(first["frechet_distance"], rel=1e-9)

    (kept / "000007.png").unlink()
    calls = []
    from hq_tokenizers import HQGeneratorModel

    generate = HQGeneratorModel.generate

    def count(model, labels, **options):
        calls.append(labels)
        return generate(model, labels, **options)

    monkeypatch.setattr(HQGeneratorModel, "generate", count)
    again = _evaluate(generator_dir, tmp_path / "again", **options)["results"]["fid"]
    assert calls == [[7 % 3]]
    assert again == first
    for other in ({"seed": 4}, {"generation": {"temperature": 0.5}}):
        with pytest.raises(ValueError, match="holds images of another call"):
            _evaluate(generator_dir, tmp_path / "again", **options | other)
    assert calls == [[1]]


def test_inception_score_and_the_rest(six_pixels, generator_dir, tmp_path):
    extra = {"kid": True, "kid_subset_size": 30, "inception_score": True, "precision_recall": True}
    found = _evaluate(generator_dir, tmp_path, num_images=200, batch_size=50, **extra)["results"]["fid"]
    assert {"kernel_distance_mean", "classifier_score_mean", "precision", "recall"} <= found.keys()
    assert found["classifier_score_mean"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 6}, "6 images to judge are too few"),
        ({"data": DataConfig(validation_split="test[:5]")}, "5 images to compare with are too few"),
        ({"generation": {"temprature": 1}}, "temprature"),
        ({"generation": {"num_steps": 4}}, "num_steps=4 is a setting of masked_prior models"),
        ({"data": DataConfig(validation_split="tset")}, "data.validation_split 'tset' is not one of"),
        ({"metrics": MetricConfig(features="squeezenet", feature_weights="no.pth")}, "no weight file at no.pth"),
        ({"metrics": MetricConfig(sound_network="a/b")}, "sound_network is for sounds, and the generator makes images"),
    ],
)
def test_errors_come_before_sampling(six_pixels, generator_dir, tmp_path, monkeypatch, options, message):
    from hq_tokenizers import HQGeneratorModel

    monkeypatch.setattr(HQGeneratorModel, "generate", lambda *arguments, **options: pytest.fail("sampled"))
    with pytest.raises((ValueError, OSError), match=message):
        _evaluate(generator_dir, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_whoever_names_no_images_hears_which_they_are(six_pixels, generator_dir, tmp_path, capsys):
    note = "the images to compare with are the embedded digits"
    _evaluate(generator_dir, tmp_path / "named")
    assert note not in capsys.readouterr().out
    _evaluate(generator_dir, tmp_path / "not named", data=DataConfig())
    assert note in capsys.readouterr().out


def test_digits_are_no_reference_for_larger_images():
    (digits,) = load_image_splits(DATA, "validation_split")
    reference = Reference(digits, identity=data_identity(DATA, "validation_split"))
    check_sizes((8, 8), reference)
    with pytest.raises(ValueError, match=r"with 8×8: those are the embedded digits; choose others by data\.name"):
        check_sizes((32, 32), reference)


def test_a_tokenizer_is_no_generator(tokenizer_dir, tmp_path):
    with pytest.raises(ValueError, match="holds a model of type hq_vae, but a generator is needed"):
        _evaluate(tokenizer_dir, tmp_path)


def test_statistics_of_another_size_are_refused_before_sampling(six_pixels, generator_dir, tmp_path, monkeypatch):
    from hq_tokenizers import HQGeneratorModel
    from hq_tokenizers.evaluation.networks import inception_network
    from hq_tokenizers.metrics import FID

    reference = FID(feature_network=inception_network(), allow_few_images=True)
    reference.add_batch(references=torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8))
    reference.save_reference(tmp_path / "large.safetensors")
    monkeypatch.setattr(HQGeneratorModel, "generate", lambda *arguments, **options: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"of images of size \[16, 16\], the images to judge of \[8, 8\]: .* 8, or"):
        _evaluate(generator_dir, tmp_path / "out", reference=str(tmp_path / "large.safetensors"))
