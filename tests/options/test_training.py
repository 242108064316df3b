from __future__ import annotations

import math
from typing import Any

import pytest

from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.reading import load_options
from hq_tokenizers.options.training import (
    AdversarialConfig,
    PerceptualConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
)

# Of every option that is a number in a range: the outermost values that are accepted, and values beyond.
LIMITS: list[tuple[type, str, list[Any], list[Any]]] = [
    (TokenizerTrainingConfig, "max_grad_norm", [None, 1e-9, 1e9], [-1, 0, 1e10, math.nan, math.inf]),
    (TokenizerTrainingConfig, "plateau_factor", [1e-9, 0.999], [-0.5, 0, 1, 2, math.nan]),
    (TokenizerTrainingConfig, "plateau_patience", [0], [-1, 2**31, 1.5]),
    (TokenizerTrainingConfig, "weight_decay", [0, 1e3], [-0.1, 1e4, math.inf]),
    (TokenizerTrainingConfig, "learning_rate", [1e-12, 1e3], [-1e-3, 0, 1e4, math.nan]),
    (TokenizerTrainingConfig, "ema_decay", [None, 0.5], [0, 1, -0.1, 1.5]),
    (TokenizerTrainingConfig, "adam_betas", [[0, 0.999]], [[0.9, 1], [-0.1, 0.9], [0.9], [0.9, 0.9, 0.9]]),
    (TokenizerTrainingConfig, "epochs", [0.5, 1e6], [0, -1, 1e308, math.inf]),
    (TokenizerTrainingConfig, "max_steps", [None, 1], [0, -5, 2**31]),
    (TokenizerTrainingConfig, "warmup_steps", [0], [-1, 2**31]),
    (TokenizerTrainingConfig, "batch_size", [1], [0, -1, 2.5]),
    (TokenizerTrainingConfig, "seed", [0, 2**31 - 1], [-1, 2**31, 1.5, True]),
    (TokenizerTrainingConfig, "log_steps", [1], [0, -1]),
    (TokenizerTrainingConfig, "keep_checkpoints", [1], [0, -1]),
    (PriorTrainingConfig, "samples", [0, 1_000_000], [-1, 10**12, 2.5]),
    (PriorTrainingConfig, "weight_decay", [0, 1e3], [-0.1, 1e4]),
    (DataConfig, "num_workers", [0, 1024], [-1, 1025, 10**9, 1.5]),
]


@pytest.mark.parametrize(("cls", "name", "accepted", "refused"), LIMITS)
def test_numbers_out_of_range_are_refused_by_name(cls, name, accepted, refused):
    for value in accepted:
        assert getattr(cls(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"^(data\.)?{name} must be .*, got "):
            cls(**{name: value})


@pytest.mark.parametrize("word", ["max_grad_norm=-1", "plateau_factor=2", "seed=-3", "data.num_workers=-1"])
def test_so_are_those_of_the_command_line(word):
    name, _, value = word.partition("=")
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        load_options(TokenizerTrainingConfig, None, [f"--{word}"])


ON = {"perceptual": {"network": "squeeze"}, "adversarial": {"start_step": 100}}
SECTIONS = {"perceptual": PerceptualConfig, "adversarial": AdversarialConfig}


@pytest.mark.parametrize(
    ("section", "name", "accepted", "refused"),
    [
        ("perceptual", "weight", [1e-9, 1e6], [0, -1, 1e7, math.nan]),
        ("perceptual", "start_step", [0, 7], [-1, 1.5]),
        ("perceptual", "network", ["alex", "vgg"], ["resnet"]),
        ("adversarial", "start_step", [0, 7], [-1, 1.5]),
        ("adversarial", "discriminator_warmup_steps", [0, 7], [-1, 1.5]),
        ("adversarial", "weight", [1e-9, 1e6], [0, -1, 1e7, math.nan]),
        ("adversarial", "max_adaptive_weight", [1e-9, 1e9], [0, -1, 1e10]),
        ("adversarial", "num_layers", [1, 8], [0, 9, 1.5]),
        ("adversarial", "norm", ["spectral", "batch"], ["none"]),
        ("adversarial", "learning_rate_factor", [1e-9, 4], [0, -1]),
        ("adversarial", "adam_betas", [[0.0, 0.99]], [[0.5], [0.5, 1.0]]),
    ],
)
def test_the_losses_of_images_say_what_they_accept(section, name, accepted, refused):
    build = SECTIONS[section]
    for value in accepted:
        assert getattr(build(**{**ON[section], name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{section}\.{name} must be .*, got "):
            build(**{**ON[section], name: value})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--perceptual.weight", "0.1"],
            r"perceptual.weight is set, but perceptual.network is null: set both, or none",
        ),
        (
            ["--adversarial.adam_betas", "[0, 0.9]"],
            r"adversarial.adam_betas is set, but adversarial.start_step is null",
        ),
        (["--perceptual.network", "vgg"], r"schedule plateau and keep_best .* perceptual.network: choose schedule"),
        (
            ["--adversarial.start_step", "9", "--schedule", "cosine", "--keep_best", "true"],
            r"schedule plateau and keep_best .* adversarial.start_step: choose schedule",
        ),
        (
            ["--perceptual.network", "vgg", "--schedule", "cosine", "--data.label_map_classes", "12"],
            r"perceptual.network is for images, but data.label_map_classes says",
        ),
        (
            ["--adversarial.start_step", "9", "--schedule", "cosine", "--compile", "true"],
            r"compile and adversarial.start_step do not go together",
        ),
    ],
)
def test_what_does_not_go_with_the_losses_of_images(words, message):
    with pytest.raises(ValueError, match=message):
        load_options(TokenizerTrainingConfig, None, words)


def test_sections_keep_their_other_defaults():
    words = ["--schedule", "cosine", "--adversarial.start_step", "9", "--perceptual.network", "vgg", "--trackers", "[]"]
    options = load_options(TokenizerTrainingConfig, None, words)
    assert options.adversarial == AdversarialConfig(start_step=9)
    assert options.perceptual == PerceptualConfig(network="vgg")
    assert options.trackers == []
