from __future__ import annotations

import pytest

from hq_tokenizers import (
    HQGeneratorModel,
    HQVAEConfig,
    HQVAEModel,
    RQPriorConfig,
    RQPriorModel,
    SQVAEConfig,
    SQVAEModel,
)
from hq_tokenizers.app.generator_pipeline import load_generator_pipeline, shipped_generator

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(tokenizer, folder):
    prior = RQPriorModel(RQPriorConfig(code_layout=tokenizer.code_layout().to_dict(), **SMALL))
    HQGeneratorModel.from_sub_models(tokenizer.eval(), prior).save_pretrained(folder)
    return str(folder)


def test_loads_what_was_saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = load_generator_pipeline(str(tmp_path))
    assert loaded("cat", seed=1).tobytes() == pipe("cat", seed=1).tobytes()
    assert loaded.image_processor.to_dict() == pipe.image_processor.to_dict()
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_generator_pipeline(str(tmp_path))("cat", seed=1).tobytes() == pipe("cat", seed=1).tobytes()


def test_the_one_that_comes_with_the_package():
    assert load_generator_pipeline(shipped_generator())("sneaker", seed=0).size == (28, 28)


def test_label_maps_are_refused(tmp_path):
    settings = {"image_size": 8, "hidden_size": 8, "num_downsampling": 1, "codebook_size": 4, "codebook_dim": 2}
    tokenizer = SQVAEModel(SQVAEConfig(likelihood="vmf", num_classes=3, **settings))
    with pytest.raises(ValueError, match=r"makes label maps: use `hq-tokenizers generate`, or its method generate"):
        load_generator_pipeline(saved(tokenizer, tmp_path))


def test_sounds_are_refused(tmp_path):
    settings = {"modality": "sound", "image_size": [8, 16], "num_channels": 1, "hidden_size": 8, "codebook_dim": 2}
    tokenizer = HQVAEModel(HQVAEConfig(code_groups=["stride 4: 4"], **settings))
    with pytest.raises(ValueError, match=r"the app is for images, this generator makes sounds: .*audio"):
        load_generator_pipeline(saved(tokenizer, tmp_path))


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="neither the folder of a generator"):
        load_generator_pipeline(str(tmp_path / "nowhere"))
