"""`transformers.pipeline("hq-generation")`: class labels in, images out; images in, edited images out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, Pipeline
from transformers.dynamic_module_utils import custom_object_save

from hq_tokenizers.image_processing_hq import OUTPUT_TYPES as IMAGE_TYPES
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.memory import check_samples_memory
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel
from hq_tokenizers.priors.progress import PartialCodes, StepCallback
from hq_tokenizers.remote_code import REMOTE_CODE

from .call_arguments import check_count, check_setting_names, image_seeds, is_stream, stream_seeds
from .class_labels import is_single_label, resolve_class_labels, resolve_labels_of_images, resolve_single_label
from .image_arguments import decode_each, decode_stream, is_single_image, list_images
from .image_editing import first_levels
from .sampling_inputs import (
    SamplingInputs,
    inputs_of_known_codes,
    inputs_of_label,
    inputs_of_repainting,
    known_arguments,
    put_kept_pixels_back,
)

OUTPUT_TYPES = (*IMAGE_TYPES, "codes")
_DEFAULT_BATCH_SIZE = 16


class HQGenerationPipeline(Pipeline):
    """Generates images with an `HQGeneratorModel`, and edits given ones.

    Calling it draws images of classes; `variations` and `inpaint` keep a part of a given image and draw the rest;
    `reconstruct` shows what the tokenizer preserves.

    `pipeline("hq-generation", model=…)` takes a directory, a Hub id, or a model object. Settings given there
    (`output_type`, `batch_size`, `temperature`, …) become the defaults of every call.

    Examples:
        >>> import hq_tokenizers
        >>> from transformers import pipeline
        >>> generate = pipeline("hq-generation", model="my-generator")  # doctest: +SKIP
        >>> generate("cat", seed=0).save("cat.png")  # doctest: +SKIP
    """

    # The only component besides the model is the image processor; looking for others costs Hub requests.
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_processor = False
    _load_video_processor = False
    _load_image_processor = None
    # transformers' own handling of generation settings knows neither lists per level nor guidance schedules.
    _pipeline_calls_generate = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(model.config, "model_type", None) != "hq_generator":
            raise TypeError(
                f"The task hq-generation needs a generator, got {type(model).__name__}: join a tokenizer and a prior "
                "by HQGeneratorModel.from_sub_models_pretrained(tokenizer, prior)."
            )
        config = model.config.image_tokenizer_config
        if getattr(config, "for_label_maps", False):
            raise TypeError(
                "The task hq-generation is for images; this generator draws label maps: call its generate method, or "
                "`hq-tokenizers generate`."
            )
        if kwargs.get("image_processor") is None:
            kwargs["image_processor"] = HQImageProcessor.for_config(config)
        # Meant for the loading of the model, but transformers.pipeline passes it on to the pipeline as well.
        kwargs.pop("local_files_only", None)
        super().__init__(model, *args, **kwargs)

    def __call__(
        self,
        class_labels: Any = None,
        num_images: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        callback_on_step_end: StepCallback | None = None,
        generation_config: GenerationConfig | None = None,
        **generation_settings: Any,
    ) -> Any:
        """Generates images of classes.

        Args:
            class_labels: What to draw: a name of `model.config.id2label`, a class id, or None for no class; or a list,
                array or tensor of these; or a stream of them, which is an iterator, such as a generator, or a torch
                `Dataset`, such as transformers' `KeyDataset(dataset, "label")`.
            num_images: Images per label; more than one makes a list of each label's image.
            seed: An integer: image i of the call, counted in the order of the result, gets the seed `seed + i`, so
                that image 5 of `seed=0` can be had alone by `seed=5`. A list gives every image its own. None draws new
                images at every call, following `torch.manual_seed`. The codes of the images do not depend on the
                batch size; their pixels only through the rounding of the decoder's convolutions (some 1e-7).
            output_type: "pil" (default) for PIL images, "pt" for float32 tensors (C, H, W) in [0, 1], "np" for float32
                arrays (H, W, C) in [0, 1], "codes" for the `Codes` of an image.
            batch_size: Images sampled at once; 16 unless the pipeline was built with another. Larger is faster, up
                to the memory there is.
            progress: Whether to show a bar. By default one is shown for more than one batch, on a terminal; for a
                stream only when asked for.
            callback_on_step_end: Called after every step of every batch with (steps done, total, `PartialCodes`) of
                the batch; `preview` makes images of them.
            generation_config: How to sample, instead of the model's own config and of all settings the pipeline was
                built with.
            **generation_settings: Settings of `CodeGenerationConfig` that replace those of the config for this call:
                `temperature`, `top_k`, `top_p`, `min_p` (a number, or a list with one per level of codes),
                `guidance_scale` (1 = off), `guidance_schedule`, ….

        Returns:
            In the shape of the question: one image for one label; a list for a list of labels, or for one label with
            several images; a list of lists for a list of labels with several images each. `[]` gives `[]`. For a stream
            an iterator over the same, which takes a batch of labels when the next image is asked for.

        Raises:
            TypeError: For an argument that is neither one of the above nor a generation setting, or a label of a
                wrong type.
            ValueError: For an unknown class, an id out of range, or a value that is not accepted.

        Examples:
            >>> generate("cat")                                    # an image  # doctest: +SKIP
            >>> generate(["cat", "dog"])                           # [image, image]  # doctest: +SKIP
            >>> generate("cat", num_images=2)                      # [image, image]  # doctest: +SKIP
            >>> generate(["cat", 5], num_images=2, seed=0)         # [[image, image], [image, image]]  # doctest: +SKIP
            >>> generate("cat", temperature=0.9, top_k=[64, 128])  # one top_k per level  # doctest: +SKIP
            >>> generate(output_type="codes").flatten()            # (1, T) code indices  # doctest: +SKIP
        """
        id2label, streamed = self.model.config.id2label, is_stream(class_labels)
        labels: Iterable[int] = (
            (resolve_single_label(label, id2label) for label in class_labels)
            if streamed
            else resolve_class_labels(class_labels, id2label)
        )
        inputs = map(inputs_of_label, labels)
        results = self._sample(
            inputs if streamed else list(inputs),
            num_images,
            seed,
            batch_size,
            progress,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )
        return results[0] if not streamed and is_single_label(class_labels) else results

    def reconstruct(
        self,
        image: Any,
        *,
        num_levels: int | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """What remains of images after the tokenizer: pixels → codes → pixels. The prior has no part in it.

        Args:
            image: An image (PIL, path, URL, bytes, array or tensor, see `HQImageProcessor`), a list or batch of images,
                or a stream of them, see a call.
            num_levels: Decodes the first levels of codes only, coarse to fine; by default all.
            output_type: As in a call; "codes" gives the `num_levels` levels.
            batch_size: Images at once; as in a call.

        Returns:
            One image for one image, a list for several, an iterator for a stream.

        Raises:
            TypeError: If `image` is neither an image nor a list of images.
            FileNotFoundError: If a path leads to no file.
            UnreadableImageError: If an image is broken or larger than `PIL.Image.MAX_IMAGE_PIXELS`; a ValueError.
            ValueError: If `num_levels` is not between 1 and the number of levels, or a value is not accepted.

        Examples:
            >>> generate.reconstruct("cat.png").save("again.png")  # doctest: +SKIP
        """
        self._sanitize_parameters(output_type=output_type)
        output_type = output_type or self._postprocess_params.get("output_type", "pil")
        size = self._resolve_batch_size(batch_size)
        layout = self.model.code_layout
        layout = layout if num_levels is None else layout.truncate(check_count("num_levels", num_levels))

        def results(images: Iterator[Any]) -> Iterator[Any]:
            while batch := list(itertools.islice(images, size)):
                pixel_values = self.image_processor(batch)["pixel_values"].to(self.device)
                codes = self.model.image_tokenizer.encode(pixel_values).truncate(layout.num_levels)
                if output_type == "codes":
                    yield from codes.to("cpu")
                else:
                    decoded = self.model.image_tokenizer.decode(codes).cpu()
                    yield from self.image_processor.postprocess(decoded, output_type)

        if is_stream(image):
            return results(decode_stream(image))
        found = list(results(decode_each("image", list_images("image", image))))
        return found[0] if is_single_image(image) else found

    def preview(self, partial: PartialCodes, output_type: str = "pil") -> list[Any]:
        """Images of the codes in the middle of sampling.

        Args:
            partial: What `callback_on_step_end` was called with.
            output_type: "pil", "pt" or "np".

        Returns:
            One image for each of the batch, see `HQGeneratorModel.preview`.

        Examples:
            >>> generate("cat", callback_on_step_end=lambda done, total, partial: show(generate.preview(partial)))
            ... # doctest: +SKIP
        """
        return list(self.image_processor.postprocess(self.model.preview(partial).cpu(), output_type))

    def variations(
        self,
        image: Any,
        keep_levels: int,
        num_images: int = 1,
        *,
        class_labels: Any = None,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        callback_on_step_end: StepCallback | None = None,
        generation_config: GenerationConfig | None = None,
        **generation_settings: Any,
    ) -> Any:
        """Images that share the coarse levels of given ones: their codes are kept, the prior draws the rest.

        An autoregressive prior sees a kept code only when it comes earlier in its order (group after group, position
        after position, the levels of a position together): a fine code knows the coarse ones of its own and of earlier
        positions, and those of all positions only when they are a group of their own. A masked prior sees all.

        Args:
            image: An image, a list, batch or stream of images, as in `reconstruct`.
            keep_levels: How many levels of codes to keep, coarse to fine: 0 keeps nothing, all levels give the
                reconstruction.
            num_images: Variations of each image.
            class_labels: What the images show: one label for all of them or one per image, as in a call; for a stream
                one label for all.
            seed: As in a call.
            output_type: As in a call.
            batch_size: As in a call.
            progress: As in a call.
            callback_on_step_end: As in a call.
            generation_config: As in a call.
            **generation_settings: As in a call.

        Returns:
            In the shape of a call, with images in the place of labels.

        Raises:
            TypeError: As a call does, or if `image` is neither an image nor a list of images.
            ValueError: As a call does, or if `keep_levels` is out of range.

        Examples:
            >>> generate.variations("cat.png", keep_levels=1, num_images=4, seed=0)  # doctest: +SKIP
        """
        known = first_levels(keep_levels, self.model.code_layout)
        streamed = is_stream(image)
        pairs: Iterable[tuple[int, Any]]
        if streamed:
            label = resolve_single_label(class_labels, self.model.config.id2label)
            pairs = ((label, given) for given in decode_stream(image))
        else:
            images = list_images("image", image)
            labels = resolve_labels_of_images(class_labels, len(images), self.model.config.id2label)
            pairs = zip(labels, decode_each("image", images), strict=True)
        inputs = (
            inputs_of_known_codes(label, self.image_processor(given)["pixel_values"], known, self.model)
            for label, given in pairs
        )
        results = self._sample(
            inputs if streamed else list(inputs),
            num_images,
            seed,
            batch_size,
            progress,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )
        return results[0] if is_single_image(image) else results

    def inpaint(
        self,
        image: Any,
        mask: Any,
        class_labels: Any = None,
        num_images: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        callback_on_step_end: StepCallback | None = None,
        generation_config: GenerationConfig | None = None,
        **generation_settings: Any,
    ) -> Any:
        """Repaints a part of images.

        The codes of every position whose pixels the mask touches are drawn anew, at all levels; the others are those of
        the image. Of the decoded image the masked pixels are taken, all others are the given image's, unchanged but for
        the resizing to the generator's size. An autoregressive prior sees a kept code only when it comes earlier in its
        order (raster within a group): what is drawn fits what lies above and to the left, and need not fit what lies
        below. A masked prior sees all. The encoder saw the masked pixels, so that kept codes nearby may hint at them.

        Args:
            image: An image, or a list or batch of images, as in `reconstruct`.
            mask: An image of the same height and width (or one per image): True or white is repainted, False or black
                is kept. Greys count from one half on, also in floating-point masks; in integers (arrays, PIL images,
                files) from 128 on, or, where nothing is above 1, from 1 on.
            class_labels: What to paint: one label for all images or one per image, as in a call.
            num_images: Results for each image.
            seed: As in a call.
            output_type: As in a call; "codes" gives the codes before the given pixels are put back.
            batch_size: As in a call.
            progress: As in a call.
            callback_on_step_end: As in a call.
            generation_config: As in a call.
            **generation_settings: As in a call.

        Returns:
            In the shape of a call, with images in the place of labels.

        Raises:
            TypeError: As a call does, or if `image` or `mask` is neither an image nor a list of images.
            ValueError: As a call does, or if there are several masks but not one per image, or a mask has another size
                than its image, or has something in it but marks nothing.

        Examples:
            >>> generate.inpaint("cat.png", "mask.png", "cat", seed=0).save("other-cat.png")  # doctest: +SKIP
        """
        images, masks = list_images("image", image), list(decode_each("mask", list_images("mask", mask)))
        if is_single_image(mask):
            masks = masks * len(images)
        if len(masks) != len(images):
            raise ValueError(f"Got {len(masks)} masks for {len(images)} images: give one per image, or one for all.")
        labels = resolve_labels_of_images(class_labels, len(images), self.model.config.id2label)
        results = self._sample(
            [
                inputs_of_repainting(label, given, marked, self.image_processor, self.model)
                for label, given, marked in zip(labels, decode_each("image", images), masks, strict=True)
            ],
            num_images,
            seed,
            batch_size,
            progress,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )
        return results[0] if is_single_image(image) else results

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the generator and the image processor; `pipeline("hq-generation", model=save_directory)` loads them.

        Args:
            save_directory: Directory, created when missing.
            **kwargs: Arguments of `PreTrainedModel.save_pretrained`, such as `max_shard_size`.
        """
        # The base class would also note the pipeline's code in the config, which then could not be loaded without
        # trust_remote_code although the task is registered.
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        if __name__.startswith(REMOTE_CODE):
            custom_object_save(self, save_directory)

    def _sanitize_parameters(
        self,
        output_type: str | None = None,
        generation_config: GenerationConfig | None = None,
        callback_on_step_end: StepCallback | None = None,
        **settings: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        check_setting_names(settings)
        # A config given in a call replaces everything the pipeline was built with; settings alone are put over it.
        if generation_config is None:
            defaults = getattr(self, "_forward_params", {})
            generation_config = defaults.get("generation_config")
            settings = {**defaults.get("overrides", {}), **settings}
        config = self.model.generation_config if generation_config is None else generation_config
        config = CodeGenerationConfig.from_generation_config(config).with_overrides(**settings)
        if isinstance(self.model.prior, CodePriorModel):
            config.check_model(self.model.prior.config.model_type)
        if output_type is not None and output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}, got {output_type!r}.")
        forward: dict[str, Any] = {"generation_config": generation_config, "overrides": settings}
        if not (callback_on_step_end is None or callable(callback_on_step_end)):
            raise TypeError(f"callback_on_step_end is a function, got {callback_on_step_end!r}.")
        if callback_on_step_end is not None:
            forward["callback_on_step_end"] = callback_on_step_end
        return {}, forward, {} if output_type is None else {"output_type": output_type}

    def _sample(
        self,
        inputs: Iterable[SamplingInputs],
        num_images: int,
        seed: int | Sequence[int] | None,
        batch_size: int | None,
        progress: bool | None,
        **settings: Any,
    ) -> Any:
        """The result for every input, one image or a list of `num_images`: a list for a list, else an iterator."""
        num_images = check_count("num_images", num_images)
        batch_size = self._resolve_batch_size(batch_size)
        total = len(inputs) * num_images if isinstance(inputs, list) else None
        if total is None:
            seeds = stream_seeds(seed)
        else:
            check_samples_memory(total, self.model.code_layout.num_codes)
            seeds = iter(image_seeds(seed, total))
        # None is shown on a terminal only.
        shown = (None if total is not None and total > batch_size else False) if progress is None else progress
        # Given a generator, the base class returns an iterator, which a bar can follow and which holds one batch; and
        # it takes an empty one, unlike an empty list.
        requests = ((given, next(seeds)) for given in inputs for _ in range(num_images))
        settings = {name: value for name, value in settings.items() if value is not None}
        images = super().__call__(requests, num_workers=0, batch_size=batch_size, **settings)
        rows = _in_rows(_progress_bar(images, total, shown), num_images)
        return rows if total is None else list(rows)

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
        # One generator per image: a single one would make the images depend on the batch size.
        generators = [torch.Generator().manual_seed(seed) for seed in inputs["seeds"].tolist()]
        output = self.model.generate(
            inputs["class_labels"],
            generator=generators,
            batch_size=len(generators),
            generation_config=generation_config,
            callback_on_step_end=callback_on_step_end,
            **known_arguments(inputs, self.model.code_layout),
            **(overrides or {}),
        )
        # The base class splits a batch into images along the first axis of each tensor.
        return {"images": put_kept_pixels_back(output.images, inputs), "codes": output.codes.flatten()}

    def postprocess(self, outputs: dict[str, torch.Tensor], output_type: str = "pil", **kwargs: Any) -> Any:
        """One image of the batch, in the output type asked for."""
        if output_type == "codes":
            return self.model.code_layout.unflatten(outputs["codes"])
        return self.image_processor.postprocess(outputs["images"], output_type)[0]


def _in_rows(images: Iterable[Any], num_images: int) -> Iterator[Any]:
    """The images one by one, or lists of the `num_images` of each input."""
    images = iter(images)
    if num_images == 1:
        return images
    return iter(lambda: list(itertools.islice(images, num_images)), [])


def _progress_bar(results: Iterable[Any], num_images: int | None, shown: bool | None) -> Iterator[Any]:
    from tqdm.auto import tqdm

    disable = None if shown is None else not shown
    return iter(tqdm(results, total=num_images, desc="Generating", unit="image", disable=disable))
