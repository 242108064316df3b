"""Masked prior: levels coarse to fine, the codes of a level revealed in any order, many at a time.

Levels are taken one after the other, all groups coarse to fine and all depths of a group coarse to fine, as in
SoundStorm (Borsos et al. 2023, arXiv 2305.09636); within a level codes are hidden and predicted as in MaskGIT (Chang et
al., CVPR 2022, arXiv 2202.04200). With k_l the codes of level l and V the visible positions of that level:

    p(k) = Π_l p(k_l | k_1, …, k_{l−1}),      p(k_{l,t} | k_{l,V}, k_{<l}) = softmax(W_l h_t)   for every hidden t
    h = Transformer(x),      x_t = c_t + A Σ_{visible d} e(k_{t,d}) + Σ_{hidden d} m_d

c_t embeds position, group and class, e a code, m a hidden code of each level, and A projects (nothing when embeddings
are learned). Codes of finer levels are always hidden. A position attends to its own group and the coarser ones. Which
level is asked for follows from what is hidden, so it needs no embedding of its own.

Shape legend: B batch, P_g positions of group g, D_g its depth, N_l codes of level l, T codes of an image, K codes of a
level, L levels, H width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel as PreTrainedModel  # diffusers looks for it beside the class
from transformers.utils import ModelOutput, cached_file

from hq_tokenizers.codes import Codes
from hq_tokenizers.hub_files import hub_arguments
from hq_tokenizers.randomness import GeneratorLike

from .code_embeddings import PositionEmbedding
from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig, per_level
from .configuration_masked_prior import MaskedPriorConfig
from .generation_masked_prior import MaskedSampler
from .groupwise_inputs import GroupwiseInputs
from .known_codes import KnownCodes
from .likelihood import code_cross_entropy, level_targets, masked_cross_entropy
from .masking import (
    DECODING_SETTINGS,
    bound_masks,
    draw_counts,
    draw_parts,
    mask_generators,
    ranks,
    scheduler_settings,
    split_estimation,
)
from .modeling_code_prior import CodePriorModel, refuses_labels
from .progress import OnStep
from .transformer import GroupwiseTransformer

if TYPE_CHECKING:
    from .scheduling_masked_codes import MaskedCodeScheduler

_SCHEDULER_FILE = "scheduler_config.json"


@dataclass
class MaskedPriorOutput(ModelOutput):
    """Output of `MaskedPriorModel.forward`.

    Args:
        loss: Mean cross-entropy in nats per hidden code of the level drawn for each image, a scalar.
        logits: One tensor (B, P_g, K) per level, coarse to fine. They mean something where `predicted` is True.
        predicted: One BoolTensor (B, P_g) per level, True for the codes that were hidden and asked for.
    """

    loss: torch.Tensor | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    predicted: tuple[torch.Tensor, ...] | None = None


class MaskedPriorModel(CodePriorModel):
    """Bidirectional transformer over the codes of any `CodeLayout` that fills in hidden codes.

    Args:
        config: A `MaskedPriorConfig`.
    """

    config: MaskedPriorConfig
    config_class = MaskedPriorConfig
    spatial_transformer: GroupwiseTransformer

    def __init__(self, config: MaskedPriorConfig) -> None:
        super().__init__(config)
        self.position_embedding = PositionEmbedding(self.layout, config.hidden_size)
        self.mask_embedding = nn.Embedding(self.layout.num_levels, config.hidden_size)
        self.spatial_transformer = GroupwiseTransformer(
            config, self.layout, config.num_hidden_layers, has_memory=config.cross_attention_dim is not None
        )
        self._scheduler: MaskedCodeScheduler | None = None
        self.post_init()

    @property
    def scheduler(self) -> MaskedCodeScheduler:
        """How codes are revealed; saved beside the model as scheduler_config.json. Assign another one to change it."""
        if self._scheduler is None:
            # Imports diffusers, which takes seconds.
            from .scheduling_masked_codes import MaskedCodeScheduler

            self._scheduler = MaskedCodeScheduler(**self.config.scheduler_config or {})
        return self._scheduler

    @scheduler.setter
    def scheduler(self, value: MaskedCodeScheduler) -> None:
        self._scheduler = value
        self.config.scheduler_config = {name: value.config[name] for name in DECODING_SETTINGS}

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Saves the model as transformers does, and its scheduler beside it."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.scheduler.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Loads the model as transformers does, with the scheduler_config.json beside it where there is one."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        path = None
        if pretrained_model_name_or_path is not None:
            path = cached_file(
                pretrained_model_name_or_path,
                _SCHEDULER_FILE,
                **hub_arguments(kwargs),
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        if path is not None:
            settings = scheduler_settings(json.loads(Path(path).read_text(encoding="utf-8")))
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.config.scheduler_config = settings
        return loaded

    @refuses_labels
    def forward(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        soft_targets: Sequence[torch.Tensor] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_loss: bool = True,
        speaker_ids: torch.Tensor | None = None,
    ) -> MaskedPriorOutput:
        """Training pass: draws a level for every image and hides a random part of it, and all finer levels.

        Levels are drawn in proportion to their number of codes, evenly spread over the batch. The draws come from
        torch's global generator, in evaluation mode too; `log_prob` is the reproducible figure.

        Args:
            codes: Codes of the config's layout, B images; or flat (B, T), as `Codes.flatten` gives them.
            class_labels: LongTensor (B,) in [0, num_classes), −1 for no class; None gives all images no class.
            soft_targets: Per level the probabilities (B, P_g, K) that the tokenizer's posterior gives each code; the
                loss is the cross-entropy with them instead of the codes, which remain the model's input.
            encoder_hidden_states: Conditioning vectors (B, S, E), E = `config.cross_attention_dim`; None for none. In
                training the whole condition of an image is hidden with probability `config.label_dropout`.
            encoder_attention_mask: (B, S), True where a vector counts; a row without any is unconditional.
            return_loss: False skips the loss.
            speaker_ids: LongTensor (B,) in [0, num_speakers), −1 for no speaker; None gives no image a speaker.

        Returns:
            `MaskedPriorOutput`; its loss has label smoothing in training only.

        Raises:
            TypeError: If `codes` are no integers.
            ValueError: If the layout differs from the model's, a shape is wrong, or (checked where reading values does
                not make a device wait) a value is out of range.
        """
        codes, conditions = self._check_inputs(
            codes, class_labels, encoder_hidden_states, encoder_attention_mask, speaker_ids
        )
        conditions = self._hide_conditions(conditions)
        targets = level_targets(codes, soft_targets)
        hidden, predicted = self._draw_hidden(codes.batch_size, codes.device)
        logits = self._logits(codes, hidden, conditions)
        if not return_loss:
            return MaskedPriorOutput(logits=logits, predicted=predicted)
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = masked_cross_entropy(logits, targets, predicted, smoothing)
        return MaskedPriorOutput(loss=loss, logits=logits, predicted=predicted)

    def log_prob_per_level(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        num_masks: int = 8,
        generator: GeneratorLike = None,
    ) -> torch.Tensor:
        """Estimates a lower bound of the log-probability of each level's codes, given the coarser ones: (B, L).

        A masked model has one likelihood for each order σ in which a level's codes can be revealed one by one. The
        bound is their mean, and that of the mixture of all orders, which "random" decoding with a step per position
        samples (Uria et al., ICML 2014; Hoogeboom et al., ICLR 2022, arXiv 2110.02037), is at least as high:

            log E_σ p_σ(k_l | k_{<l}) ≥ E_σ log p_σ(k_l | k_{<l})

        The estimate, from random masks, is unbiased, see `bound_masks`.

        Args:
            codes: As in `forward`.
            class_labels: As in `forward`.
            encoder_hidden_states: As in `forward`.
            encoder_attention_mask: As in `forward`.
            speaker_ids: As in `forward`.
            num_masks: Masks per level, hence passes through the model.
            generator: Noise of the masks, see `sample_generators`. None hides the same positions in every image, so
                that the value depends on the image only and images can be ranked by it; averages over a data set want
                a seed.

        Raises:
            TypeError: As `forward` does.
            ValueError: As `forward` does, or if `num_masks` is below 1.
        """
        codes, conditions = self._check_inputs(
            codes, class_labels, encoder_hidden_states, encoder_attention_mask, speaker_ids
        )
        generators = mask_generators(num_masks, generator, codes.batch_size)
        predictor, bounds = MaskedPredictor(self, conditions), []
        for level, (group, depth) in enumerate(self.layout.levels()):
            values = codes.groups[group].flatten(1, 2)
            bounds.append(self._level_bound(predictor, level, values, depth, num_masks, generators))
            if depth == values.shape[-1] - 1:
                predictor.finish_group(values)
        return torch.stack(bounds, dim=1)

    def log_prob_of_split(
        self,
        codes: Codes,
        class_labels: torch.Tensor | None,
        indices: Sequence[int],
        num_images: int,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the base class says; with as many masks per image and level as make 10,000 of all images, at most 8."""
        estimation = split_estimation(indices, num_images)
        return self.log_prob_per_level(codes, class_labels, speaker_ids=speaker_ids, **estimation)

    def num_sampling_steps(self, config: CodeGenerationConfig) -> int:
        """The steps of all levels."""
        return sum(self._steps_per_level(self._scheduler_for(config)))

    def step_settings(self, config: CodeGenerationConfig) -> dict[str, int | Sequence[int]]:
        """The steps of a level."""
        return {"num_steps": self._scheduler_for(config).config["num_steps"]}

    def sample(
        self,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> Codes:
        """Samples level by level, see `MaskedSampler`."""
        scheduler = self._scheduler_for(config)
        steps = self._steps_per_level(scheduler)

        def predictor_for(rows: Conditions) -> MaskedPredictor:
            return MaskedPredictor(self, rows)

        sampler = MaskedSampler(
            layout=self.layout,
            predictor_for=predictor_for,
            scheduler=scheduler,
            num_steps=steps,
            conditions=conditions,
            generators=generators,
            config=config,
            known=known,
            on_step=on_step,
        )
        return sampler.run()

    def embed_group(self, group: int, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """A Σ_{visible} e(k) + Σ_{hidden} m: codes and BoolTensor (B, P_g, D_g) → (B, P_g, H).

        Hidden codes are not read.
        """
        first = self.layout.first_level(group)
        levels = range(first, first + codes.shape[-1])
        codes = codes.masked_fill(hidden, 0)
        embedded = [self.code_embedding.lookup(level, codes[..., level - first]) for level in levels]
        visible = torch.stack(embedded, dim=2).masked_fill(hidden[..., None], 0).sum(dim=2)
        masks = hidden.to(self.mask_embedding.weight.dtype) @ self.mask_embedding.weight[first : levels.stop]
        return self.code_embedding.project(group, visible) + masks

    def _logits(self, codes: Codes, hidden: Sequence[torch.Tensor], conditions: Conditions) -> tuple[torch.Tensor, ...]:
        """Logits (B, P_g, K) of every level with `hidden`, one BoolTensor (B, P_g, D_g) per group, hidden."""
        pairs = enumerate(zip(codes.groups, hidden, strict=True))
        embedded = [self.embed_group(index, values.flatten(1, 2), mask) for index, (values, mask) in pairs]
        inputs = self.dropout(
            self.position_context(conditions.labels, conditions.speakers) + torch.cat(embedded, dim=1)
        )
        memory = self.encode_conditions(conditions)
        states = self.spatial_transformer(inputs, len(self.layout.groups), memory)
        per_group = states.split([group.num_positions for group in self.layout.groups], dim=1)
        return tuple(head(per_group[g]) for head, (g, _) in zip(self.heads, self.layout.levels(), strict=True))

    def _draw_hidden(
        self, batch_size: int, device: torch.device
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Training's masks: hidden codes (B, P_g, D_g) per group, and the ones to predict, (B, P_g) per level."""
        sizes = torch.tensor([self.layout.groups[group].num_positions for group, _ in self.layout.levels()]).to(device)
        chosen = draw_parts(sizes, batch_size)
        counts = draw_counts(self.config.masking_schedule, sizes[chosen])
        hidden: list[torch.Tensor] = []
        predicted: list[torch.Tensor] = []
        level = 0
        for group in self.layout.groups:
            drawn = ranks(torch.rand(batch_size, group.num_positions, device=device)) < counts[:, None]
            depths = torch.arange(level, level + group.depth, device=device)
            asked = (depths == chosen[:, None])[:, None] & drawn[..., None]
            hidden.append(asked | (depths > chosen[:, None])[:, None])
            predicted += asked.unbind(dim=-1)
            level += group.depth
        return tuple(hidden), tuple(predicted)

    def _level_bound(
        self,
        predictor: MaskedPredictor,
        level: int,
        codes: torch.Tensor,
        depth: int,
        num_masks: int,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """The bound for one level, (B,), from the codes (B, P_g, D_g) of its group."""
        total = torch.zeros(len(codes), device=codes.device)
        for hidden, weights in bound_masks(codes.shape[1], num_masks, generators, codes.device):
            losses = code_cross_entropy(predictor.logits(level, codes, hidden), codes[..., depth])
            total = total - (losses * hidden).sum(dim=1) * weights
        return total

    def _scheduler_for(self, config: CodeGenerationConfig) -> MaskedCodeScheduler:
        """A scheduler of this call's own: the model's, with the settings that the config has replaced."""
        given = {name: getattr(config, name) for name in DECODING_SETTINGS if getattr(config, name) is not None}
        return type(self.scheduler)(**{name: self.scheduler.config[name] for name in DECODING_SETTINGS} | given)

    def _steps_per_level(self, scheduler: MaskedCodeScheduler) -> list[int]:
        steps = per_level("num_steps", scheduler.config["num_steps"], self.layout.num_levels)
        return [
            min(count, self.layout.groups[group].num_positions)
            for count, (group, _) in zip(steps, self.layout.levels(), strict=True)
        ]


class MaskedPredictor:
    """The model at work on B rows, level after level: a `LevelPredictor`, in sampling and in `log_prob`.

    Args:
        model: The prior.
        conditions: Of the B rows.
    """

    def __init__(self, model: MaskedPriorModel, conditions: Conditions) -> None:
        self.model = model
        self.levels = list(model.layout.levels())
        self.inputs = GroupwiseInputs(model, conditions)

    def finish_group(self, codes: torch.Tensor) -> None:
        """Takes the codes (B, P_g, D_g) of the next group, all of which are known now."""
        self.inputs.finish(self.model.embed_group(self.inputs.group, codes, torch.zeros_like(codes).bool()))

    def logits(self, level: int, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, P_g, K) of a level of the group that follows the finished ones.

        Args:
            level: The level.
            codes: (B, P_g, D_g); read at the depths above the level's, and at its own where it is not hidden.
            hidden: BoolTensor (B, P_g), the level's hidden codes.
        """
        group, depth = self.levels[level]
        depths = torch.arange(codes.shape[-1], device=codes.device)
        everywhere = torch.where(depths == depth, hidden[..., None], depths > depth)
        return self.model.heads[level](self.inputs.states(self.model.embed_group(group, codes, everywhere)))
