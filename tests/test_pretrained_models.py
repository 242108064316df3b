"""The generators that come with the package: their size, and that they draw what they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hq_tokenizers import (
    HQAudioGenerationPipeline,
    HQFeatureExtractor,
    HQGenerationPipeline,
    HQVAEModel,
    pretrained,
    pretrained_names,
)
from hq_tokenizers.app.space import export_space
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.sound_loading import load_front_end, load_sound_splits
from hq_tokenizers.models.trained_models import load_generator, load_image_processor, load_tokenizer
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.registration import register
from hq_tokenizers.tensor_files import tensor_types

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
FOLDER = Path(pretrained("fashion-mnist"))
DIGITS = Path(pretrained("spoken-digits"))
BOTH = pytest.mark.parametrize("folder", [FOLDER, DIGITS], ids=lambda folder: folder.name)


@pytest.fixture(scope="module")
def draw() -> HQGenerationPipeline:
    return pipeline("hq-generation", model=pretrained("fashion-mnist"))


@pytest.fixture(scope="module")
def speak() -> HQAudioGenerationPipeline:
    return pipeline("hq-audio-generation", model=pretrained("spoken-digits"))


def test_names_are_those_of_the_folders():
    assert pretrained_names() == ("fashion-mnist", "spoken-digits")
    assert isinstance(pretrained("fashion-mnist"), str)
    assert sorted(path.name for path in FOLDER.parent.iterdir()) == ["fashion_mnist", "spoken_digits"]


@pytest.mark.parametrize("name", ["fashion_mnist", "fashionmnist", "cifar10", "", "..", None])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(ValueError, match=r"must be one of 'fashion-mnist', 'spoken-digits', got"):
        pretrained(name)


def test_options_that_name_a_model_know_them(tmp_path, monkeypatch):
    """Unless a folder of that name is there."""
    generator = load_generator("spoken-digits")
    assert generator.config.name_or_path == str(DIGITS)
    assert isinstance(load_front_end("spoken-digits", generator.image_tokenizer.config), HQFeatureExtractor)
    clothes = load_tokenizer("fashion-mnist").config
    assert clothes.image_size == 28
    processor = load_image_processor("fashion-mnist", clothes)
    assert processor.to_dict() == load_image_processor(str(FOLDER), clothes).to_dict()
    monkeypatch.chdir(tmp_path)
    export_space("fashion-mnist", "space")
    assert Path("space", "generator", "config.json").read_bytes() == (FOLDER / "config.json").read_bytes()
    Path("fashion-mnist").mkdir()
    with pytest.raises(ValueError, match="generator 'fashion-mnist' is neither the folder"):
        load_generator("fashion-mnist")


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_what_can_be_no_name_is_not_looked_for_either(name, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_: pytest.fail("asked"))
    with pytest.raises(ValueError, match=rf"generator '{name}' is neither"):
        load_generator(name)


@pytest.mark.parametrize("name", ["fashion-mnst", "Fashion_MNIST"])
def test_a_misspelt_name_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_: pytest.fail("asked"))
    with pytest.raises(ValueError, match=rf"tokenizer '{name}' is neither .* Did you mean fashion-mnist\?"):
        load_tokenizer(name)


def test_a_near_name_is_suggested():
    with pytest.raises(ValueError, match=r"Did you mean fashion-mnist\?"):
        pretrained("fashion_mnist")


@BOTH
def test_at_most_three_megabytes_of_weights_in_half_a_card_and_no_pickle(folder):
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    card = ["README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(sizes) == card
    assert sum(sizes.values()) <= 3_000_000
    kinds = {kind for kind in tensor_types(folder / "model.safetensors").values() if not kind.startswith("I")}
    assert kinds == {"F16"}


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (FOLDER, ("license: mit", "fashion_mnist", 'hq_tokenizers.pretrained("fashion-mnist")', "| class accuracy")),
        (
            DIGITS,
            ("license: cc-by-sa-4.0", "spoken-digit", 'hq_tokenizers.pretrained("spoken-digits")', "| digit accuracy"),
        ),
    ],
)
def test_the_card_says_licence_data_figures_and_how_to_load_it(folder, words):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert [said for said in words if said not in card] == []


@pytest.mark.parametrize("task", ["hq-generation", "unconditional-image-generation"])
def test_a_pipeline_that_names_no_model_draws_with_it(draw, task):
    unnamed = pipeline(task)
    assert isinstance(unnamed, HQGenerationPipeline)
    assert unnamed("sneaker", seed=3).tobytes() == draw("sneaker", seed=3).tobytes()


def test_a_pipeline_of_sounds_that_names_no_model_speaks_with_it(speak):
    unnamed = pipeline("hq-audio-generation")
    assert isinstance(unnamed, HQAudioGenerationPipeline)
    sounds = [each("7", speakers="theo", seed=3)["audio"] for each in (unnamed, speak)]
    assert sounds[0].tobytes() == sounds[1].tobytes()


def test_without_its_folders_the_package_imports_and_has_no_default(tmp_path, monkeypatch):
    """The script that makes a folder anew imports the package."""
    monkeypatch.setattr("hq_tokenizers.pretrained_models._FOLDER", tmp_path)
    monkeypatch.delitem(PIPELINE_REGISTRY.supported_tasks, "hq-audio-generation")
    register()
    assert PIPELINE_REGISTRY.supported_tasks["hq-audio-generation"].get("default") is None


def test_loads_as_float32_without_being_told(draw):
    model = draw.model
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert list(model.config.id2label.values()) == NAMES
    tokenizer = HQVAEModel.from_pretrained(FOLDER)
    assert tokenizer.dtype == torch.float32
    assert tokenizer.config.image_size == 28


def test_a_draw_by_name_is_the_seeds(draw):
    images = [np.asarray(draw(label, seed=3)) for label in ("sneaker", "Sneaker", 7)]
    assert images[0].shape == (28, 28)
    assert all((image == images[0]).all() for image in images)
    assert (np.asarray(draw("sneaker", seed=4)) != images[0]).any()
    assert (np.asarray(draw("ankle boot", seed=3)) != images[0]).any()
    # Image 5 of a call is image 0 of the call with that seed.
    several = draw(["bag", "coat"], num_images=3, seed=0, output_type="pt")
    torch.testing.assert_close(several[1][2], draw("coat", seed=5, output_type="pt"), rtol=0, atol=1e-5)


def test_the_default_draw_is_guided(draw):
    """Stored settings count: with guidance off, another image."""
    stored = json.loads((FOLDER / "generation_config.json").read_text())
    assert stored["guidance_scale"] > 1
    explicit = {name: stored[name] for name in ("guidance_scale", "temperature")}
    codes = draw("dress", seed=0, output_type="codes").flatten()
    assert torch.equal(draw("dress", seed=0, output_type="codes", **explicit).flatten(), codes)
    assert not torch.equal(draw("dress", seed=0, output_type="codes", guidance_scale=1).flatten(), codes)


def test_every_level_brings_the_image_nearer(draw):
    """Of images that were drawn, which are there without any data."""
    images = draw(NAMES, seed=0, output_type="pt")
    levels = range(1, draw.model.code_layout.num_levels + 1)
    decoded = [torch.stack(draw.reconstruct(images, num_levels=n, output_type="pt")) for n in levels]
    errors = [(each - torch.stack(images)).square().mean().item() for each in decoded]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2
    whole = torch.stack(draw.reconstruct(images, output_type="pt"))
    assert torch.equal(whole, decoded[-1])


@pytest.fixture(scope="module")
def real_images(data_folder):
    """The first 4,000 test images, and their classes."""
    files = {"test": "fashion_mnist-test.parquet"}
    data = DataConfig(name="parquet", path=str(data_folder), files=files, validation_split="test[:4000]")
    (rows,) = load_image_splits(data, "validation_split")
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    return batch["pixel_values"], batch["labels"]


def test_draws_what_it_is_asked_for(draw, real_images):
    """Read by the nearest of real images that training has not seen; chance would be 1 in 10."""
    pixels, labels = real_images
    asked = torch.arange(10).repeat_interleave(10)
    drawn = torch.stack(draw(asked, seed=0, output_type="pt"))
    nearest = torch.cdist(drawn.flatten(1), pixels.flatten(1)).argmin(1)
    assert (labels[nearest] == asked).float().mean() > 0.7


def test_reconstructs_real_images(draw, real_images):
    pixels = real_images[0][:100]
    errors = [
        (torch.stack(draw.reconstruct(pixels, num_levels=n, output_type="pt")) - pixels).square().mean().item()
        for n in range(1, draw.model.code_layout.num_levels + 1)
    ]
    assert errors == sorted(errors, reverse=True)
    # The mean image of the set has an error of 0.09.
    assert errors[-1] < 0.004


def test_a_misspelt_argument_is_named_before_what_is_missing(speak):
    for call in (lambda: speak("7", speaker="theo"), lambda: speak.variations(np.zeros(800), 1, speaker="theo")):
        with pytest.raises(TypeError, match=r"Unknown argument 'speaker'. Did you mean speakers\?"):
            call()
    with pytest.raises(ValueError, match="speaker='theo' means nothing"):
        speak.model.generate("7", speaker="theo")


def test_a_digit_is_spoken_by_whom_it_is_asked_of(speak):
    assert list(speak.model.config.id2label.values()) == list("0123456789")
    assert list(speak.model.config.speaker_names.values()) == SPEAKERS
    sounds = [
        speak(digit, speakers=who, seed=3) for digit, who in (("7", "theo"), (7, 4), ("7", "lucas"), ("2", "theo"))
    ]
    assert {sound["sampling_rate"] for sound in sounds} == {8000}
    assert sounds[0]["audio"].tobytes() == sounds[1]["audio"].tobytes()
    assert len({sound["audio"].tobytes() for sound in sounds}) == 3
    assert all(0.1 < len(sound["audio"]) / 8000 <= 0.65 for sound in sounds)


def of_one_length(spectrograms) -> torch.Tensor:
    """Spectrograms (bands, frames) stretched to 32 frames, without their loudness, (N, bands · 32)."""
    stretched = [F.interpolate(torch.as_tensor(each)[None], size=32, mode="linear")[0] for each in spectrograms]
    return torch.stack([(each - each.mean()) / each.std() for each in stretched]).flatten(1)


def test_is_heard_as_asked(speak, data_folder):
    """By the nearest of held-out sounds of the speaker; chance would be 1 in 10."""
    files = {"test": "fsdd-test.parquet"}
    data = DataConfig(name="parquet", path=str(data_folder), files=files, validation_split="test")
    data.sound.speaker_column = "speaker"
    (rows,) = load_sound_splits(data, HQFeatureExtractor.from_pretrained(DIGITS), "validation_split")
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    frames = batch["attention_mask"].sum(1).tolist()
    real = of_one_length(each[:, 0, :n] for each, n in zip(batch["pixel_values"], frames, strict=True))
    speakers = torch.arange(6).repeat(10)
    digits = torch.arange(10).repeat_interleave(6)
    drawn = of_one_length(speak(digits, speakers=speakers, seed=0, output_type="spectrogram"))
    distances = torch.cdist(drawn, real)
    distances[speakers[:, None] != batch["speaker_ids"]] = float("inf")
    assert (batch["labels"][distances.argmin(1)] == digits).float().mean() > 0.7
