"""What the pipelines of images and of sounds share: one sample per request, with a seed of its own, in batches.

A request is a dictionary of tensors with a leading 1 (`sampling_inputs.py`) and a seed; transformers' `Pipeline` joins
them into batches and splits the results.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig, Pipeline
from transformers.dynamic_module_utils import custom_object_save

from hq_tokenizers.memory import check_samples_memory
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel
from hq_tokenizers.priors.progress import StepCallback
from hq_tokenizers.remote_code import REMOTE_CODE

from .call_arguments import check_count, check_setting_names, sample_seeds, stream_seeds
from .class_labels import resolve_labels_of_images, resolve_single_label
from .code_decoding import check_items
from .sampling_inputs import SamplingInputs, inputs_of_label, known_arguments, put_kept_pixels_back

_DEFAULT_BATCH_SIZE = 16
_ARGUMENTS = ("seed", "output_type", "batch_size", "progress", "callback_on_step_end", "generation_config")


class CodeSamplingPipeline(Pipeline):
    """Base class: a subclass says what it takes and makes, and has `processor_of_outputs`, `render`, `is_single` and
    `decoded_items`.
    """

    _load_tokenizer = False
    _load_processor = False
    _load_video_processor = False
    # transformers' own handling of generation settings knows neither lists per level nor guidance schedules.
    _pipeline_calls_generate = False

    task_name: ClassVar[str]
    items: ClassVar[str]
    """What is made, in the plural; a call's number of them is `num_` and this."""
    output_types: ClassVar[tuple[str, ...]]
    """The first is the default."""
    own_arguments: ClassVar[tuple[str, ...]]

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(model.config, "model_type", None) != "hq_generator":
            raise TypeError(
                f"The task {self.task_name} needs a generator, got {type(model).__name__}: join a tokenizer and a "
                "prior by HQGeneratorModel.from_sub_models_pretrained(tokenizer, prior)."
            )
        check_items(model.config.image_tokenizer_config, self.items, f"The task {self.task_name}")
        # Meant for the loading of the model, but transformers.pipeline passes it on to the pipeline as well.
        kwargs.pop("local_files_only", None)
        super().__init__(model, *args, **kwargs)

    @property
    def processor_of_outputs(self) -> Any:
        """The component that is saved with the model."""
        raise NotImplementedError(f"{type(self).__name__} has to define processor_of_outputs.")

    def render(self, outputs: dict[str, torch.Tensor], output_type: str) -> Any:
        """One sample in a type of `output_types` but "codes"."""
        raise NotImplementedError(f"{type(self).__name__} has to define render.")

    def is_single(self, given: Any) -> bool:
        """Whether this is one item to edit, and no list or stream of them."""
        raise NotImplementedError(f"{type(self).__name__} has to define is_single.")

    def decoded_items(self, given: Any) -> tuple[int | None, Iterable[Any]]:
        """How many items there are to edit, None for a stream, and each of them, decoded."""
        raise NotImplementedError(f"{type(self).__name__} has to define decoded_items.")

    def voices(self, speakers: Any, number: int | None) -> Iterable[int | None]:
        """Who speaks in each of so many items, None for a stream; nobody in what is no sound."""
        return itertools.repeat(None)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the generator and what prepares its inputs; `pipeline(task, model=save_directory)` loads them.

        Args:
            save_directory: Directory, created when missing.
            **kwargs: Arguments of `PreTrainedModel.save_pretrained`, such as `max_shard_size`.
        """
        # The base class would also note the pipeline's code in the config, which then could not be loaded without
        # trust_remote_code although the task is registered.
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor_of_outputs.save_pretrained(save_directory)
        if __name__.startswith(REMOTE_CODE):
            custom_object_save(self, save_directory)

    def _sanitize_parameters(
        self,
        output_type: str | None = None,
        generation_config: GenerationConfig | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        self._check_names(settings)
        # A config given in a call replaces everything the pipeline was built with; settings alone are put over it.
        if generation_config is None:
            defaults = getattr(self, "_forward_params", {})
            generation_config = defaults.get("generation_config")
            settings = {**defaults.get("overrides", {}), **settings}
        config = self.model.generation_config if generation_config is None else generation_config
        config = CodeGenerationConfig.from_generation_config(config).with_overrides(**settings)
        if isinstance(self.model.prior, CodePriorModel):
            config.check_model(self.model.prior.config.model_type)
        self._check_output_type(output_type)
        forward: dict[str, Any] = {"generation_config": generation_config, "overrides": settings}
        if not (callback_on_step_end is None or callable(callback_on_step_end)):
            raise TypeError(f"callback_on_step_end is a function, got {callback_on_step_end!r}.")
        if callback_on_step_end is not None:
            forward["callback_on_step_end"] = callback_on_step_end
        return {}, forward, {} if output_type is None else {"output_type": output_type}

    def _check_names(self, settings: Mapping[str, Any]) -> None:
        """Refuses what is neither a setting of sampling nor an argument; before what depends on one being given."""
        check_setting_names(settings, (*self.own_arguments, *_ARGUMENTS))

    def _sample(
        self,
        inputs: Iterable[SamplingInputs],
        num_samples: int,
        seed: int | Sequence[int] | None,
        batch_size: int | None,
        progress: bool | None,
        **settings: Any,
    ) -> Any:
        """The result for every input, one sample or a list of `num_samples`: a list for a list, else an iterator."""
        num_samples = check_count(f"num_{self.items}", num_samples)
        batch_size = self._resolve_batch_size(batch_size)
        total = len(inputs) * num_samples if isinstance(inputs, list) else None
        if total is None:
            seeds = stream_seeds(seed, self.items)
        else:
            check_samples_memory(total, self.model.code_layout.num_codes)
            seeds = iter(sample_seeds(seed, total, self.items))
        # None is shown on a terminal only.
        shown = (None if total is not None and total > batch_size else False) if progress is None else progress
        # Given a generator, the base class returns an iterator, which a bar can follow and which holds one batch; and
        # it takes an empty one, unlike an empty list.
        requests = ((given, next(seeds)) for given in inputs for _ in range(num_samples))
        settings = {name: value for name, value in settings.items() if value is not None}
        samples = super().__call__(requests, num_workers=0, batch_size=batch_size, **settings)
        rows = _in_rows(_progress_bar(samples, total, shown, self.items[:-1]), num_samples)
        return rows if total is None else list(rows)

    def _edit(
        self,
        given: Any,
        inputs_of: Callable[[SamplingInputs, Any], SamplingInputs],
        *sampling: Any,
        class_labels: Any,
        speakers: Any = None,
        **settings: Any,
    ) -> Any:
        """Samples from known codes of what is given; `inputs_of` makes the inputs of (condition, decoded item).

        `sampling` and `settings` are those of `_sample`, and so is the result, of a single item the item's own.
        """
        self._check_names({name: value for name, value in settings.items() if name not in _ARGUMENTS})
        number, items = self.decoded_items(given)
        labels = self._labels(class_labels, number)
        voices = self.voices(speakers, number)
        inputs = (
            inputs_of(inputs_of_label(label, voice), item)
            for item, label, voice in zip(items, labels, voices, strict=False)
        )
        results = self._sample(inputs if number is None else list(inputs), *sampling, **settings)
        return results[0] if self.is_single(given) else results

    def _labels(self, class_labels: Any, number: int | None) -> Iterable[int]:
        names = self.model.config.id2label
        if number is None:
            return itertools.repeat(resolve_single_label(class_labels, names))
        return resolve_labels_of_images(class_labels, number, names, self.items)

    def _check_output_type(self, output_type: str | None) -> None:
        if output_type is not None and output_type not in self.output_types:
            accepted = ", ".join(map(repr, self.output_types))
            raise ValueError(f"output_type must be one of {accepted}, got {output_type!r}.")

    def _resolve_output_type(self, output_type: str | None) -> str:
        self._check_output_type(output_type)
        return output_type or self._postprocess_params.get("output_type", self.output_types[0])

    def _resolve_batch_size(self, batch_size: int | None) -> int:
        return check_count("batch_size", self._batch_size or _DEFAULT_BATCH_SIZE if batch_size is None else batch_size)

    def preprocess(self, request: tuple[SamplingInputs, int], **kwargs: Any) -> SamplingInputs:
        """An input and a seed as tensors with a leading 1, which the base class joins into batches."""
        inputs, seed = request
        return inputs | {"seeds": torch.tensor([seed])}

    def _forward(
        self,
        inputs: SamplingInputs,
        generation_config: GenerationConfig | None = None,
        overrides: Mapping[str, Any] | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> dict[str, torch.Tensor]:
        # One generator per sample: a single one would make the samples depend on the batch size.
        generators = [torch.Generator().manual_seed(seed) for seed in inputs["seeds"].tolist()]
        spoken = {"speakers": inputs["speakers"]} if "speakers" in inputs else {}
        output = self.model.generate(
            inputs["class_labels"],
            generator=generators,
            batch_size=len(generators),
            generation_config=generation_config,
            callback_on_step_end=callback_on_step_end,
            **known_arguments(inputs, self.model.code_layout),
            **spoken,
            **(overrides or {}),
        )
        masked = {} if output.attention_mask is None else {"attention_mask": output.attention_mask}
        # The base class splits a batch into samples along the first axis of each tensor.
        return {"images": put_kept_pixels_back(output.images, inputs), "codes": output.codes.flatten(), **masked}

    def postprocess(self, outputs: dict[str, torch.Tensor], output_type: str | None = None, **kwargs: Any) -> Any:
        """One sample of the batch, in the output type asked for."""
        output_type = output_type or self.output_types[0]
        if output_type == "codes":
            return self.model.code_layout.unflatten(outputs["codes"])
        return self.render(outputs, output_type)


def _in_rows(samples: Iterable[Any], num_samples: int) -> Iterator[Any]:
    """The samples one by one, or lists of the `num_samples` of each input."""
    samples = iter(samples)
    if num_samples == 1:
        return samples
    return iter(lambda: list(itertools.islice(samples, num_samples)), [])


def _progress_bar(results: Iterable[Any], number: int | None, shown: bool | None, unit: str) -> Iterator[Any]:
    from tqdm.auto import tqdm

    disable = None if shown is None else not shown
    return iter(tqdm(results, total=number, desc="Generating", unit=unit, disable=disable))


def in_batches(items: Iterator[Any], size: int, results: Callable[[list[Any]], Iterable[Any]]) -> Iterator[Any]:
    """The results of a stream of items, made of up to `size` of them at a time."""
    while batch := list(itertools.islice(items, size)):
        yield from results(batch)
