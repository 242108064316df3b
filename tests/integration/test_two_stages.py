"""Both stages on a handful of real digits, through the commands' own functions: a hierarchy all the way to images."""

from __future__ import annotations

import torch
from transformers import AutoModel, pipeline

from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig, TokenizerTrainingConfig
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.prior import train_prior_and_save_generator
from hq_tokenizers.training.tokenizer import train_tokenizer

DATA = {"train_split": "train[:96]", "validation_split": "test[:32]"}


def test_a_hierarchy_learns_in_both_stages_and_becomes_a_pipeline(tmp_path):
    tokenizer_dir, codes_dir, prior_dir = (str(tmp_path / name) for name in ("tokenizer", "codes", "prior"))
    small = {"hidden_size": 16, "codebook_dim": 4, "codebook_size": 16, "initial_log_variance": 0.0}
    report = train_tokenizer(
        TokenizerTrainingConfig(
            output_dir=tokenizer_dir,
            data=DataConfig(**DATA),
            model={"preset": "sq_vae_2", "network": "digits", "progressive": True, **small},
            epochs=20,
            validation_steps=30,
            learning_rate=5e-3,
        )
    )
    assert report["code_layout"] == "2×2×1 of 16 + 4×4×1 of 16"
    # The variance of these digits is 0.141 per pixel: the error of their mean.
    assert report["test"]["mse"] < 0.08

    encode_images(EncodeConfig(tokenizer=tokenizer_dir, output_dir=codes_dir, data=DataConfig(**DATA)))
    train_prior_and_save_generator(
        PriorTrainingConfig(
            output_dir=prior_dir,
            codes=codes_dir,
            model={"model_type": "rq_prior", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
            batch_size=16,
            max_steps=30,
            validation_steps=30,
            warmup_steps=5,
            samples=4,
        )
    )
    generate = pipeline("hq-generation", model=f"{prior_dir}/generator")
    images = generate(["3", 8], num_images=2, seed=0)
    assert [[image.size for image in row] for row in images] == [[(8, 8)] * 2] * 2
    codes = generate("3", seed=0, output_type="codes")
    decoded = AutoModel.from_pretrained(tokenizer_dir).eval().decode(codes)
    torch.testing.assert_close(generate("3", seed=0, output_type="pt"), decoded[0].clamp(0, 1))
