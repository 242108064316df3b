from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from PIL import Image
from transformers import BertConfig, BertModel

from hq_tokenizers import (
    HQFeatureExtractor,
    HQGeneratorModel,
    HQImageProcessor,
    RQPriorConfig,
    RQPriorModel,
    SQVAEModel,
    sq_vae,
    vae,
)
from hq_tokenizers.hub import create_model_card
from hq_tokenizers.sound_decoding import encode_wav


def test_generator_header(generator, tmp_path):
    card = create_model_card(generator, "user/cats", license="apache-2.0", datasets=["user/pets"])
    card.save(tmp_path / "README.md")
    header = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "unconditional-image-generation"
    assert header["license"] == "apache-2.0"
    assert header["datasets"] == ["user/pets"]
    assert {"hq-generation", "class-conditional", "hq_generator"} <= set(header["tags"])
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"


def test_generator_body(generator):
    text = create_model_card(generator, "user/cats", metrics={"rFID, pets test, 100 images": 12.3456789}).text
    assert 'pipeline("hq-generation", model="user/cats")' in text
    assert 'generate("cat", seed=0)' in text
    assert "| 1 | 4 × 4 | 1 | 16 |" in text
    assert "16 codes per image, 64 bits" in text
    for part in (generator.image_tokenizer, generator.prior):
        assert f"`{type(part).__name__}` | {part.num_parameters():,} |" in text
    assert "0: cat, 1: dog, 2: frog." in text
    assert "| rFID, pets test, 100 images | 12.35 |" in text


def test_metrics_fill_the_model_index(generator, tmp_path):
    metrics = {"rFID, pets test, 10,000 images": 12.3456789, "bits per code": 3.0, "KID": "0.01 ± 0.002"}
    create_model_card(generator, "user/cats", metrics=metrics, datasets=["user/pets"]).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == "cats"
    rfid, bits, kid = data.eval_results
    assert rfid == EvalResult(
        task_type="unconditional-image-generation",
        dataset_type="pets_test",
        dataset_name="pets test",
        metric_type="rfid",
        metric_name="rFID, pets test, 10,000 images",
        metric_value=12.3456789,
    )
    assert (bits.dataset_type, bits.dataset_name) == ("user/pets", "user/pets")
    assert (bits.metric_type, bits.metric_value) == ("bits_per_code", 3.0)
    assert (kid.metric_type, kid.metric_value) == ("kid", "0.01 ± 0.002")
    assert create_model_card(generator.prior, metrics={"bits per code": 3.0}).data.eval_results[0].task_type == "other"
    assert create_model_card(generator).data.eval_results is None


def test_what_is_not_known_is_not_claimed(generator):
    card = create_model_card(generator)
    assert card.data.license is None
    assert card.data.datasets is None
    assert "No evaluation has been reported" in card.text
    assert "Training data: not stated. Licence of the weights: not stated." in card.text
    assert "trust_remote_code" not in card.text


def test_code_of_the_card_works(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    text = create_model_card(generator, str(tmp_path)).text
    scope: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    assert scope["image"].size == (8, 8)


@pytest.mark.parametrize("part", ["image_tokenizer", "prior"])
def test_cards_of_the_parts_work(generator, tmp_path, part):
    model = getattr(generator, part)
    model.save_pretrained(tmp_path)
    card = create_model_card(model, str(tmp_path))
    assert card.data.pipeline_tag == {"image_tokenizer": "image-feature-extraction", "prior": None}[part]
    assert "| 1 | 4 × 4 | 1 | 16 |" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    if part == "image_tokenizer":
        HQImageProcessor.for_image_size(8, 1).save_pretrained(tmp_path)
        code = "image = __import__('PIL.Image').Image.new('RGB', (20, 30))\n" + code
    scope: dict = {}
    exec(code, scope)
    assert scope["codes"].layout == generator.code_layout


def test_a_vae_claims_no_codes(tmp_path):
    model = SQVAEModel(vae("digits", hidden_size=8))
    model.save_pretrained(tmp_path)
    HQImageProcessor.for_image_size(8, 1).save_pretrained(tmp_path)
    card = create_model_card(model, str(tmp_path))
    assert "continuous latents" in card.text
    assert "codes per image" not in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    scope = {"image": Image.new("RGB", (20, 30))}
    exec(code, scope)
    assert scope["image"].size == (8, 8)


def test_the_card_of_a_tokenizer_of_label_maps(tmp_path):
    model = SQVAEModel(sq_vae("celebamask", image_size=16, hidden_size=8, codebook_dim=8, num_classes=3))
    model.save_pretrained(tmp_path)
    card = create_model_card(model, str(tmp_path))
    assert "a discrete tokenizer of label maps" in card.text
    scope = {"label_maps": torch.zeros(2, 16, 16, dtype=torch.long)}
    exec(card.text.split("```python\n")[1].split("```")[0], scope)
    assert scope["label_maps"].shape == (2, 16, 16)


def test_refuses_other_models():
    sizes = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 4}
    with torch.device("meta"):
        model = BertModel(BertConfig(intermediate_size=2, **sizes))
    with pytest.raises(TypeError, match="got BertModel"):
        create_model_card(model)


