"""What the priors over codes share: conditions, checks of their inputs, and the frame of `generate`.

Shape legend: B batch, N inputs, P positions of all groups, S conditioning vectors, E their width, H width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers import initialization as init

from hq_tokenizers.checked_loading import CheckedLoading, check_config_memory
from hq_tokenizers.checks import Count, check_value
from hq_tokenizers.codes import Codes
from hq_tokenizers.evaluation_mode import evaluation_mode
from hq_tokenizers.memory import check_samples_memory
from hq_tokenizers.randomness import GeneratorLike, sample_generators

from .code_embeddings import CodeEmbedding, CodeVectorEmbedding
from .conditions import NULL_LABEL, ClassEmbedding, Conditions, as_labels, check_label_range, check_vectors
from .configuration_code_generation import CodeGenerationConfig
from .configuration_code_prior import CodePriorConfig
from .known_codes import KnownCodes, prepare_known_codes
from .progress import OnStep, ProgressLike, StepCallback, report_progress
from .rejection_sampling import ScoreFunction, best_of
from .transformer import AttentionMemory, CausalTransformer, GroupwiseTransformer, encode_memory, init_output_projection

T = TypeVar("T")


def refuses_labels(forward: Callable[..., T]) -> Callable[..., T]:
    """Says what to do when `forward` is given the `labels` that transformers' Trainer makes of a column `label`.

    Taken for class labels they would train the model, but the Trainer would leave out `eval_loss` without a word: it
    looks for the parameter `class_labels`.
    """

    @functools.wraps(forward)
    def run(*args: Any, labels: Any = None, **kwargs: Any) -> T:
        if labels is not None:
            raise TypeError(
                "A prior takes class_labels, not labels, which transformers' Trainer makes of a column called label: "
                'use dataset.rename_column("label", "class_labels"), or remove the column for an unconditional prior.'
            )
        return forward(*args, **kwargs)

    return run


class CodePriorModel(CheckedLoading, GenerationMixin):
    """Base class of the priors over codes.

    A subclass has a `position_embedding`, a `spatial_transformer`, and the methods `log_prob_per_level`,
    `num_sampling_steps` and `sample`.

    Args:
        config: A `CodePriorConfig`.
    """

    config: CodePriorConfig
    base_model_prefix = "prior"
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012 (transformers wants a list)
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A generator's checkpoint holds its tokenizer as well.
    _keys_to_ignore_on_load_unexpected = [r"^image_tokenizer\."]  # noqa: RUF012

    position_embedding: nn.Module
    spatial_transformer: CausalTransformer | GroupwiseTransformer

    def __init__(self, config: CodePriorConfig) -> None:
        check_config_memory(type(self), config)
        super().__init__(config)
        self.layout = layout = config.layout
        # `from_pretrained(…, code_layout=…)` sets a text after the configuration has looked at itself.
        config.code_layout = layout.to_dict()
        self.class_embedding = ClassEmbedding(config.num_classes, config.hidden_size)
        self.speaker_embedding: ClassEmbedding | None = None
        if config.num_speakers:
            self.speaker_embedding = ClassEmbedding(config.num_speakers, config.hidden_size)
        self.code_embedding: CodeEmbedding | CodeVectorEmbedding
        if config.input_embeddings == "learned":
            self.code_embedding = CodeEmbedding(layout, config.hidden_size)
        else:
            self.code_embedding = CodeVectorEmbedding(layout, config.hidden_size, config.code_vector_dims)
        if config.cross_attention_dim is not None:
            # Seen by every row; what a row without conditioning vectors attends to.
            self.null_vector = nn.Parameter(torch.zeros(config.cross_attention_dim))
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, size, bias=False) for size in layout.codebook_sizes)

    @property
    def generation_config(self) -> CodeGenerationConfig:
        """The default settings of `generate`; any `GenerationConfig` assigned is converted and checked."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self._generation_config = CodeGenerationConfig.from_generation_config(value)

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Loads generation_config.json; transformers would take overrides of the configuration for settings of it."""
        super().adjust_generation_fn(*args, **{name: kwargs[name] for name in kwargs if not hasattr(self.config, name)})

    def set_code_vectors(self, codebooks: Sequence[torch.Tensor]) -> None:
        """Takes the tokenizer's code vectors as input embeddings; they are saved with the prior.

        Args:
            codebooks: One tensor (K, d) per level, coarse to fine.

        Raises:
            ValueError: If the prior has learned input embeddings, or a codebook does not fit.
        """
        if not isinstance(self.code_embedding, CodeVectorEmbedding):
            raise ValueError(
                'This prior learns its input embeddings; build it with input_embeddings="code_vectors" and '
                "code_vector_dim to give it code vectors."
            )
        self.code_embedding.set_vectors(codebooks)

    def log_prob_per_level(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probability in nats of the codes of each level, given the coarser ones and the condition: (B, L)."""
        raise NotImplementedError(f"{type(self).__name__} has to define log_prob_per_level.")

    def log_prob_of_split(
        self,
        codes: Codes,
        class_labels: torch.Tensor | None,
        indices: Sequence[int],
        num_images: int,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`log_prob_per_level` of images of a split, whose mean is wanted: (B, L). An estimate may be cheaper here.

        Args:
            codes: As in `forward`.
            class_labels: As in `forward`.
            indices: The B images' numbers in the split; an estimate depends on them, not on the rest of the batch.
            num_images: Images of the split.
            speaker_ids: As in `forward`.
        """
        return self.log_prob_per_level(codes, class_labels, **_spoken(speaker_ids))

    def log_prob(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        **estimation: Any,
    ) -> torch.Tensor:
        """Log-probability of whole images, log p(codes | condition), in nats: (B,). Differentiable; call in eval mode.

        Exact or a lower bound, as the model's `log_prob_per_level` says.

        Args:
            codes: As in `forward`.
            class_labels: As in `forward`.
            encoder_hidden_states: As in `forward`.
            encoder_attention_mask: As in `forward`.
            speaker_ids: As in `forward`.
            **estimation: Further arguments of the model's `log_prob_per_level`.

        Raises:
            TypeError: As `forward` does.
            ValueError: As `forward` does.
        """
        estimation |= _spoken(speaker_ids)
        per_level = self.log_prob_per_level(
            codes, class_labels, encoder_hidden_states, encoder_attention_mask, **estimation
        )
        return per_level.sum(dim=1)

    @torch.no_grad()
    def generate(
        self,
        class_labels: torch.Tensor | Sequence[int] | int | None = None,
        num_images: int = 1,
        *,
        generation_config: GenerationConfig | None = None,
        generator: GeneratorLike = None,
        known_codes: Codes | None = None,
        known_mask: Sequence[torch.Tensor] | None = None,
        progress: ProgressLike = None,
        callback_on_step_end: StepCallback | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | Sequence[int] | int | None = None,
        score_function: ScoreFunction | None = None,
        **overrides: Any,
    ) -> Codes:
        """Samples codes.

        An input is a label, a speaker, a sequence of conditioning vectors, an image of known codes, or any of them
        together; a single one of a kind serves all of the others. Each of the N inputs gives `num_images` samples,
        input-major. Given codes are kept and seen by all codes that come later in the order of the model; earlier ones
        do not look ahead. The model runs in inference mode: what its hooks collect meanwhile cannot be trained on.

        Args:
            class_labels: LongTensor (N,) or a list, −1 for no class; None for unconditional samples.
            num_images: Samples per input.
            generation_config: How to sample; default `self.generation_config`.
            generator: One seed, generator, or list of one generator per sample, see `sample_generators`. A sample's
                noise depends on its own generator only, whatever the batch.
            known_codes: Codes of N images, or of one; arbitrary where the mask is False.
            known_mask: One BoolTensor per group, (N, h_g, w_g, D_g), or (N, h_g, w_g) for all depths of a position
                alike; True keeps the known code. A first dimension of 1 serves all inputs.
            progress: True for a bar; or a function called with (steps done, total).
            callback_on_step_end: Called after every step with (steps done, total, `PartialCodes`), for previews.
            encoder_hidden_states: Conditioning vectors (N, S, E) of a prior with cross-attention.
            encoder_attention_mask: (N, S), True where a vector counts; a row without any is unconditional.
            speaker_ids: As `class_labels`, for a prior with `num_speakers`.
            score_function: Scores the candidates when `num_candidates` is above 1: called with the `Codes` of B images
                and their labels (B,), returns (B,) numbers, higher is better. Default: the prior's own `log_prob`.
            **overrides: Settings of `CodeGenerationConfig` that replace those of the config for this call.

        Returns:
            `Codes` of N · num_images images.

        Warns:
            UserWarning: For guidance, or a sample without a condition, of a prior with label_dropout 0, which has not
                learned what to do without a condition.

        Raises:
            TypeError: If a mask is not boolean or the codes are not a `Codes`.
            ValueError: If a label, setting, mask or known code is not acceptable; the message says what is.
        """
        config = self._resolve_generation_config(generation_config, overrides, score_function)
        num_images = check_value("num_images", num_images, Count)
        self._check_code_vectors()
        labels = as_labels(class_labels, self.config.num_classes)
        vectors = check_vectors(encoder_hidden_states, encoder_attention_mask, self.config.cross_attention_dim)
        speakers = as_labels(speaker_ids, self.config.num_speakers, "speaker_ids")
        given = Conditions(labels, *vectors, speakers if self.config.num_speakers else None)
        conditions, known = self._pair_inputs(given, num_images, known_codes, known_mask)
        self._warn_of_untrained_null(config, conditions)
        generators = sample_generators(generator, len(conditions))
        steps = self.num_sampling_steps(config)
        total = steps * config.num_candidates
        with evaluation_mode(self), report_progress(progress, callback_on_step_end, total) as on_step:

            def draw(generators: Sequence[torch.Generator], candidate: int) -> Codes:
                @torch.inference_mode(False)
                @torch.no_grad()
                def on_candidate_step(done: int, partial: Callable) -> None:
                    on_step(candidate * steps + done, partial)

                with torch.inference_mode():
                    codes = self.sample(conditions, generators, config, known, on_candidate_step)
                # What leaves can be trained on and changed in place.
                return Codes(tuple(group.clone() for group in codes.groups), codes.layout)

            def score(codes: Codes) -> torch.Tensor:
                if score_function is not None:
                    return score_function(codes, conditions.labels)
                return self.log_prob(codes, conditions.labels, conditions.vectors, conditions.mask, conditions.speakers)

            if config.num_candidates == 1:
                return draw(generators, 0)
            return best_of(draw, score, generators, config.num_candidates)

    def check_generation_config(self, config: CodeGenerationConfig) -> None:
        """Checks that sampling settings suit this prior, before anything is sampled or trained.

        Raises:
            ValueError: For a setting of another kind of prior, a list that has not one entry per level, or guidance
                without a condition.
        """
        config.check_model(self.config.model_type)
        config.level_sampling(self.layout.num_levels)
        self.num_sampling_steps(config)
        if not self.config.is_conditional and config.guidance_scale != 1:
            raise ValueError(
                f"guidance_scale={config.guidance_scale} needs a class-conditional prior, or one with cross-attention; "
                "this one has num_classes=0: leave guidance_scale at 1."
            )

    def num_sampling_steps(self, config: CodeGenerationConfig) -> int:
        """How many steps `sample` takes."""
        raise NotImplementedError(f"{type(self).__name__} has to define num_sampling_steps.")

    def step_settings(self, config: CodeGenerationConfig) -> dict[str, int | Sequence[int]]:
        """The settings of `config` that say how many steps are taken, with the numbers that hold where it says none.

        A prior whose steps are given by its layout has none.
        """
        return {}

    def sample(
        self,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> Codes:
        """The sampling loop of `generate`, on checked inputs of B samples."""
        raise NotImplementedError(f"{type(self).__name__} has to define sample.")

    def position_context(self, labels: torch.Tensor, speakers: torch.Tensor | None = None) -> torch.Tensor:
        """c_t, what every position knows before any code: (B, P, H) from checked labels (B,) and speakers (B,)."""
        embedding = self.class_embedding(labels)
        if self.speaker_embedding is not None and speakers is not None:
            embedding = embedding + self.speaker_embedding(speakers)
        return embedding[:, None] + self.position_embedding()

    def encode_conditions(self, conditions: Conditions) -> AttentionMemory | None:
        """What the cross-attention layers attend to: the null vector, then the conditioning vectors."""
        if self.config.cross_attention_dim is None:
            return None
        vectors, mask = self.null_vector.expand(len(conditions), 1, -1), None
        if conditions.vectors is not None and conditions.mask is not None:
            vectors = torch.cat([vectors, conditions.vectors.to(vectors.dtype)], dim=1)
            mask = torch.cat([torch.ones_like(conditions.mask[:, :1]), conditions.mask], dim=1)
        return encode_memory(self.spatial_transformer.layers, vectors, mask)

    def _resolve_generation_config(
        self, given: GenerationConfig | None, overrides: dict[str, Any], score_function: ScoreFunction | None
    ) -> CodeGenerationConfig:
        config = self.generation_config
        if given is not None:
            config = CodeGenerationConfig.from_generation_config(given)
        config = config.with_overrides(**overrides)
        self.check_generation_config(config)
        if score_function is not None and config.num_candidates == 1:
            raise ValueError("score_function chooses between candidates: set num_candidates to 2 or more.")
        return config

    def _warn_of_untrained_null(self, config: CodeGenerationConfig, conditions: Conditions) -> None:
        # A warning, not an error: the training images may have had rows without a condition of their own.
        if self.config.label_dropout or not self.config.is_conditional:
            return
        given = conditions.given()
        if config.guidance_scale != 1 and bool(given.any()):
            what = f"guidance_scale={config.guidance_scale} compares with samples that have no condition"
        elif not bool(given.all()):
            what = "There are samples without a condition (class None or -1, no speaker, no vectors)"
        else:
            return
        warnings.warn(
            f"{what}, which this prior has not learned unless its training images had some: its label_dropout is 0. "
            "Train it with label_dropout above 0 (0.1 is usual), or give every sample a class and leave guidance_scale "
            "at 1.",
            stacklevel=3,
        )

    def _check_layout(self, codes: Codes, name: str = "codes") -> None:
        if not isinstance(codes, Codes):
            raise TypeError(
                f"{name} must be a Codes, got {type(codes).__name__}; flat tensors become one by "
                "CodeLayout.unflatten(tensor)."
            )
        if codes.layout != self.layout:
            raise ValueError(
                f"{name} have the layout {codes.layout}, this prior models {self.layout}: encode with the tokenizer "
                "and image size it was trained for."
            )

    def _check_code_vectors(self) -> None:
        # Reads one value; before they are set all of them are NaN.
        embedding = self.code_embedding
        if isinstance(embedding, CodeVectorEmbedding) and embedding.vectors(0)[0, 0].isnan():
            raise ValueError(
                "This prior has no code vectors yet: call set_code_vectors with the tokenizer's codebooks."
            )

    def get_input_embeddings(self) -> None:
        """None: there is one table per level, not one of all. Quantisers of weights ask for it to leave it as it is."""

    def _check_inputs(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        speaker_ids: torch.Tensor | None = None,
    ) -> tuple[Codes, Conditions]:
        """The codes, if need be unflattened, and the conditions of the images, checked."""
        if isinstance(codes, torch.Tensor):
            codes = self.layout.unflatten(codes)
        self._check_layout(codes)
        # Values are only read where that is free; on an accelerator the embedding's own assertion catches them.
        readable = codes.groups[0].is_cpu and not torch.compiler.is_compiling()
        if readable:
            codes.validate()
            self._check_code_vectors()

        def checked(labels: torch.Tensor | None, number: int, name: str) -> torch.Tensor:
            if labels is None:
                return torch.full((codes.batch_size,), NULL_LABEL, device=codes.device)
            if labels.shape != (codes.batch_size,):
                raise ValueError(
                    f"{name} must have shape ({codes.batch_size},), one per image, got {tuple(labels.shape)}."
                )
            if readable and labels.is_cpu:
                check_label_range(labels, number, name)
            return labels

        config = self.config
        vectors = check_vectors(
            encoder_hidden_states, encoder_attention_mask, config.cross_attention_dim, codes.batch_size
        )
        speakers = checked(speaker_ids, config.num_speakers, "speaker_ids")
        labels = checked(class_labels, config.num_classes, "class_labels")
        return codes, Conditions(labels, *vectors, speakers if config.num_speakers else None)

    def _hide_conditions(self, conditions: Conditions) -> Conditions:
        """Label dropout, in training only."""
        drops = self.training and self.config.label_dropout > 0
        return conditions.drop(self.config.label_dropout) if drops else conditions

    def _pair_inputs(
        self,
        conditions: Conditions,
        num_images: int,
        known_codes: Codes | None,
        known_mask: Sequence[torch.Tensor] | None,
    ) -> tuple[Conditions, KnownCodes | None]:
        """Conditions and known codes of the B samples."""
        if known_codes is None and known_mask is not None:
            raise ValueError("known_mask needs known_codes to take the kept codes from.")
        counts = {"class_labels": len(conditions)}
        if conditions.speakers is not None:
            counts["speaker_ids"] = len(conditions.speakers)
        if conditions.vectors is not None:
            counts["encoder_hidden_states"] = len(conditions.vectors)
        if known_codes is not None:
            self._check_layout(known_codes, "known_codes")
            counts["known_codes"] = known_codes.batch_size
        num_inputs = max(counts.values())
        if not set(counts.values()) <= {1, num_inputs}:
            given = " and ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"Got {given}: give equally many, or one of a kind for all.")
        check_samples_memory(num_inputs * num_images, self.layout.num_codes)
        known = None
        if known_codes is not None:
            known = prepare_known_codes(known_codes, known_mask, num_inputs, num_images, self.device)
        return conditions.repeat(num_inputs, num_images, self.device), known

    def _init_weights(self, module: nn.Module) -> None:
        config, std = self.config, self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, CodeVectorEmbedding):
            for buffer in module.buffers(recurse=False):
                init.constant_(buffer, torch.nan)
        elif module is self:
            if config.cross_attention_dim is not None:
                init.normal_(self.null_vector, std=std)
        else:
            branches = 2 if config.cross_attention_dim is None else 3
            init_output_projection(module, std, branches * self._num_layers)

    @property
    def _num_layers(self) -> int:
        return self.config.num_hidden_layers


def _spoken(speaker_ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The argument of priors that know speakers; others need not have it."""
    return {} if speaker_ids is None else {"speaker_ids": speaker_ids}
