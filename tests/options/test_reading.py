from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal

import pytest

from hq_tokenizers.cli.commands import COMMANDS
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.reading import (
    convert_option,
    describe_options,
    load_options,
    options_from_dict,
    options_to_dict,
    read_values,
)
from hq_tokenizers.options.training import LoopConfig, PriorTrainingConfig, TokenizerTrainingConfig


@dataclass(kw_only=True)
class Inner:
    size: Annotated[int | list[int] | None, "a size"] = None
    name: Annotated[str, "a name"] = "x"


@dataclass(kw_only=True)
class Outer:
    rate: Annotated[float, "a rate"] = 0.5
    flag: Annotated[bool, "a flag"] = False
    kind: Annotated[Literal["a", "b"], "a kind"] = "a"
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=lambda: Inner(size=3, name="z"))
    free: Annotated[dict[str, Any], "anything"] = field(default_factory=dict)


def _load(tmp_path, yaml, *overrides):
    path = tmp_path / "config.yaml"
    path.write_text(yaml)
    return load_options(Outer, path, overrides)


def test_defaults_then_file_then_overrides(tmp_path):
    loaded = _load(
        tmp_path,
        "rate: 1e-3\ninner: {size: [4, 8], name: 7}\nfree: {a: 1}\n",
        *("--flag", "true", "--inner.name=y", "--free.b.c", "-2"),
    )
    assert loaded == Outer(rate=1e-3, flag=True, inner=Inner(size=[4, 8], name="y"), free={"a": 1, "b": {"c": -2}})


def test_a_section_given_in_part_keeps_its_owners_defaults(tmp_path):
    loaded = _load(tmp_path, "inner: {size: 1}\nother: {size: 5}\n")
    assert loaded == Outer(inner=Inner(size=1, name="x"), other=Inner(size=5, name="z"))
    assert load_options(Outer, None, ["--other.name", "w"]).other == Inner(size=3, name="w")
    assert {name: default for name, default, _ in describe_options(Outer)} == {
        **{"rate": "0.5", "flag": "false", "kind": "a", "inner.size": "null", "inner.name": "x"},
        **{"other.size": "3", "other.name": "z", "free": "{}"},
    }


def test_dashes_and_empty_files(tmp_path):
    assert _load(tmp_path, "", "--rate", "2") == Outer(rate=2.0)
    assert load_options(LoopConfig, None, ["--max-steps", "3"]).max_steps == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--rat", "1"], "Unknown option 'rat'. Did you mean rate"),
        (["--inner.sise", "1"], r"Unknown option 'inner.sise'. Did you mean inner.size\? Accepted"),
        (["--rate", "fast"], "rate must be a number, got 'fast'"),
        (["--rate", "true"], "rate must be a number, got True"),
        (["--flag", "1"], "flag must be true or false, got 1"),
        (["--kind", "c"], "kind must be one of 'a', 'b', got 'c'"),
        (["--inner.size", "1.5"], "inner.size must be an integer or a list of them or null, got 1.5"),
        (["--inner", "3"], r"inner is a section with options of its own \(inner.size, inner.name\), got 3"),
        (["--size", "3"], r"Unknown option 'size'. Did you mean inner.size or other.size\? What is meant for free"),
        (["--anything", "3"], r"Unknown option 'anything'. What is meant for free is written free.anything. Accepted"),
        (["--rated", "3"], r"Unknown option 'rated'. Did you mean rate\? Accepted"),
        (
            ["--flight", "3"],
            r"Unknown option 'flight'. Did you mean flag\? What is meant for free is written free.flight.",
        ),
        (["--rate"], "--rate needs a value"),
        (["--flag", "--rate", "1"], "--flag needs a value"),
        (["rate", "1"], "Expected an option such as --seed 1, got 'rate'"),
        (["--free", "[1"], "is not a YAML value"),
        (["--rate.x", "1", "--rate.x.y", "2"], "holds the value 1, not a section"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_options(Outer, None, overrides)


@pytest.mark.parametrize(
    ("cls", "word", "message"),
    [
        (TokenizerTrainingConfig, "preset", "What is meant for model is written model.preset. Accepted"),
        (
            TokenizerTrainingConfig,
            "network",
            r"mean perceptual.network\? What is meant for model is written model.network",
        ),
        (TokenizerTrainingConfig, "path", r"Did you mean data.path\?"),
        (TokenizerTrainingConfig, "label_map_clases", r"Did you mean data.label_map_classes\? Accepted"),
        (TokenizerTrainingConfig, "sound", r"Did you mean data.sound\?"),
        (PriorTrainingConfig, "temperature", "model is written model.temperature. .*generation.temperature"),
        (PriorTrainingConfig, "batch", r"Did you mean batch_size.* What is meant for model"),
    ],
)
def test_an_option_without_its_section_is_told_where_it_is(cls, word, message):
    with pytest.raises(ValueError, match=rf"Unknown option '{word}'. .*{message}"):
        load_options(cls, None, [f"--{word}", "1"])


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load_options(Outer, tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="must hold options"):
        _load(tmp_path, "- 1\n")


@pytest.mark.parametrize("cls", [TokenizerTrainingConfig, PriorTrainingConfig])
def test_round_trip_and_every_option_explained(cls):
    options = cls()
    assert options_from_dict(cls, options_to_dict(options)) == options
    described = list(describe_options(cls))
    assert all(meaning and default for _, default, meaning in described)
    assert len({name for name, _, _ in described}) == len(described)
    # Every described name can be set to its described default.
    words = [word for name, default, _ in described for word in (f"--{name}", default)]
    assert load_options(cls, None, words) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1"),
        ({"batch_size": 30, "gradient_accumulation": 4}, "multiple of gradient_accumulation"),
        ({"warmup_steps": 5}, "plateau has no warm-up"),
        ({"ema_decay": 1.0}, "ema_decay must be a number above 0 and below 1"),
        ({"adam_betas": [0.9]}, "adam_betas must be a list .*of length 2"),
        ({"epochs": 0.0}, "epochs must be a number above 0"),
    ],
)
def test_loop_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**options)


