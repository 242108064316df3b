from __future__ import annotations

import math
from typing import Any

import pytest

from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.reading import load_options
from hq_tokenizers.options.training import PriorTrainingConfig, TokenizerTrainingConfig

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
