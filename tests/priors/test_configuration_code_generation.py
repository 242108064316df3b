from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import GenerationConfig

from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.reading import load_options
from hq_tokenizers.priors import CodeGenerationConfig
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.priors.sampling import LevelSampling


def test_round_trip_through_the_file(tmp_path: Path) -> None:
    config = CodeGenerationConfig(
        temperature=(0.9, 1.1),
        top_k=[0, 50],
        top_p=0.95,
        guidance_scale=3,
        guidance_schedule="interval",
        num_candidates=4,
        num_steps=[8, 2],
        masking_schedule="square",
        decoding_order="random",
        choice_temperature=2.0,
        num_draft_steps=[4, 8],
        num_revise_steps=3,
        num_revisions=0,
    )
    config.save_pretrained(tmp_path)
    assert CodeGenerationConfig.from_pretrained(tmp_path) == config
    # transformers loads the file into its own class first.
    plain = GenerationConfig.from_pretrained(tmp_path)
    assert CodeGenerationConfig.from_generation_config(plain) == config
    assert config.temperature == [0.9, 1.1]


def test_settings_of_each_level() -> None:
    config = CodeGenerationConfig(temperature=[0.5, 2.0], top_k=7, min_p=[0, 0.1])
    assert config.level_sampling(2) == (LevelSampling(0.5, 7, 1.0, 0), LevelSampling(2.0, 7, 1.0, 0.1))
    assert CodeGenerationConfig().level_sampling(3) == (LevelSampling(),) * 3
    with pytest.raises(ValueError, match=r"temperature lists 2 values .* 3 levels: give one number per level"):
        config.level_sampling(3)


def test_defaults_are_not_shared() -> None:
    CodeGenerationConfig().guidance_interval[0] = 0.9
    assert CodeGenerationConfig().guidance_interval == [0.0, 1.0]


def test_overrides_leave_the_original_alone() -> None:
    config = CodeGenerationConfig(top_k=5, guidance_interval=[0.2, 0.8])
    changed = config.with_overrides(top_k=9, temperature=None)
    assert (changed.top_k, changed.temperature, changed.guidance_interval) == (9, 1.0, [0.2, 0.8])
    assert config.top_k == 5
    with pytest.raises(ValueError, match="top_p must be"):
        config.with_overrides(top_p=2)


def test_settings_of_the_other_kind_of_prior_are_refused() -> None:
    shared = CodeGenerationConfig(temperature=0.5, guidance_scale=2.0, num_candidates=3)
    for model_type in ("rq_prior", "masked_prior", "contextual_prior"):
        shared.check_model(model_type)
    for name, value in {"num_steps": 8, "masking_schedule": "linear", "decoding_order": "random"}.items():
        CodeGenerationConfig(**{name: value}).check_model("masked_prior")
        with pytest.raises(
            ValueError, match=f"{name}={value!r} is a setting of masked_prior models, this is a rq_prior"
        ):
            CodeGenerationConfig(**{name: value}).check_model("rq_prior")
    with pytest.raises(ValueError, match="cache_implementation='dynamic' is a setting of rq_prior models"):
        CodeGenerationConfig(cache_implementation="dynamic").check_model("masked_prior")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, r"temperature must be a number from 0 .*got -1"),
        ({"temperature": [1.0, -0.5]}, r"temperature must be .*\[1.0, -0.5\]"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be .*'hot'"),
        ({"top_p": 0}, r"top_p must be a number above 0 and at most 1 .*got 0"),
        ({"top_p": 1.5}, r"top_p .*1.5"),
        ({"top_k": -3}, "top_k must be an integer from 0 .*got -3"),
        ({"top_k": 2.5}, "top_k .*2.5"),
        ({"top_k": True}, "top_k .*True"),
        ({"min_p": 1.0}, r"min_p must be a number of at least 0 and below 1"),
        ({"guidance_scale": -1}, "guidance_scale must be .*got -1"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule must be one of 'constant', .*got 'cosine'"),
        ({"guidance_power": 0}, "guidance_power must be a number above 0"),
        ({"guidance_interval": [0.8, 0.2]}, r"guidance_interval must be \[first, last\]"),
        ({"guidance_interval": 0.5}, "guidance_interval must be"),
        ({"cache_implementation": "quantized"}, "cache_implementation must be one of 'static', 'dynamic'"),
        ({"num_candidates": 0}, r"num_candidates must be an integer from 1 to 1,000,000, got 0"),
        ({"num_candidates": 1.5}, "num_candidates .*1.5"),
        ({"num_steps": 0}, "num_steps must be an integer from 1 to .* or a list of them .*got 0"),
        ({"num_steps": [8, -1]}, r"num_steps .*\[8, -1\]"),
        ({"masking_schedule": "sine"}, "masking_schedule must be one of 'cosine', 'linear', .*'sine'"),
        ({"decoding_order": "raster"}, "decoding_order must be one of 'confidence', 'random', got 'raster'"),
        ({"choice_temperature": -0.1}, "choice_temperature must be a number from 0"),
        ({"num_beams": 4}, "num_beams=4 means nothing to a prior over codes; accepted settings are temperature"),
        ({"temprature": 1.0}, "temprature=1.0 means nothing"),
        ({"do_sample": False}, "use temperature=0"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeGenerationConfig(**settings)


def test_a_setting_spoilt_later_cannot_be_saved(tmp_path: Path) -> None:
    config = CodeGenerationConfig()
    config.top_p = 7
    with pytest.raises(ValueError, match="top_p must be"):
        config.save_pretrained(tmp_path)


def test_numbers_that_yaml_reads_as_texts(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("generation: {temperature: 1e-1, top_k: [1e1, 3], top_p: 9e-1, guidance_schedule: linear}\n")
    words = ["--generation.choice_temperature", "1e-2", "--generation.num_steps", "1e1", "--generation.seed", "1e1"]
    options = load_options(GenerateConfig, path, words)
    assert options.generation["temperature"] == "1e-1", "or else this test tests nothing"
    settings = settings_from_options(options.generation)
    assert settings == {
        **{"temperature": 0.1, "top_k": [10, 3], "top_p": 0.9, "guidance_schedule": "linear"},
        **{"choice_temperature": 0.01, "num_steps": 10, "seed": "1e1"},
    }
    # In Python a text is no number.
    with pytest.raises(ValueError, match=r"temperature must be a number .*, got '1e-1'"):
        CodeGenerationConfig(temperature="1e-1")


def test_numbers_of_numpy_and_whole_floats_are_saved_as_numbers_of_python(tmp_path: Path) -> None:
    config = CodeGenerationConfig(
        temperature=np.float32(0.5), top_k=5.0, top_p=np.array([0.5, 1]), num_steps=np.int64(3)
    )
    changed = config.with_overrides(temperature=[np.float64(0.25), 1], num_candidates=np.int8(2))
    expected = [
        CodeGenerationConfig(temperature=0.5, top_k=5, top_p=[0.5, 1.0], num_steps=3),
        CodeGenerationConfig(temperature=[0.25, 1], top_k=5, top_p=[0.5, 1.0], num_steps=3, num_candidates=2),
    ]
    for built, plain in zip((config, changed), expected, strict=True):
        assert built.to_json_string() == plain.to_json_string()
        built.save_pretrained(tmp_path)
        read = CodeGenerationConfig.from_generation_config(GenerationConfig.from_pretrained(tmp_path))
        assert read.level_sampling(2) == plain.level_sampling(2)
        assert repr(read.top_k) == "5"
    with pytest.raises(ValueError, match=r"top_k must be an integer .*, got 5.5"):
        CodeGenerationConfig(top_k=5.5)
