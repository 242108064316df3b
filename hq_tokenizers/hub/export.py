"""Self-contained export: a model that loads with transformers alone, through `trust_remote_code=True`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.models.processors import processor_to_share
from hq_tokenizers.pipelines.code_sampling_pipeline import CodeSamplingPipeline
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.pipelines.pipeline_hq_audio_generation import HQAudioGenerationPipeline
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
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    card: ModelCard | None = None,
    max_shard_size: int | str = "50GB",
    feature_extractor: HQFeatureExtractor | None = None,
) -> Path:
    """Writes a model with the code it needs: weights, configs, image processor, model card and flat modules.

    `AutoModel.from_pretrained(directory, trust_remote_code=True)` loads it where hq_tokenizers is not installed, and
    `pipeline(model=directory, trust_remote_code=True)` a generator. Where the package is imported, the installed code
    is used and no trust is asked for.

    Args:
        model: A generator, an image tokenizer or a prior.
        directory: Where to write; created when missing.
        card: Model card; by default `create_model_card(model, self_contained=True)`. One that says nothing of
            `trust_remote_code` gets a sentence on it.
        max_shard_size: Largest size of a file of weights.
        feature_extractor: The front end of a model of sounds, which the model itself does not know.

    Returns:
        The directory.

    Raises:
        TypeError: If the model is of none of the three kinds, or the front end is not that of such a model.
        ValueError: If the code of a part is not of this package and cannot be flattened, or a generator of sounds comes
            without its front end.
    """
    directory = Path(directory)
    card = create_model_card(model, self_contained=True) if card is None else _of_own_code(card)
    processor = processor_to_share(model, feature_extractor)
    sources = _sources(model, processor)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    for name, text in sources.items():
        (directory / name).write_text(text, encoding="utf-8")
    code: dict[str, Any] = {
        "auto_map": {"AutoConfig": _reference(type(model.config)), "AutoModel": _reference(type(model))}
    }
    if isinstance(model, HQGeneratorModel):
        made_by = _pipeline_of(model)
        code["custom_pipelines"] = {made_by.task_name: {"impl": _reference(made_by), "pt": ["AutoModel"]}}
    _update_json(directory / "config.json", **code)
    if processor is not None:
        processor.save_pretrained(directory)
        auto_class = "AutoImageProcessor" if isinstance(processor, HQImageProcessor) else "AutoFeatureExtractor"
        _update_json(directory / "preprocessor_config.json", auto_map={auto_class: _reference(type(processor))})
    card.save(directory / "README.md")
    return directory


def _of_own_code(card: ModelCard) -> ModelCard:
    """A card that tells how to load a model with its code."""
    if "trust_remote_code" in card.content:
        return card
    return ModelCard(
        f"{card.content.rstrip()}\n\n## Without hq_tokenizers\n\nThe repository carries its own code: with "
        "`trust_remote_code=True`, `from_pretrained` and `pipeline` of transformers load it where hq_tokenizers is not "
        "installed. Read the code before you trust it.\n"
    )


def _pipeline_of(generator: HQGeneratorModel) -> type[CodeSamplingPipeline]:
    return HQAudioGenerationPipeline if is_of_sound(generator.config.image_tokenizer_config) else HQGenerationPipeline


def _sources(model: PreTrainedModel, processor: Any) -> dict[str, str]:
    """The modules of the export by file name."""
    classes: list[type] = [type(model), type(model.config)] + ([] if processor is None else [type(processor)])
    if not isinstance(model, HQGeneratorModel):
        return bundle_sources(cls.__module__ for cls in classes)
    parts = {"image_tokenizer_config": model.image_tokenizer, "prior_config": model.prior}
    classes += [_pipeline_of(model), *(cls for part in parts.values() for cls in (type(part), type(part.config)))]
    return bundle_sources(cls.__module__ for cls in classes) | {"sub_models.py": _sub_models_source(parts)}


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
