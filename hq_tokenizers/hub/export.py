"""Self-contained export: a generator that loads with transformers alone, through `trust_remote_code=True`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline

from .model_card import create_model_card
from .source_bundle import bundle_sources

# The counterpart of pipelines/sub_models.py, with the classes named instead of looked up.
_SUB_MODELS = '''"""The classes of this generator's parts."""

from __future__ import annotations

from transformers import PreTrainedConfig

{imports}

_CLASSES = {{{classes}}}
_FIELDS = {fields!r}


def build_sub_config(field, config):
    """The configuration of a part."""
    if isinstance(config, PreTrainedConfig):
        return config
    values = {{"model_type": _FIELDS[field]}} if config is None else dict(config)
    return _CLASSES[values.pop("model_type")][0](**values)


def build_sub_model(config):
    """A part with fresh weights."""
    config_class, model_class = _CLASSES[config.model_type]
    # transformers loads the configuration and the model from two copies of this folder, with two sets of classes.
    own = config_class.from_dict(config.to_dict())
    own._attn_implementation = config._attn_implementation
    return model_class._from_config(own)
'''


def export_self_contained(
    model: HQGeneratorModel, directory: str | os.PathLike[str], card: ModelCard | None = None
) -> Path:
    """Writes a generator with the code it needs: weights, configs, image processor, model card and flat modules.

    `pipeline("hq-generation", model=directory, trust_remote_code=True)` loads it where hq_tokenizers is not installed.
    Where it is imported, the installed code is used and no trust is asked for.

    Args:
        model: The generator.
        directory: Where to write; created when missing.
        card: Model card; by default `create_model_card(model, self_contained=True)`.

    Returns:
        The directory.

    Raises:
        ValueError: If the code of a part is not of this package and cannot be flattened.
    """
    directory = Path(directory)
    processor = HQImageProcessor.for_config(model.image_tokenizer.config)
    parts = {"image_tokenizer_config": model.image_tokenizer, "prior_config": model.prior}
    classes = [type(model), type(model.config), HQGenerationPipeline, HQImageProcessor]
    classes += [cls for part in parts.values() for cls in (type(part), type(part.config))]
    sources = bundle_sources(cls.__module__ for cls in classes)
    sources["sub_models.py"] = _sub_models_source(parts)

    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    for name, text in sources.items():
        (directory / name).write_text(text, encoding="utf-8")
    _update_json(
        directory / "config.json",
        auto_map={"AutoConfig": _reference(type(model.config)), "AutoModel": _reference(type(model))},
        custom_pipelines={"hq-generation": {"impl": _reference(HQGenerationPipeline), "pt": ["AutoModel"]}},
    )
    _update_json(directory / "preprocessor_config.json", auto_map={"AutoImageProcessor": _reference(HQImageProcessor)})
    (card or create_model_card(model, self_contained=True)).save(directory / "README.md")
    return directory


def _sub_models_source(parts: dict[str, PreTrainedModel]) -> str:
    classes = {part.config.model_type: (type(part.config), type(part)) for part in parts.values()}
    imports = [
        f"from .{cls.__module__.rpartition('.')[2]} import {cls.__name__}" for pair in classes.values() for cls in pair
    ]
    entries = [f'"{name}": ({config.__name__}, {model.__name__})' for name, (config, model) in classes.items()]
    fields = {field: part.config.model_type for field, part in parts.items()}
    return _SUB_MODELS.format(imports="\n".join(imports), classes=", ".join(entries), fields=fields)


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _update_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2, sort_keys=True) + "\n")
