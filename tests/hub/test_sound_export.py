"""Generators of sound leave with their front end: exported with their code, and uploaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from hq_tokenizers import HQFeatureExtractor, HQGeneratorModel, RQPriorConfig, RQPriorModel, SQVAEModel
from hq_tokenizers.hub import create_model_card, export_self_contained, push_to_hub
from hq_tokenizers.models.presets import sq_vae

WITHOUT_THE_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hq_tokenizers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from transformers import pipeline

speak = pipeline("hq-audio-generation", model=sys.argv[1], trust_remote_code=True)
assert type(speak.feature_extractor).__module__.startswith("transformers_modules.")
sound = speak("yes", speakers="bob", seed=0)
assert sound["sampling_rate"] == 8000
print(speak.convert_voice(sound, "ann", output_type="codes").flatten().tolist())
print(speak("yes", speakers="bob", seed=0, output_type="codes").flatten().tolist())
"""


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    fields = {"hidden_size": 8, "codebook_dim": 4, "codebook_size": 8, "num_speakers": 2, "recurrent_size": 6}
    tokenizer = SQVAEModel(sq_vae("speech", image_size=[1, 16], num_channels=16, **fields)).eval()
    layout = tokenizer.code_layout([1, 24])
    prior = RQPriorConfig(
        code_layout=layout.to_dict(),
        num_classes=2,
        id2label={0: "no", 1: "yes"},
        num_speakers=2,
        speaker_names=["ann", "bob"],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    return HQGeneratorModel.from_sub_models(tokenizer, RQPriorModel(prior).eval())


@pytest.fixture(scope="module")
def front_end():
    return HQFeatureExtractor(16, 8000, 80, 200, mean_db=-40.0, std_db=20.0, grid_dims=1, pad_to_multiple_of=2)


def test_an_export_loads_where_the_package_is_absent(generator, front_end, tmp_path) -> None:
    exported = export_self_contained(generator, tmp_path / "digits", feature_extractor=front_end)
    saved = json.loads((exported / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_hq.HQFeatureExtractor"}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(exported)],
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    expected = generator.generate("yes", speakers="bob", generator=0).codes.flatten().tolist()
    assert result.stdout.splitlines()[-1] == str(expected)


def test_a_front_end_of_another_model_is_refused(generator, front_end, tmp_path) -> None:
    other = HQFeatureExtractor(16, 8000, 80, 200, grid_dims=2)
    for model, given in ((generator, other), (generator.prior, front_end)):
        with pytest.raises(TypeError, match="is not the front end of this"):
            export_self_contained(model, tmp_path, feature_extractor=given)


def test_a_generator_without_its_front_end_is_not_shared(generator, tmp_path) -> None:
    for share in (lambda: export_self_contained(generator, tmp_path / "export"), lambda: push_to_hub(generator, "a/b")):
        with pytest.raises(ValueError, match="does not know its front end: give feature_extractor="):
            share()
    assert not (tmp_path / "export").exists()
    export_self_contained(generator.image_tokenizer, tmp_path / "tokenizer")


def test_the_card_says_how_to_hear_it(generator) -> None:
    card = create_model_card(generator, "someone/digits")
    assert 'pipeline("hq-audio-generation", model="someone/digits")' in card.text
    assert "codes per sound" in card.text
    # The Hub has a task of this kind, but its pipeline takes texts.
    assert card.data.pipeline_tag is None
    assert "hq-audio-generation" in card.data.tags
