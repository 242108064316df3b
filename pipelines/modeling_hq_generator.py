"""Generator: an image tokenizer and a prior over its codes as one model.

    class label, speaker → prior → codes → tokenizer's decoder → image, or spectrogram of a sound

Shape legend: N inputs (labels, known codes), M images per input, B = N · M samples, C × H × W image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from hq_tokenizers.checked_loading import CheckedLoading
from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.memory import check_samples_memory
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel
from hq_tokenizers.priors.progress import PartialCodes, ProgressLike, StepCallback, show_progress
from hq_tokenizers.randomness import GeneratorLike, sample_generators

from .call_arguments import check_count
from .class_labels import resolve_class_labels, resolve_speakers
from .code_decoding import decode_codes, is_of_sound, layout_for
from .configuration_hq_generator import HQGeneratorConfig
from .sub_models import build_sub_model


@dataclass
class HQGeneratorOutput(ModelOutput):
    """Output of `HQGeneratorModel.generate`.

    Args:
        images: (B, C, H, W), nominally in [0, 1], not clamped; `HQImageProcessor.postprocess` makes images of them.
            Of a generator of sounds spectrograms, as `HQFeatureExtractor.to_waveforms` takes them.
        codes: The codes of the images.
        attention_mask: Of sounds, (B, W), 1 for frames before their end; None for images.
    """

    images: torch.Tensor | None = None
    codes: Codes | None = None
    attention_mask: torch.Tensor | None = None


class HQGeneratorModel(CheckedLoading, GenerationMixin):
    """A tokenizer and a prior, loaded and saved as one.

    Each part can also be loaded alone from the generator's directory: `SQVAEModel.from_pretrained(generator_dir)`.

    Args:
        config: The configuration.
        image_tokenizer: The tokenizer; built from the configuration, with fresh weights, when None.
        prior: The prior; likewise.

    Raises:
        ValueError: If the prior's codes are not the tokenizer's.

    Examples:
        >>> generator = HQGeneratorModel.from_sub_models_pretrained("my-tokenizer", "my-prior")  # doctest: +SKIP
        >>> generator.save_pretrained("my-generator")  # doctest: +SKIP
        >>> output = generator.generate(class_labels=["7", "3"], num_images=4, generator=0)  # doctest: +SKIP
    """

    config_class = HQGeneratorConfig
    config: HQGeneratorConfig
    main_input_name = "pixel_values"
    # Attention is the parts' business; transformers asks each of them too.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(
        self,
        config: HQGeneratorConfig,
        image_tokenizer: PreTrainedModel | None = None,
        prior: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        if image_tokenizer is None:
            image_tokenizer = build_sub_model(config.image_tokenizer_config)
        self.image_tokenizer = image_tokenizer
        self.prior = build_sub_model(config.prior_config) if prior is None else prior
        # There shall be one configuration of each part, whoever made it.
        config.image_tokenizer_config = self.image_tokenizer.config
        config.prior_config = self.prior.config
        self._check_layouts()
        self.post_init()

    @classmethod
    def from_sub_models(
        cls, image_tokenizer: PreTrainedModel, prior: PreTrainedModel, id2label: Mapping[int, str] | None = None
    ) -> HQGeneratorModel:
        """Joins a tokenizer and a prior; the weights are shared with them, not copied.

        Args:
            image_tokenizer: The tokenizer.
            prior: A prior over the tokenizer's codes.
            id2label: Class names; by default the prior's.

        Raises:
            TypeError: If one of them is no tokenizer, or no prior.
            ValueError: If the prior's codes are not the tokenizer's, or `id2label` does not fit the prior's classes.
        """
        _check_kinds(image_tokenizer=image_tokenizer, prior=prior)
        # Copies: a new configuration resets the attention implementation of its parts.
        config = HQGeneratorConfig(
            image_tokenizer_config=image_tokenizer.config.to_dict(),
            prior_config=prior.config.to_dict(),
            id2label=None if id2label is None else dict(id2label),
            dtype=prior.dtype,
        )
        return cls(config, image_tokenizer, prior).eval()

    @classmethod
    def from_sub_models_pretrained(
        cls,
        image_tokenizer: str | os.PathLike[str],
        prior: str | os.PathLike[str],
        id2label: Mapping[int, str] | None = None,
        **kwargs: Any,
    ) -> HQGeneratorModel:
        """Loads a tokenizer and a prior, each from its own directory or Hub repository, and joins them.

        Args:
            image_tokenizer: Directory or Hub id of the tokenizer.
            prior: Directory or Hub id of the prior.
            id2label: Class names; by default the prior's.
            **kwargs: Arguments of `from_pretrained` for both, such as `dtype` or `device_map`.

        Raises:
            OSError: If there is no model at a path.
            TypeError: As `from_sub_models` does.
            ValueError: Likewise.
        """
        tokenizer_model, prior_model = (AutoModel.from_pretrained(path, **kwargs) for path in (image_tokenizer, prior))
        return cls.from_sub_models(tokenizer_model, prior_model, id2label)

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """What transformers' pipelines say of themselves."""
        return ("audio",) if is_of_sound(self.config.image_tokenizer_config) else ("image",)

    @property
    def code_layout(self) -> CodeLayout:
        """The layout of the codes that the prior generates and the tokenizer decodes."""
        return CodeLayout.from_dict(self.prior.config.code_layout)

    @property
    def generation_config(self) -> GenerationConfig:
        """The prior's default settings of `generate`; saved as generation_config.json."""
        return self.prior.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        # The base class assigns one derived from the configuration before there is a prior; nobody chose it.
        if "prior" in self._modules:
            self.prior.generation_config = value

    def get_input_embeddings(self) -> None:
        """None: a generator's inputs are images. Quantisers of weights ask for such a table to leave it as it is."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> ModelOutput:
        """The prior's output for the codes of given images; only the prior is differentiated.

        Args:
            pixel_values: (B, C, H, W), floats in [0, 1].
            class_labels: LongTensor (B,), −1 for no class, or None.
            attention_mask: Of sounds, (B, W), 0 for padding; they are as long as the prior's codes.
            speaker_ids: LongTensor (B,), −1 for no speaker, or None.

        Returns:
            The prior's output: `loss` in nats per code, `logits` per level.
        """
        masked = {} if attention_mask is None else {"attention_mask": attention_mask}
        spoken = {} if speaker_ids is None else {"speaker_ids": speaker_ids}
        return self.prior(self.image_tokenizer.encode(pixel_values, **masked), class_labels=class_labels, **spoken)

    @torch.no_grad()
    def generate(
        self,
        class_labels: torch.Tensor | Sequence[int | str | None] | int | str | None = None,
        num_images: int = 1,
        *,
        generation_config: GenerationConfig | None = None,
        generator: GeneratorLike = None,
        known_codes: Codes | None = None,
        known_mask: Sequence[torch.Tensor] | None = None,
        batch_size: int = 64,
        progress: ProgressLike = None,
        callback_on_step_end: StepCallback | None = None,
        speakers: torch.Tensor | Sequence[int | str | None] | int | str | None = None,
        **overrides: Any,
    ) -> HQGeneratorOutput:
        """Samples images, or spectrograms of sounds.

        Args:
            class_labels: Names of `config.id2label`, ids, or None or −1 for no class: one, or N of them.
            num_images: Images M per input; the output has the M images of the first input first.
            generation_config: How to sample; by default `self.generation_config`.
            generator: An integer seed (image i gets seed + i), a `torch.Generator`, or a list with one per image.
            known_codes: Codes of N images, or of one, that are kept where `known_mask` is True.
            known_mask: One BoolTensor (N, h_g, w_g, D_g) per group of the layout, or one row for all.
            batch_size: Images sampled at once. Limits the memory. The codes do not depend on it; the pixels only
                through the rounding of the decoder's convolutions (some 1e-7).
            progress: True for a bar; or a function called with (steps done, total).
            callback_on_step_end: Called after every step of every batch with (steps done, total, `PartialCodes`) of
                the batch; `preview` shows them.
            speakers: Names of `config.speaker_names`, ids, or None or −1 for no speaker: one, or N of them. A tokenizer
                that decodes for a speaker needs one.
            **overrides: Settings such as `temperature`, `top_k`, `top_p` or `guidance_scale`, which replace those of
                the generation config for this call.

        Returns:
            `HQGeneratorOutput` with B = N · M images and their codes.

        Raises:
            ValueError: If a label, a setting, a count or the known codes are not acceptable; the error says what is.
            TypeError: If a label, the generator or `known_codes` is of a wrong type.
        """
        if isinstance(self.prior, CodePriorModel):
            # Before the labels: one that is missing may be under a misspelt name.
            config = self.generation_config if generation_config is None else generation_config
            CodeGenerationConfig.from_generation_config(config).with_overrides(**overrides)
        labels = resolve_class_labels(class_labels, self.config.id2label or {})
        voices = resolve_speakers(speakers, self.config.speaker_names, self.config.decodes_for_speaker)
        num_inputs = self._count_inputs(class_labels=len(labels), speakers=len(voices), known_codes=known_codes)
        num_images, batch_size = check_count("num_images", num_images), check_count("batch_size", batch_size)
        if not labels or not voices:
            raise ValueError(
                f"{'speakers' if labels else 'class_labels'} is empty: give at least one, or None for none."
            )
        if known_codes is not None:
            _check_mask_rows(known_mask, num_inputs)
        check_samples_memory(num_inputs * num_images, self.code_layout.num_codes)
        generators = sample_generators(generator, num_inputs * num_images)
        inputs = torch.arange(num_inputs).repeat_interleave(num_images)
        batches = inputs.split(batch_size)
        images: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        codes: list[Codes] = []
        watched = {} if callback_on_step_end is None else {"callback_on_step_end": callback_on_step_end}
        # A single batch has the prior's own bar, over its steps.
        several = len(batches) > 1
        with show_progress(several and progress, len(batches), "Generating", "batch") as show:
            for batch in batches:
                first = batch_size * len(images)
                heard = torch.tensor(voices)[batch if len(voices) > 1 else [0] * len(batch)]
                spoken = {"speaker_ids": heard} if getattr(self.prior.config, "num_speakers", 0) else {}
                sampled = self.prior.generate(
                    class_labels=[labels[index if len(labels) > 1 else 0] for index in batch.tolist()],
                    generator=generators[first : first + len(batch)],
                    known_codes=_select(known_codes, batch),
                    known_mask=_select(known_mask, batch),
                    generation_config=generation_config,
                    progress=None if several else progress,
                    **spoken,
                    **watched,
                    **overrides,
                )
                decoded, mask = decode_codes(self.image_tokenizer, sampled, heard.to(sampled.device))
                images.append(decoded)
                masks += [] if mask is None else [mask]
                codes.append(sampled)
                show(len(images))
        mask = torch.cat(masks) if masks else None
        return HQGeneratorOutput(images=torch.cat(images), codes=Codes.cat(codes), attention_mask=mask)

    def preview(self, partial: PartialCodes, speaker_ids: torch.Tensor | None = None) -> torch.Tensor:
        """What the codes in the middle of sampling look like.

        Args:
            partial: What `callback_on_step_end` was called with.
            speaker_ids: LongTensor (B,), for tokenizers that decode for a speaker.

        Returns:
            (B, C, H, W) as in `HQGeneratorOutput`: decoded from the leading levels that have a code everywhere; before
            the first has, from all, with code 0 where there is none yet.
        """
        if not isinstance(partial, PartialCodes):
            raise TypeError(
                "preview takes the PartialCodes that callback_on_step_end is called with, got "
                f"{type(partial).__name__}."
            )
        levels = partial.num_preview_levels or None
        return decode_codes(self.image_tokenizer, partial.codes, speaker_ids, levels)[0]

    def _count_inputs(self, known_codes: Codes | None, **counts: int) -> int:
        if known_codes is not None and not isinstance(known_codes, Codes):
            raise TypeError(
                f"known_codes must be a Codes, got {type(known_codes).__name__}; flat tensors become one by "
                "generator.code_layout.unflatten(tensor)."
            )
        if known_codes is not None:
            counts["known_codes"] = known_codes.batch_size
        several = {name: count for name, count in counts.items() if count > 1}
        if len(set(several.values())) > 1:
            given = " and ".join(
                f"known_codes of {count} images" if name == "known_codes" else f"{count} {name}"
                for name, count in several.items()
            )
            raise ValueError(f"Got {given}: give equally many, or one.")
        return max(counts.values())

    def _check_layouts(self) -> None:
        layout = layout_for(self.image_tokenizer, self.code_layout)
        if layout != self.code_layout:
            raise ValueError(
                f"The prior generates codes of the layout {self.code_layout}, but this tokenizer's codes of images of "
                f"size {self.image_tokenizer.config.image_size} have the layout {layout}: join the prior with "
                "the tokenizer whose codes it was trained on, with that tokenizer's image_size set to the size of the "
                "images that were encoded."
            )


_METHODS_OF_PARTS = {"image_tokenizer": ("encode", "decode", "code_layout"), "prior": ("generate", "log_prob")}


def _check_kinds(**parts: PreTrainedModel) -> None:
    """Tells tokenizers and priors apart by what they can do, so that own classes are welcome."""

    def is_a(kind: str, part: PreTrainedModel) -> bool:
        return all(callable(getattr(part, method, None)) for method in _METHODS_OF_PARTS[kind])

    for name, part in parts.items():
        if not is_a(name, part):
            other = next((kind for kind in _METHODS_OF_PARTS if is_a(kind, part)), None)
            found = type(part).__name__ + ("" if other is None else f", which would do as {other}")
            raise TypeError(
                f"{name} must be a model with the methods {', '.join(_METHODS_OF_PARTS[name])}; got {found}. The order "
                "is (image_tokenizer, prior)."
            )


def _check_mask_rows(known_mask: Sequence[torch.Tensor] | None, num_inputs: int) -> None:
    """Before batches are selected from the rows; whatever else may be wrong with a mask, the prior says."""
    if not isinstance(known_mask, (list, tuple)):
        return
    for index, mask in enumerate(known_mask):
        if isinstance(mask, torch.Tensor) and mask.shape[:1] not in ((1,), (num_inputs,)):
            allowed = "1" if num_inputs == 1 else f"1 or {num_inputs}"
            raise ValueError(
                f"The first dimension of known_mask[{index}] must be {allowed}, the number of class_labels or "
                f"known_codes, got a mask of shape {tuple(mask.shape)}."
            )


def _select(values: Any, batch: torch.Tensor) -> Any:
    """The rows of a batch of codes or of one mask per group; a single row serves every input."""
    if values is None:
        return None
    if isinstance(values, (list, tuple)):
        return [_select(value, batch) for value in values]
    return values if len(values) == 1 else values[batch.to(values.device)]
