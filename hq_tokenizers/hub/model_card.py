"""Model cards: what a model is, how to load it, what its codes are, and what is known of its quality."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.reporting.tables import metrics_table

_KINDS = {
    "generator": "an image generator",
    "sound generator": "a generator of sounds",
    "image tokenizer": "a discrete image tokenizer",
    "label map tokenizer": "a discrete tokenizer of label maps",
    "sound tokenizer": "a tokenizer of sounds, by their log-mel spectrograms,",
    "autoencoder": "a variational autoencoder with continuous latents, a baseline without codes,",
    "prior": "a code prior",
}
_GENERATORS = {"generator": "hq-generation", "sound generator": "hq-audio-generation"}
PIPELINE_TAGS = {
    "generator": "unconditional-image-generation",
    **dict.fromkeys(("image tokenizer", "autoencoder"), "image-feature-extraction"),
}
_MAX_NAMES = 20
_USAGE = {
    "generator": """import hq_tokenizers
from transformers import pipeline

generate = pipeline("hq-generation", model="{model_id}")
image = generate({label}, seed=0)
""",
    "sound generator": """import hq_tokenizers
from transformers import pipeline

generate = pipeline("hq-audio-generation", model="{model_id}")
sound = generate({label}{speaker}, seed=0)  # {{"audio": samples, "sampling_rate": samples per second}}
""",
    "image tokenizer": """import hq_tokenizers
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{model_id}")
model = AutoModel.from_pretrained("{model_id}").eval()
codes = model.encode(processor(image)["pixel_values"])
image = processor.postprocess(model.decode(codes))[0]
""",
    "label map tokenizer": """import hq_tokenizers
from transformers import AutoModel

model = AutoModel.from_pretrained("{model_id}").eval()
codes = model.encode(label_maps)  # a LongTensor (batch, height, width) of classes
label_maps = model.decode(codes)
""",
    "sound tokenizer": """import hq_tokenizers
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("{model_id}")
model = AutoModel.from_pretrained("{model_id}").eval()
inputs = extractor(["sound.wav"])
reconstruction = model(**inputs{speaker}, return_loss=False).reconstruction
waveforms = extractor.to_waveforms(reconstruction, inputs["attention_mask"])
""",
    "autoencoder": """import hq_tokenizers
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{model_id}")
model = AutoModel.from_pretrained("{model_id}").eval()
reconstruction = model(processor(image)["pixel_values"], return_loss=False).reconstruction
image = processor.postprocess(reconstruction)[0]
""",
    "prior": """import hq_tokenizers
from transformers import AutoModel

prior = AutoModel.from_pretrained("{model_id}").eval()
codes = prior.generate(num_images=4, generator=0)
""",
}


def create_model_card(
    model: PreTrainedModel,
    model_id: str = "path-or-hub-id",
    *,
    license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Mapping[str, float | str] | None = None,
    description: str | None = None,
    self_contained: bool = False,
) -> ModelCard:
    """Writes the card of a generator, an image tokenizer or a prior.

    It states what the model itself knows and what it is told; nothing is assumed about the licence, the training data
    or the quality.

    Args:
        model: The model.
        model_id: What to load it by.
        license: Licence of the weights, as the Hub abbreviates it, such as "apache-2.0"; None when undecided.
        datasets: Hub ids or names of the training data.
        metrics: Values by name; the names say what was measured, on what, such as "rFID, CIFAR-10 test, 10,000 images".
            They make the table of the card, rounded, and as they are its "model-index", which the Hub reads: the first
            part of a name as the measure, the second as the data set (by default `datasets`).
        description: A paragraph on what the model is for and how it was trained.
        self_contained: Whether the repository carries its own code, see `export_self_contained`.

    Returns:
        A `huggingface_hub.ModelCard`, with `.save(path)`.

    Raises:
        TypeError: If the model is none of the three, or `metrics` is no mapping of names to numbers or texts.
    """
    kind, layout = _kind_and_layout(model)
    metrics = _plain_metrics(metrics)
    id2label = model.config.id2label if kind in _GENERATORS else {}
    speakers = model.config.speaker_names if kind == "sound generator" else {}
    arguments = _arguments(model, kind, id2label, speakers)
    data = ModelCardData(
        # `pipeline(model=…)` takes the task from the Hub for models of transformers only; it knows ours once
        # hq_tokenizers is imported. The other models have no task there, and are better refused than misread.
        library_name="transformers" if kind in _GENERATORS else "hq_tokenizers",
        pipeline_tag=PIPELINE_TAGS.get(kind),
        model_name=model_id.rpartition("/")[2] if metrics else None,
        eval_results=_eval_results(kind, metrics, datasets) if metrics else None,
        license=license,
        datasets=list(datasets) or None,
        tags=["hq_tokenizers", model.config.model_type, *_topics(kind, id2label)],
    )
    sections = [
        f"# {model_id}",
        description or f"This is {_KINDS[kind]} of the library hq_tokenizers.",
        _usage(kind, model_id, arguments, self_contained),
        _codes_section(layout, kind) if layout is not None else "",
        _parameters_section(model, kind),
        _names_section("Classes", id2label, "id2label"),
        _names_section("Speakers", speakers, "speaker_names"),
        _metrics_section(metrics),
        _training_section(kind, license, datasets),
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _plain_metrics(metrics: Any) -> dict[str, Any]:
    """Names and values that YAML can hold: numbers of NumPy and torch as those of Python."""
    given = dict(metrics or {}) if isinstance(metrics, Mapping | None) else None
    if given is None or not all(isinstance(name, str) for name in given):
        raise TypeError(f"metrics maps names to values, such as {{'rFID, my test set': 12.3}}, got {metrics!r}.")
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given.items()}
    for name, value in plain.items():
        if not all(isinstance(part, Number | str) for part in (value if isinstance(value, list | tuple) else [value])):
            raise TypeError(f"metrics[{name!r}] is a number, a text or a list of numbers, got {value!r}.")
    return plain


def _eval_results(kind: str, metrics: Mapping[str, float | str], datasets: Sequence[str]) -> list[EvalResult]:
    """The metrics in the Hub's form."""
    results = []
    for name, value in metrics.items():
        measure, *conditions = name.split(", ")
        dataset = conditions[0] if conditions else ", ".join(datasets) or "not stated"
        results.append(
            EvalResult(
                task_type=PIPELINE_TAGS.get(kind, "other"),
                # The Hub's form has one name per type.
                dataset_type=dataset if dataset in datasets else _slug(dataset),
                dataset_name=dataset,
                metric_type=_slug(measure),
                metric_value=value,
                metric_name=name,
            )
        )
    return results


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text.casefold()).strip("_")


