"""`transformers.pipeline("hq-generation")`: class labels in, images out; images in, edited images out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from hq_tokenizers.image_processing_hq import OUTPUT_TYPES as IMAGE_TYPES
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.priors.progress import PartialCodes, StepCallback

from .call_arguments import check_count, is_stream
from .class_labels import is_single_label, resolve_class_labels, resolve_single_label
from .code_sampling_pipeline import CodeSamplingPipeline, in_batches
from .image_arguments import decode_each, decode_stream, is_single_image, list_images
from .image_editing import first_levels, prepare_image_and_mask
from .sampling_inputs import SamplingInputs, inputs_of_known_codes, inputs_of_label, inputs_of_repainting


class HQGenerationPipeline(CodeSamplingPipeline):
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
    _load_feature_extractor = False
    _load_image_processor = None
    task_name = "hq-generation"
    items = "images"
    output_types = (*IMAGE_TYPES, "codes")
    own_arguments = ("class_labels", "num_images")
    # transformers' base class assigns it without a type.
    image_processor: Any

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        if self.image_processor is None:
            self.image_processor = HQImageProcessor.for_config(model.config.image_tokenizer_config)

    @property
    def processor_of_outputs(self) -> HQImageProcessor:
        """The image processor."""
        return self.image_processor

    def render(self, outputs: dict[str, torch.Tensor], output_type: str) -> Any:
        """One image."""
        return self.image_processor.postprocess(outputs["images"], output_type)[0]

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
        output_type, size = self._resolve_output_type(output_type), self._resolve_batch_size(batch_size)
        layout = self.model.code_layout
        layout = layout if num_levels is None else layout.truncate(check_count("num_levels", num_levels))

        def results(batch: list[Any]) -> Iterable[Any]:
            pixel_values = self.image_processor(batch)["pixel_values"].to(self.device)
            codes = self.model.image_tokenizer.encode(pixel_values).truncate(layout.num_levels)
            if output_type == "codes":
                return codes.to("cpu")
            return self.image_processor.postprocess(self.model.image_tokenizer.decode(codes).cpu(), output_type)

        if is_stream(image):
            return in_batches(decode_stream(image), size, results)
        found = list(in_batches(decode_each("image", list_images("image", image)), size, results))
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
        *,
        class_labels: Any = None,
        num_images: int = 1,
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
        positions, and those of all positions only when they are a group of their own. A masked prior sees all; a
        contextual one, which hides whole positions, those of other positions once they are drafted, hence all in its
        revisions.

        Args:
            image: An image, a list, batch or stream of images, as in `reconstruct`.
            keep_levels: How many levels of codes to keep, coarse to fine: 0 keeps nothing, all levels give the
                reconstruction.
            class_labels: What the images show: one label for all of them or one per image, as in a call; for a stream
                one label for all.
            num_images: Variations of each image.
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

        def inputs_of(condition: SamplingInputs, given: Any) -> SamplingInputs:
            return inputs_of_known_codes(condition, self.image_processor(given)["pixel_values"], known, self.model)

        return self._edit(
            *(image, inputs_of, num_images, seed, batch_size, progress),
            class_labels=class_labels,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )

    def inpaint(
        self,
        image: Any,
        mask: Any,
        *,
        class_labels: Any = None,
        num_images: int = 1,
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
        below. Masked and contextual priors see all. The encoder saw the masked pixels, so that kept codes nearby may
        hint at them.

        Args:
            image: An image, a list, batch or stream of images, as in `reconstruct`.
            mask: An image of the same height and width, for all images or one per image; for a stream one for all. True
                or white is repainted, False or black is kept. Greys count from one half on, also in floating-point
                masks; in integers (arrays, PIL images, files) from 128 on, or, where nothing is above 1, from 1 on.
            class_labels: What to paint: one label for all images or one per image, as in a call; for a stream one
                label for all.
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
            >>> generate.inpaint("cat.png", "mask.png", class_labels="dog", seed=0).save("dog.png")  # doctest: +SKIP
        """
        if not (is_stream(image) or is_single_image(image)):
            image = list_images("image", image)
        masks = self._masks(mask, image)

        def inputs_of(condition: SamplingInputs, given: Any) -> SamplingInputs:
            prepared = prepare_image_and_mask(given, next(masks), self.image_processor)
            return inputs_of_repainting(condition, *prepared, self.model)

        return self._edit(
            *(image, inputs_of, num_images, seed, batch_size, progress),
            class_labels=class_labels,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )

    def is_single(self, given: Any) -> bool:
        """Whether this is an image."""
        return is_single_image(given)

    def decoded_items(self, given: Any) -> tuple[int | None, Iterable[Any]]:
        """How many images there are, None for a stream, and each of them, decoded when it is asked for."""
        if is_stream(given):
            return None, decode_stream(given)
        images = list_images("image", given)
        return len(images), decode_each("image", images)

    def _masks(self, mask: Any, image: Any) -> Iterator[Any]:
        """A mask for each of the images, decoded."""
        number = None if is_stream(image) else len(list_images("image", image))
        masks = list(decode_each("mask", list_images("mask", mask)))
        if is_single_image(mask):
            return itertools.repeat(masks[0])
        if number is None:
            raise ValueError(f"A stream has one mask for all of its images, got {len(masks)}: give one.")
        if len(masks) != number:
            raise ValueError(f"Got {len(masks)} masks for {number} images: give one per image, or one for all.")
        return iter(masks)