@pytest.mark.parametrize("word", ["0010", "1e3", "null", "[a", "a #b", "yes"])
def test_texts_are_taken_as_written(word):
    assert load_options(LoopConfig, None, ["--output_dir", word]).output_dir == word
    assert load_options(Outer, None, [f"--inner.name={word}"]).inner.name == word


@pytest.mark.parametrize(
    ("word", "labels"),
    [
        *((name, name) for name in ("no", "yes", "off", "true", "0010", "1e3", "2020-01-01", "cat")),
        ("[no, null, 007, '3', 12, -1]", ["no", "null", "007", "3", 12, -1]),
        ("'null'", "null"),
        ("null", None),
        ("5", 5),
    ],
)
def test_class_labels_are_names_unless_they_are_numbers(word, labels):
    assert load_options(GenerateConfig, None, ["--class_labels", word]).class_labels == labels


def choices(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every option that is one of several words, with each of them."""
    for name, hint in typing.get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from choices(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is Literal:
            yield from ((f"{prefix}{name}", word) for word in typing.get_args(hint) if isinstance(word, str))


@pytest.mark.parametrize(
    ("cls", "name", "word"),
    [(command.options, *choice) for command in COMMANDS.values() for choice in choices(command.options)],
)
def test_every_choice_can_be_written_as_its_word(tmp_path, cls, name, word):
    """Also those that YAML takes for truth values."""
    *sections, field_name = name.split(".")
    text = f"{field_name}: {word}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    (tmp_path / "options.yaml").write_text(text)
    from_words, from_file = read_values(cls, None, [f"--{name}", word]), read_values(cls, tmp_path / "options.yaml")
    for values in (from_words, from_file):
        for section in sections:
            values = values[section]
        assert convert_option(type_hint(cls, name), values[field_name], name) == word


def type_hint(cls: type, name: str) -> Any:
    for part in name.split("."):
        cls = typing.get_type_hints(cls)[part]
    return cls


def test_what_a_free_section_holds_is_yaml(tmp_path):
    options = _load(tmp_path, "", "--free", "{flag: true, number: 1.5, nothing: null, name: cat}")
    assert options.free == {"flag": True, "number": 1.5, "nothing": None, "name": "cat"}


def test_texts_that_may_be_null():
    load = partial(load_options, PriorTrainingConfig, None)
    assert load(["--tokenizer", "0010"]).tokenizer == "0010"
    assert load(["--tokenizer", "null"]).tokenizer is None


def test_the_preset_has_a_default_that_a_model_type_replaces(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text("model: {preset: sq_vae, network: digits}\n")

    def model(cls, source, *words):
        return load_options(cls, source, words).model

    codes = ("--model.codebook_size", "32")
    assert model(TokenizerTrainingConfig, None) == {"preset": "sq_vae"}
    assert model(TokenizerTrainingConfig, None, *codes) == {"preset": "sq_vae", "codebook_size": 32}
    assert model(TokenizerTrainingConfig, None, "--model.model_type", "hq_vae") == {"model_type": "hq_vae"}
    assert model(TokenizerTrainingConfig, None, "--model.preset", "vq_vae") == {"preset": "vq_vae"}
    assert model(TokenizerTrainingConfig, path, *codes) == {
        "preset": "sq_vae",
        "network": "digits",
        "codebook_size": 32,
    }
    assert model(PriorTrainingConfig, None, "--model.hidden_size", "64") == {
        "model_type": "rq_prior",
        "hidden_size": 64,
    }