def _kind_and_layout(model: PreTrainedModel) -> tuple[str, CodeLayout | None]:
    if model.config.model_type == "hq_generator":
        sounds = is_of_sound(model.config.image_tokenizer_config)
        return "sound generator" if sounds else "generator", model.code_layout
    if model.base_model_prefix == "image_tokenizer" and model.config.modality == "sound":
        return "sound tokenizer", model.code_layout() if model.config.has_codes else None
    if model.base_model_prefix == "image_tokenizer" and not model.config.has_codes:
        return "autoencoder", None
    if model.base_model_prefix == "image_tokenizer":
        return "label map tokenizer" if model.config.for_label_maps else "image tokenizer", model.code_layout()
    if model.base_model_prefix == "prior":
        return "prior", CodeLayout.from_dict(model.config.code_layout)
    raise TypeError(
        f"Cards are written for generators, image tokenizers and priors of hq_tokenizers, got {type(model).__name__}."
    )


def _topics(kind: str, id2label: Mapping[int, str]) -> list[str]:
    if kind not in _GENERATORS:
        return []
    return [_GENERATORS[kind], *(["class-conditional"] if id2label else [])]


def _arguments(
    model: PreTrainedModel, kind: str, id2label: Mapping[int, str], speakers: Mapping[int, str]
) -> dict[str, str]:
    """What a call asks for, as it is written: the first of the classes and of the speakers."""
    speaker = f', speakers="{speakers[0]}"' if speakers else ""
    if kind == "sound tokenizer" and model.config.num_speakers:
        speaker = ", speaker_ids=torch.tensor([0])"
    return {"label": f'"{id2label[0]}"' if id2label else "", "speaker": speaker}


def _usage(kind: str, model_id: str, arguments: Mapping[str, str], self_contained: bool) -> str:
    code = _USAGE[kind].format(model_id=model_id, **arguments).replace("generate(, ", "generate(")
    if "torch." in code:
        code = code.replace("import hq_tokenizers\n", "import hq_tokenizers\nimport torch\n")
    text = f"## How to use\n\nWith hq_tokenizers installed:\n\n```python\n{code}```"
    if self_contained:
        trusting = code.removeprefix("import hq_tokenizers\n").replace(
            f'"{model_id}")', f'"{model_id}", trust_remote_code=True)'
        )
        text += (
            "\n\nThe repository carries its own code, so that transformers alone can load it too; read the code before "
            f"you trust it:\n\n```python\n{trusting}```"
        )
    return text


def _item(kind: str) -> str:
    """What one set of codes is of; a prior does not know."""
    if kind == "prior":
        return "example"
    return "sound" if kind.startswith("sound") else "image"


def _codes_section(layout: CodeLayout, kind: str) -> str:
    rows = [
        f"| {index} | {group.height} × {group.width} | {group.depth} | {', '.join(map(str, group.codebook_sizes))} |"
        for index, group in enumerate(layout.groups, start=1)
    ]
    return "\n".join(
        [
            "## Codes",
            "",
            f"{layout.num_codes} codes per {_item(kind)}, {layout.bits_per_image:.0f} bits under a uniform prior.",
            "",
            "| group, coarse to fine | grid | codes per position | codebook sizes |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _parameters_section(model: PreTrainedModel, kind: str) -> str:
    parts = {kind: model}
    if kind in _GENERATORS:
        parts = {f"{_item(kind)} tokenizer": model.image_tokenizer, "prior": model.prior}
    rows = [
        f"| {name} | `{type(part).__name__}` | {sum(p.numel() for p in part.parameters()):,} |"
        for name, part in parts.items()
    ]
    return "\n".join(["## Parameters", "", "| part | class | parameters |", "|---|---|---|", *rows])


def _names_section(title: str, names: Mapping[int, str], field: str) -> str:
    if not names:
        return ""
    shown = ", ".join(f"{index}: {name}" for index, name in list(names.items())[:_MAX_NAMES])
    more = "" if len(names) <= _MAX_NAMES else f", … {len(names)} in all; see `model.config.{field}`"
    return f"## {title}\n\n{shown}{more}."


def _metrics_section(metrics: Mapping[str, float | str] | None) -> str:
    if not metrics:
        return "## Evaluation\n\nNo evaluation has been reported for this model."
    return f"## Evaluation\n\n{metrics_table(metrics)}"


def _training_section(kind: str, license: str | None, datasets: Sequence[str]) -> str:
    data = ", ".join(datasets) if datasets else "not stated"
    return (
        f"## Training data and licence\n\nTraining data: {data}. Licence of the weights: {license or 'not stated'}. "
        "The model reproduces what is common in its training data, including its gaps and biases, and may reproduce "
        f"single training {_item(kind)}s."
    )