@pytest.mark.parametrize("value", [np.float32(3.25), torch.tensor(3.25), np.array(3.25), 3.25, "3.25"])
def test_figures_of_other_libraries_are_numbers(value):
    card = create_model_card(
        SQVAEModel(sq_vae("digits", hidden_size=8)), "a/b", metrics={"x|y": value, "on\ntwo lines": [1.5, 2]}
    )
    assert "| x\\|y | 3.25 |\n| on two lines | 1.5, 2 |" in card.text
    assert float(card.data.eval_results[0].metric_value) == 3.25


@pytest.mark.parametrize("metrics", [{"x": None}, {"x": {"y": 1.0}}, {3: 4.0}, [1.0], "x"])
def test_metrics_that_are_none(metrics):
    with pytest.raises(TypeError, match="metrics"):
        create_model_card(SQVAEModel(sq_vae("digits", hidden_size=8)), "a/b", metrics=metrics)


def run_code(card):
    """The names that the code of a card leaves."""
    scope: dict = {}
    exec(card.text.partition("```python\n")[2].partition("```")[0], scope)
    return scope


@pytest.mark.parametrize("num_speakers", [0, 2])
def test_code_of_the_card_of_a_tokenizer_of_sounds_works(tmp_path, monkeypatch, num_speakers):
    monkeypatch.chdir(tmp_path)
    fields = {"hidden_size": 4, "codebook_dim": 4, "codebook_size": 8, "num_speakers": num_speakers}
    model = SQVAEModel(sq_vae("fsdd", **fields)).eval()
    model.save_pretrained("model")
    HQFeatureExtractor(sampling_rate=8000, pad_to_multiple_of=4).save_pretrained("model")
    (tmp_path / "sound.wav").write_bytes(encode_wav(0.1 * np.sin(np.arange(4000)), 8000))
    card = create_model_card(model, "model")
    assert card.data.pipeline_tag is None
    assert "20 × 16" in card.text
    scope = run_code(card)
    assert scope["reconstruction"].shape == (1, 1, 80, 28)
    assert scope["waveforms"][0].shape == (25 * 160,)


@pytest.mark.parametrize(
    ("classes", "call"),
    [
        ({"num_classes": 2, "id2label": {0: "no", 1: "yes"}}, 'generate("no", speakers="ann", seed=0)'),
        ({}, 'generate(speakers="ann", seed=0)'),
    ],
)
def test_code_of_the_card_of_a_generator_that_asks_for_a_speaker_works(tmp_path, monkeypatch, classes, call):
    monkeypatch.chdir(tmp_path)
    fields = {"hidden_size": 8, "codebook_dim": 4, "codebook_size": 8, "num_speakers": 2, "recurrent_size": 6}
    tokenizer = SQVAEModel(sq_vae("speech", image_size=[1, 16], num_channels=16, **fields)).eval()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    layout, speakers = tokenizer.code_layout().to_dict(), {"num_speakers": 2, "speaker_names": ["ann", "bob"]}
    prior = RQPriorModel(RQPriorConfig(code_layout=layout, **classes, **speakers, **size)).eval()
    generator = HQGeneratorModel.from_sub_models(tokenizer, prior)
    generator.save_pretrained("model")
    front_end = HQFeatureExtractor(16, 8000, 80, 200, mean_db=-40.0, std_db=20.0, grid_dims=1, pad_to_multiple_of=2)
    front_end.save_pretrained("model")
    card = create_model_card(generator, "model")
    assert call in card.text
    assert "## Speakers\n\n0: ann, 1: bob.\n" in card.text
    assert "| sound tokenizer | `SQVAEModel` |" in card.text
    assert "may reproduce single training sounds." in card.text
    assert run_code(card)["sound"]["sampling_rate"] == 8000
    # A prior does not know what its codes are of.
    assert "image" not in create_model_card(prior, "prior").text.partition("## Codes")[2]
