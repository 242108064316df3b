"""Values against annotations, and every field of every configuration and option class against strange values."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, PreTrainedConfig

from hq_tokenizers import HQGeneratorConfig, RQPriorConfig
from hq_tokenizers.checks import (
    Length,
    Range,
    accepts,
    check_fields,
    check_value,
    class_names,
    converted,
    describe,
    did_you_mean,
    field_hints,
    image_height_width,
)
from hq_tokenizers.options.conversion import ConvertConfig
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.reading import options_from_dict, options_to_dict
from hq_tokenizers.priors import CodeGenerationConfig, MaskedCodeScheduler

Small = Annotated[int, Range(1, 9)]


class TestValues:
    @pytest.mark.parametrize(
        ("hint", "right", "wrong"),
        [
            (int, [0, -3, 10**30], [True, 1.0, "1", None, math.nan]),
            (float, [0, -3, 1.5], [True, "1", None, math.nan, math.inf, -math.inf]),
            (bool, [True, False], [0, 1, "yes", None]),
            (str, ["", "a"], [1, None, b"a"]),
            (Literal["a", 1], ["a", 1], ["b", True, 1.0, None]),
            (int | None, [1, None], [True, "1"]),
            (Small, [1, 9], [0, 10, -1, 2.0, True]),
            (Annotated[float | int, Range(0, 1, above=True, below=True)], [0.5, 1e-9], [0, 1, 1.0, math.nan]),
            (list[Small], [[], [1, 2]], [(1, 2), [0], [True], 1]),
            (Annotated[list[Small] | tuple[Small, ...], Length(2, 2)], [[1, 2], (1, 2)], [[1], (1, 2, 3), [1, 0]]),
            (tuple[int, str], [(1, "a")], [(1, 2), (1,), [1, "a"]]),
            (dict[str, Small], [{}, {"a": 1}], [{"a": 0}, {1: 1}, []]),
            (dict, [{}, {1: 2}], [None, []]),
            (Any, [None, object()], []),
        ],
    )
    def test_types_and_ranges(self, hint: Any, right: list[Any], wrong: list[Any]) -> None:
        assert [value for value in right if not accepts(hint, value)] == []
        assert [value for value in wrong if accepts(hint, value)] == []
        for value in wrong:
            if accepts(hint, converted(hint, value)):
                continue
            with pytest.raises(ValueError, match=r"^field must be .*, got "):
                check_value("field", value, hint)

    @pytest.mark.parametrize(
        ("hint", "value", "plain"),
        [
            (int, np.int64(5), 5),
            (int, np.uint8(5), 5),
            (int, 5.0, 5),
            (int, np.float32(5), 5),
            (float | int, np.float32(0.5), 0.5),
            (float | int, np.int16(2), 2),
            (float | int, 5.0, 5.0),
            (float, np.array(0.25), 0.25),
            (bool, np.bool_(True), True),
            (str, np.str_("a"), "a"),
            (Small | list[Small], np.array([1, 2]), [1, 2]),
            (Small | list[Small], [np.int64(1), 2.0], [1, 2]),
            (tuple[Small, ...], (np.int64(1), 2.0), (1, 2)),
            (dict, {"a": [np.int64(1), {"b": np.float64(0.5)}]}, {"a": [1, {"b": 0.5}]}),
            (Small | None, None, None),
        ],
    )
    def test_what_is_meant_becomes_plain_python(self, hint: Any, value: Any, plain: Any) -> None:
        found = check_value("field", value, hint)
        assert repr(found) == repr(plain)  # NumPy's numbers compare equal, but are written otherwise.
        assert json.loads(json.dumps(found)) == json.loads(json.dumps(plain))

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            *((int, value) for value in (5.5, np.float32(5.5), np.bool_(True), "5", math.nan, math.inf, 1e300j)),
            *((float, value) for value in (np.float64("nan"), np.float32("inf"), np.bool_(False), "1e-1")),
            *((bool, value) for value in (np.int64(1), 1.0)),
            (Small, np.int64(10)),
            (Literal["a", 1], 1.0),
            (str, 5),
        ],
    )
    def test_what_is_not_meant_is_refused(self, hint: Any, value: Any) -> None:
        with pytest.raises(ValueError, match=r"^field must be .*, got "):
            check_value("field", value, hint)

    @pytest.mark.parametrize(
        ("hint", "text", "plain"),
        [
            (float, "1e-1", 0.1),
            (int, "1e2", 100),
            (int, "7", 7),
            (str, 7, "7"),
            (float | int | list[float | int], ["1e-1", 2], [0.1, 2]),
            (int | str, "7", "7"),
            (int | None, "x", "x"),
            (int, "1.5", 1.5),
            (bool, "1", "1"),
            (Literal["no", "bf16"], False, "no"),
            (Literal["off", "on"], True, "on"),
            (Literal["bf16", "fp16"], False, False),
            (Literal["no", "bf16"] | bool, False, False),
            (Any, "1e-1", "1e-1"),
        ],
    )
    def test_numbers_in_texts(self, hint: Any, text: Any, plain: Any) -> None:
        assert repr(converted(hint, text, texts=True)) == repr(plain)

    def test_words(self) -> None:
        assert describe(Small) == "an integer from 1 to 9"
        assert describe(Annotated[float | int, Range(0, 1, below=True)]) == "a number of at least 0 and below 1"
        assert describe(Small | list[Small] | None) == "an integer from 1 to 9 or a list of them or null"
        assert describe(Annotated[list[bool], Length(2, 3)]) == "a list (true or false each) of length 2 to 3"
        assert describe(Literal["a", "b"] | None) == "one of 'a', 'b' or null"

    def test_the_nearest_name_is_suggested(self) -> None:
        assert did_you_mean("codebok", ["codebook", "code"]) == "Did you mean codebook?"
        assert did_you_mean("zzz", ["codebook", "code"]) == ""


def test_image_sizes_of_numpy() -> None:
    assert image_height_width(np.int64(8)) == (8, 8)
    assert repr(image_height_width(np.array([8, 16]))) == "(8, 16)"
    with pytest.raises(ValueError, match="image_size must be an integer or"):
        image_height_width(np.float32(8.5))


def test_names_of_classes() -> None:
    for names in ({0: "cat", 1: "dog"}, {"0": "cat", "1": "dog"}, ["cat", "dog"], {np.int64(0): "cat", 1: "dog"}):
        assert class_names(names) == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    "wrong", [3, 1.5, "cat", {0.5: "cat"}, {"first": "cat"}, {None: "cat"}, {0: 1}, {0: ""}, [None]]
)
def test_what_are_no_names_of_classes_is_refused_by_every_configuration(wrong: Any) -> None:
    for build in (class_names, lambda names: RQPriorConfig(num_classes=1, id2label=names)):
        with pytest.raises(ValueError, match="id2label"):
            build(wrong)
    with pytest.raises(ValueError, match="id2label"):
        HQGeneratorConfig(prior_config=RQPriorConfig(num_classes=1), id2label=wrong)


def test_fields_of_bases_are_checked_down_to_a_class() -> None:
    @dataclasses.dataclass
    class Base:
        first: Small = 1

    @dataclasses.dataclass
    class Middle(Base):
        second: Small = 1

    @dataclasses.dataclass
    class Leaf(Middle):
        third: Small = 1

    assert set(field_hints(Leaf, Base)) == {"second", "third"}
    check_fields(Leaf(first=0), below=Base)
    for name in ("first", "second", "third"):
        with pytest.raises(ValueError, match=f"^x.{name} must be an integer from 1 to 9, got 0"):
            check_fields(Leaf(**{name: 0}), prefix="x.")


def _classes_of(*rooms: str) -> list[type]:
    """Configurations of models and dataclasses that are defined in these packages, whatever their names."""
    modules = (
        importlib.import_module(f"hq_tokenizers.{room}.{module.name}")
        for room in rooms
        for module in pkgutil.iter_modules(importlib.import_module(f"hq_tokenizers.{room}").__path__)
    )
    found = [cls for module in modules for cls in vars(module).values() if inspect.isclass(cls)]
    homes = tuple(f"hq_tokenizers.{room}." for room in rooms)
    ours = [cls for cls in dict.fromkeys(found) if cls.__module__.startswith(homes)]
    return [cls for cls in ours if issubclass(cls, PreTrainedConfig) or dataclasses.is_dataclass(cls)]


CONFIGS = tuple(
    cls for cls in _classes_of("models", "priors", "pipelines") if issubclass(cls, PreTrainedConfig) and cls.model_type
)
OPTIONS = tuple(cls for cls in _classes_of("options") if dataclasses.is_dataclass(cls) and dataclasses.fields(cls))
# Needed besides the field that is tried.
GIVEN = {EvaluateConfig: {"tokenizer": "folder"}, ConvertConfig: {"format": "sqvae", "checkpoint": "file"}}
FIELDS = [
    *((cls, name) for cls in CONFIGS for name in field_hints(cls, PreTrainedConfig)),
    *((cls, name) for cls in OPTIONS for name in field_hints(cls)),
    *((CodeGenerationConfig, name) for name in CodeGenerationConfig.setting_names()),
    *((MaskedCodeScheduler, name) for name in MaskedCodeScheduler().config if not name.startswith("_")),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 7, 10**9, 10**12, -(10**12), 2**63, 10**400]),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.5, 16.0, 16.5, 1e308, -1e308, 1e-320]),
    st.sampled_from([np.float32(0.5), np.int64(16), np.uint8(1), np.bool_(True), np.array([8, 8]), np.float64("nan")]),
    st.sampled_from(["", " ", "16", "1e-3", "no", "gaussian", "vq", "stride 4: 8", "\0", "ü" * 5000, b"16", 1j]),
)
STRANGE = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.lists(SCALARS, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["", "groups", "model_type", "height"]), SCALARS, max_size=2),
)


def _build(cls: type, **fields: Any) -> Any:
    """The object, or the error that refuses it."""
    try:
        return cls(**GIVEN.get(cls, {}) | fields)
    except ValueError as error:
        return error


def _works(built: Any) -> None:
    """What was accepted can be saved, read back, and (a model) built."""
    if isinstance(built, PreTrainedConfig):
        text = built.to_json_string(use_diff=False)
        assert type(built).from_dict(json.loads(text)).to_json_string(use_diff=False) == text
        with torch.device("meta"):
            AutoModel.from_config(built)
    elif dataclasses.is_dataclass(built):
        assert options_from_dict(type(built), options_to_dict(built)) == built
        json.dumps(options_to_dict(built))
    elif isinstance(built, CodeGenerationConfig):
        assert CodeGenerationConfig(**json.loads(json.dumps(built.to_dict()))).to_dict() == built.to_dict()
    elif isinstance(built, MaskedCodeScheduler):
        # diffusers notes beside the settings which of them were left at their defaults.
        again = MaskedCodeScheduler.from_config(json.loads(built.to_json_string())).config
        assert {k: v for k, v in again.items() if k[0] != "_"} == {k: v for k, v in built.config.items() if k[0] != "_"}


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS])
@settings(max_examples=8)
@given(value=STRANGE)
def test_strange_values_are_refused_by_name_or_work(cls: type, name: str, value: Any) -> None:
    built = _build(cls, **{name: value})
    if isinstance(built, ValueError):
        assert name in str(built), f"{cls.__name__}.{name}: {built}"
    else:
        _works(built)


def _as_numpy(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_as_numpy, value))
    if isinstance(value, dict):
        return {name: _as_numpy(item) for name, item in value.items()}
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    return kinds[type(value)](value) if type(value) in kinds else value


@pytest.mark.parametrize(
    "cls",
    [*(cls for cls in CONFIGS if cls is not HQGeneratorConfig), *OPTIONS, CodeGenerationConfig, MaskedCodeScheduler],
)
def test_numbers_of_numpy_give_what_numbers_of_python_give(cls: type) -> None:
    plain = cls(**GIVEN.get(cls, {}))
    if issubclass(cls, PreTrainedConfig):
        fields = {name: getattr(plain, name) for name in field_hints(cls, PreTrainedConfig)}
    elif dataclasses.is_dataclass(cls):
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(cls)}
    else:
        settings_of = plain.config if isinstance(plain, MaskedCodeScheduler) else plain.to_dict()
        names = inspect.signature(cls).parameters if cls is MaskedCodeScheduler else cls.setting_names()
        fields = {name: settings_of[name] for name in names if settings_of.get(name) is not None}
    built = cls(**_as_numpy(fields))
    _works(built)
    write = {True: lambda o: o.to_json_string(), False: lambda o: json.dumps(options_to_dict(o))}
    write_as = write[hasattr(built, "to_json_string")]
    assert write_as(built) == write_as(plain)
